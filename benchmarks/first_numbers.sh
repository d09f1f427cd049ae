#!/usr/bin/env bash
# The first published records, on one GPU, in the order of their worth.
#
#     benchmarks/first_numbers.sh STORE [PROMPTS] [TEXT]
#
# PROMPTS is a folder of prompts with responses (gsm8k), TEXT one of running text; without
# them the text that Python carries is used. What was finished is kept when time runs out:
# run it again to go on. Publish with
#
#     efficientllm export STORE --format jsonl -o results/NAME.jsonl
set -uo pipefail
store=${1:?the folder for records}
prompts=${2:-}
text=${3:-}
run() { efficientllm run "$@" --store "$store" --no-page; }

efficientllm doctor --store "$store"
run peft ${prompts:+data="$prompts"}
run quantization ${text:+data="$text"}
run attention ${text:+data="$text"}
python "$(dirname "$0")/overhead.py" model=backbone-1.5B sequence_length=4096 batch=8
python "$(dirname "$0")/energy.py"
efficientllm report "$store"
