#!/usr/bin/env bash
# Fine-tune low-rank adapters (LoRA) of GLM4-9B on instruction data with sequences of up to 4096 tokens; the model is frozen.
# Edit the variables, or set them: CKPT_LOAD_DIR=./ckpt/glm4_9b_8k/ bash tune_glm4_9b_4k_lora_ms.sh --train-iters 100
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6000}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-8}     # devices; on CPU: processes

CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-./model_weights/glm4_mcore/}    # the model; it is not saved again
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/glm4_9b_4k_lora/}      # adapters; a run that has saved before goes on from there
DATA_PATH=${DATA_PATH:-./dataset/alpaca}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}

MODEL=${MODEL:-glm4-9b}     # a model of mindspeed_llm/families
DTYPE=${DTYPE:-bf16}     # bf16, fp32 or fp16
TP=${TP:-2}
PP=${PP:-1}
CP=${CP:-1}
SP=${SP:-1}     # sequence parallelism; 0 turns it off

DEVICE_TARGET=${DEVICE_TARGET:-}    # Ascend or CPU; empty: Ascend if the machine has one
LOG_ROOT=${LOG_ROOT:-logs}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE_DIR/model_args.sh"
source "$EXAMPLE_DIR/train_args.sh"
start_adapters "$CKPT_LOAD_DIR" "$CKPT_SAVE_DIR"

launch tune_glm4_9b_4k_lora pretrain_gpt.py "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${CHECKPOINT_ARGS[@]}" \
    --stage sft --is-instruction-dataset --prompt-type glm4 --variable-seq-lengths --no-pad-to-seq-lengths \
    --lora-r 16 --lora-alpha 32 --lora-dropout 0 --lora-fusion \
    --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 --lr 1e-4 --min-lr 1e-5 \
    --seq-length 4096 --max-position-embeddings 4096 --micro-batch-size 1 "$@"
