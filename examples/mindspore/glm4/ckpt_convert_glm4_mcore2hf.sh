#!/usr/bin/env bash
# Convert an mcore checkpoint, saved under any layout, back to Hugging Face weights. HF_DIR is the original: config, tokenizer.
MCORE_DIR=${MCORE_DIR:-./model_weights/glm4_mcore/}
HF_DIR=${HF_DIR:-./model_from_hf/glm4_hf/}
SAVE_DIR=${SAVE_DIR:-${HF_DIR%/}/mg2hf}
DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_python ckpt_convert_glm4_mcore2hf convert_ckpt.py --use-mcore-models --model-type GPT --model-type-hf chatglm3 \
    --load-model-type mg --save-model-type hf --load-dir "$MCORE_DIR" --hf-dir "$HF_DIR" --save-dir "$SAVE_DIR" \
    --params-dtype "$DTYPE" --ai-framework mindspore "$@"
