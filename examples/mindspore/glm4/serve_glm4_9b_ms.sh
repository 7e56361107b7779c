#!/usr/bin/env bash
# Serve GLM4-9B: the OpenAI API under http://HOST:PORT/v1, a page to chat at http://HOST:PORT/
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6001}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-2}     # devices; on CPU: processes

CHECKPOINT=${CHECKPOINT:-${CKPT_LOAD_DIR:-./model_weights/glm4_mcore/}}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}

HOST=${HOST:-127.0.0.1}     # 0.0.0.0: every address of this machine
PORT=${PORT:-8000}
API_KEY=${API_KEY:-}        # what clients must send; empty: nothing
MODEL_NAME=${MODEL_NAME:-glm4-9b}     # for clients

DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
TP=${TP:-1}
PP=${PP:-2}

DEVICE_TARGET=${DEVICE_TARGET:-}    # Ascend or CPU; empty: Ascend if the machine has one
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/inference_args.sh"

[[ -z "$API_KEY" ]] || export MINDSPEED_LLM_API_KEY="$API_KEY"     # a command line can be read by everyone
launch serve_glm4_9b inference.py "${INFERENCE_ARGS[@]}" --task serve --host "$HOST" --port "$PORT" \
    --served-model-name "$MODEL_NAME" "$@"
