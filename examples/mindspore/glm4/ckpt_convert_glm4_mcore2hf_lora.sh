#!/usr/bin/env bash
# Convert an mcore checkpoint with adapters (LoRA) merged into it to Hugging Face weights. HF_DIR is the original: config,
# tokenizer. With --save-lora-to-hf the adapters alone are written, as a PEFT adapter directory.
MCORE_DIR=${MCORE_DIR:-./model_weights/glm4_mcore/}     # the model that the adapters were trained on
LORA_DIR=${LORA_DIR:-./ckpt/glm4_9b_4k_lora/}
HF_DIR=${HF_DIR:-./model_from_hf/glm4_hf/}
SAVE_DIR=${SAVE_DIR:-${HF_DIR%/}/mg2hf_lora}
DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_python ckpt_convert_glm4_mcore2hf_lora convert_ckpt.py --use-mcore-models --model-type GPT --model-type-hf chatglm3 \
    --load-model-type mg --save-model-type hf --load-dir "$MCORE_DIR" --lora-load "$LORA_DIR" --hf-dir "$HF_DIR" \
    --save-dir "$SAVE_DIR" --params-dtype "$DTYPE" --ai-framework mindspore "$@"
