#!/usr/bin/env bash
# Convert Hugging Face weights of GLM4 to an mcore checkpoint for TP x PP ranks. Shapes come from HF_DIR/config.json.
HF_DIR=${HF_DIR:-./model_from_hf/glm4_hf/}
MCORE_DIR=${MCORE_DIR:-./model_weights/glm4_mcore/}
TP=${TP:-2}
PP=${PP:-2}
DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_python ckpt_convert_glm4_hf2mcore convert_ckpt.py --use-mcore-models --model-type GPT --model-type-hf chatglm3 \
    --load-model-type hf --save-model-type mg --target-tensor-parallel-size "$TP" \
    --target-pipeline-parallel-size "$PP" --load-dir "$HF_DIR" --save-dir "$MCORE_DIR" --params-dtype "$DTYPE" \
    --ai-framework mindspore "$@"
