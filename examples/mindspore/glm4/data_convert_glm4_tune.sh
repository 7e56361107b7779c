#!/usr/bin/env bash
# Turn Alpaca-style instructions into tuning data: ${OUTPUT_PREFIX}_packed_{input_ids,attention_mask,labels}_document.{bin,idx}.
# Rows hold several conversations (one each with --pack=false). For ShareGPT-style and GLM-4's own conversations add:
# --handler-name SharegptStyleInstructionHandler
INPUT=${INPUT:-./dataset/train-00000-of-00001-a09b74b3ef9c3b56.parquet}
OUTPUT_PREFIX=${OUTPUT_PREFIX:-./dataset/alpaca}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}
WORKERS=${WORKERS:-4}
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
mkdir -p "$(dirname "$OUTPUT_PREFIX")"
run_python data_convert_glm4_tune preprocess_data.py --input "$INPUT" --output-prefix "$OUTPUT_PREFIX" \
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path "$TOKENIZER_PATH" --workers "$WORKERS" \
    --log-interval 1000 --handler-name AlpacaStyleInstructionHandler --prompt-type glm4 --seq-length 32768 \
    --pack --append-eod "$@"
