#!/usr/bin/env bash
# The published records of one GPU, in the order of their worth.
#
#     PROMPTS=gsm8k TEXT=pretrain_text TOKENIZER=tokenizer_gpt2 \
#       benchmarks/first_numbers.sh STORE [doctor] [peft] [quantization] [checks] [gradients]
#         [claims] [speed] [attention] [position] [small] [rates] [paper]
#
# PROMPTS is a folder of prompts with responses, TEXT one of running text, TOKENIZER that of a
# tokenizer; without them the text and the vocabulary that Python carries are used. Without
# names of parts all are run. What was finished is kept when time runs out: run it again to
# go on. `claims` decides what training costs, in three rounds; `rates` tries other learning
# rates than the 2e-3 of `small`. PRESETS are the sizes of
# attention and position (0.5B-h16,1.5B-h16). Publish with
#
#     efficientllm export STORE --format jsonl -o results/NAME.jsonl
set -uo pipefail
store=${1:?the folder for records}
shift
parts=${*:-doctor peft quantization checks gradients claims speed attention position small rates paper}
presets=${PRESETS:-0.5B-h16,1.5B-h16}
here=$(dirname "$0") beside="$store-benchmarks"
mkdir -p "$beside"
measure() {
  python3 -m efficientllm run "$@" ${TOKENIZER:+model.tokenizer="$TOKENIZER"} \
    --store "$store" --no-page
}
study() { measure "$@" ${TEXT:+data="$TEXT"} --until "${UNTIL:-12h}"; }
for part in $parts; do
  case $part in
    doctor) python3 -m efficientllm doctor --store "$store" ;;
    peft) measure peft ${PROMPTS:+data="$PROMPTS"} ;;
    quantization) measure quantization ${TEXT:+data="$TEXT"} ;;
    attention | position) study "$part" model.preset="$presets" ;;
    claims)
      study attention protocol=standard model.preset="$presets" --only 'train-4096-*'
      ;;
    small) study attention-small ;;
    rates)
      study attention-small workload.optimizer.lr=5e-4,1e-3,4e-3 --only 'attention-*'
      ;;
    paper) study attention-paper ;;
    gradients) python3 "$here/gradients.py" --out "$beside/gradients.json" ;;
    speed)
      python3 "$here/pretrain.py" --out "$beside/pretrain"
      python3 "$here/decode.py" --out "$beside/decode"
      ;;
    checks)
      python3 "$here/overhead.py" model=backbone-1.5B sequence_length=4096 batch=4
      python3 "$here/energy.py"
      ;;
    *) echo "no part called $part" >&2 ;;
  esac
done
