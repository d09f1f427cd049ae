"""`python -m efficientllm` is the command line."""

from efficientllm.cli import main

main()
