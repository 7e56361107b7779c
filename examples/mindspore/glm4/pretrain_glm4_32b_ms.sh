#!/usr/bin/env bash
# Pre-train GLM-4-32B-0414 with sequences of 8192 tokens on two nodes of 8 devices: start it on each, with its NODE_RANK.
# Edit the variables, or set them: MASTER_ADDR=10.0.0.1 NODE_RANK=1 bash pretrain_glm4_32b_ms.sh --train-iters 100
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}   # of the first node
MASTER_PORT=${MASTER_PORT:-6000}
NNODES=${NNODES:-2}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-8}     # devices; on CPU: processes

CKPT_LOAD_DIR=${CKPT_LOAD_DIR-./model_weights/glm4_32b_mcore/}  # empty, or not there: random initialisation
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/glm4_32b/}
DATA_PATH=${DATA_PATH:-./dataset/alpaca_text_document}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_32b_hf/}

MODEL=${MODEL:-glm4-32b}     # a model of mindspeed_llm/families
DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
TP=${TP:-2}
PP=${PP:-8}
CP=${CP:-1}
SP=${SP:-1}     # sequence parallelism; 0 turns it off
RECOMPUTE_LAYERS=${RECOMPUTE_LAYERS:-6}     # of each pipeline stage, computed again in backward: does not fit without

DEVICE_TARGET=${DEVICE_TARGET:-}    # Ascend or CPU; empty: Ascend if the machine has one
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/model_args.sh"
source "$EXAMPLE_DIR/train_args.sh"
if [[ "$RECOMPUTE_LAYERS" != 0 ]]; then
    TRAIN_ARGS+=(--recompute-granularity full --recompute-method block --recompute-num-layers "$RECOMPUTE_LAYERS")
fi
start_from "$CKPT_LOAD_DIR" "$CKPT_SAVE_DIR"

launch pretrain_glm4_32b pretrain_gpt.py "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${CHECKPOINT_ARGS[@]}" \
    --seq-length 8192 --max-position-embeddings 8192 --micro-batch-size 1 --min-lr 1.25e-7 "$@"
