#!/usr/bin/env bash
# Generate text with GLM4-9B: bash generate_glm4_9b_ms.sh --task chat
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6001}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-2}     # devices; on CPU: processes

CHECKPOINT=${CHECKPOINT:-${CKPT_LOAD_DIR:-./model_weights/glm4_mcore/}}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}

DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
TP=${TP:-1}
PP=${PP:-2}

DEVICE_TARGET=${DEVICE_TARGET:-}    # Ascend or CPU; empty: Ascend if the machine has one
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/inference_args.sh"

launch generate_glm4_9b inference.py "${INFERENCE_ARGS[@]}" --task greedy --max-new-tokens 256 "$@"
