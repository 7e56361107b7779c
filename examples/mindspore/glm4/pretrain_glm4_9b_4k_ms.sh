#!/usr/bin/env bash
# Pre-train GLM4-9B with sequences of 4096 tokens on one node of 8 devices.
# Edit the variables, or set them: TP=4 CKPT_LOAD_DIR= bash pretrain_glm4_9b_4k_ms.sh --train-iters 100
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6000}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-8}     # devices; on CPU: processes

CKPT_LOAD_DIR=${CKPT_LOAD_DIR-./model_weights/glm4_mcore/}  # empty, or not there: random initialisation
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/glm4_9b_4k/}
DATA_PATH=${DATA_PATH:-./dataset/alpaca_text_document}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}

MODEL=${MODEL:-glm4-9b}     # a model of mindspeed_llm/families
DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
TP=${TP:-2}
PP=${PP:-2}
CP=${CP:-1}
SP=${SP:-1}     # sequence parallelism; 0 turns it off

DEVICE_TARGET=${DEVICE_TARGET:-}    # Ascend or CPU; empty: Ascend if the machine has one
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/model_args.sh"
source "$EXAMPLE_DIR/train_args.sh"
start_from "$CKPT_LOAD_DIR" "$CKPT_SAVE_DIR"

launch pretrain_glm4_9b_4k pretrain_gpt.py "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${CHECKPOINT_ARGS[@]}" \
    --seq-length 4096 --max-position-embeddings 4096 --micro-batch-size 1 --min-lr 1.25e-7 "$@"
