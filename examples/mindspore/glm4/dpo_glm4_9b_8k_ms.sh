#!/usr/bin/env bash
# Preference tuning (DPO) of GLM4-9B on pairs of answers, each with its prompt up to 8192 tokens: all weights, or adapters.
# Edit the variables, or set them: LORA=1 bash dpo_glm4_9b_8k_ms.sh --train-iters 100
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6000}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-8}     # devices; on CPU: processes

CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-./model_weights/glm4_mcore/}    # a tuned model
REF_MODEL_DIR=${REF_MODEL_DIR:-}    # the reference model; empty: CKPT_LOAD_DIR
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/glm4_9b_8k_dpo/}    # a run that has saved before goes on from there
DATA_PATH=${DATA_PATH:-./dataset/dpo_en}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}
LORA=${LORA:-0}     # 1 trains low-rank adapters of the model, which is their reference itself
PRECOMPUTE_REF=${PRECOMPUTE_REF:-1}     # 0 keeps the reference model in memory

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

PREFERENCE_ARGS=(--stage dpo --is-pairwise-dataset --dpo-loss-type sigmoid --dpo-beta 0.1 --dpo-label-smoothing 0.0)
PREFERENCE_ARGS+=(--pref-ftx 0.0)
if [[ "$LORA" == 1 ]]; then
    start_adapters "$CKPT_LOAD_DIR" "$CKPT_SAVE_DIR"
    PREFERENCE_ARGS+=(--lora-r 16 --lora-alpha 32 --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2)
    PREFERENCE_ARGS+=(--lr 5e-6)
    if [[ -n "$REF_MODEL_DIR" ]]; then
        PREFERENCE_ARGS+=(--ref-model "$REF_MODEL_DIR")
    fi
else
    start_from "$CKPT_LOAD_DIR" "$CKPT_SAVE_DIR" --finetune
    PREFERENCE_ARGS+=(--lr 5e-7 --ref-model "${REF_MODEL_DIR:-$CKPT_LOAD_DIR}")
fi
if [[ "$PRECOMPUTE_REF" == 1 ]]; then
    PREFERENCE_ARGS+=(--precompute-ref)
fi
if [[ "$PP" == 2 && "$MODEL" == glm4-9b ]]; then
    TRAIN_ARGS+=(--num-layer-list 22,18)    # the last stage holds the output layer: fewer layers for it
fi

launch dpo_glm4_9b_8k pretrain_gpt.py "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${CHECKPOINT_ARGS[@]}" \
    "${PREFERENCE_ARGS[@]}" --variable-seq-lengths --no-pad-to-seq-lengths \
    --seq-length 8192 --max-position-embeddings 8192 --micro-batch-size 1 \
    --recompute-granularity full --recompute-method block --recompute-num-layers 22 "$@"
