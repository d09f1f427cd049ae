# Two commands for a fresh machine that has Python 3.11 or newer, pip and make:
#
#     make quickstart     install, measure one small model at every stage of its life
#     make test           everything that is checked before a change is accepted

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test docs clean

quickstart: $(INSTALLED)
	@$(BIN)/efficientllm run
	@echo "open     $(CURDIR)/efficientllm-results/report.html"

test: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

docs: $(INSTALLED)
	$(BIN)/python -m efficientllm.report.methodology METHODOLOGY.md
	$(BIN)/python -m efficientllm.report.readme README.md results/h100-80gb-quantization.jsonl \
		results/h100-80gb-attention*.jsonl

# torch first and alone: a machine that keeps its own build of exactly this version uses it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
