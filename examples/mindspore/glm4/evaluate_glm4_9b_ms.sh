#!/usr/bin/env bash
# Evaluate GLM4-9B on MMLU or another benchmark. MMLU: DATA_PATH holds <subject>_test.csv; the shots come from the folder
# `dev` beside it. The other benchmarks and their files: docs/evaluation.md.
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6001}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-2}     # devices; on CPU: processes

CHECKPOINT=${CHECKPOINT:-${CKPT_LOAD_DIR:-./model_weights/glm4_mcore/}}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}
DATA_PATH=${DATA_PATH:-./mmlu/test/}
TASK=${TASK:-mmlu}
CHAT=${CHAT:-0}          # 1: questions in the chat template, for a tuned model; 0: as plain text, for a base model

DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
TP=${TP:-1}
PP=${PP:-2}

DEVICE_TARGET=${DEVICE_TARGET:-}    # Ascend or CPU; empty: Ascend if the machine has one
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/inference_args.sh"

TEMPLATE_ARGS=(--no-chat-template)
[[ "$CHAT" == 1 ]] && TEMPLATE_ARGS=()

launch evaluate_glm4_9b evaluation.py "${INFERENCE_ARGS[@]}" --task "$TASK" --task-data-path "$DATA_PATH" \
    --seq-length 8192 --evaluation-batch-size 1 "${TEMPLATE_ARGS[@]}" "$@"
