#!/usr/bin/env bash
# After quickstart.sh, in its folder and world: low-rank adapters (LoRA) of the pre-trained model answer as well as the model
# all of whose weights were tuned; then they are merged into Hugging Face weights, and written as a PEFT adapter directory.
# Preference tuning (DPO) of the tuned model on pairs of a right and a wrong answer.
#
#     bash examples/mindspore/glm4/quickstart_posttrain.sh
#
# What quickstart.sh has not done yet is done first. Running again goes on where training saved.
QUICKSTART_DIR=${QUICKSTART_DIR:-./quickstart}      # work folder
QUICKSTART_FAST=${QUICKSTART_FAST:-0}               # 1: few steps and no accuracy bound, for the tests
MASTER_PORT=${MASTER_PORT:-6010}                    # a free port

set -euo pipefail
SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export QUICKSTART_DIR QUICKSTART_FAST MASTER_PORT
bash "$SCRIPTS/quickstart.sh"

export MODEL=glm4-tiny DTYPE=fp32 DEVICE_TARGET=CPU
source "$SCRIPTS/common.sh"
cd "$QUICKSTART_DIR"

LORA_ITERS=220 DPO_ITERS=50 SAMPLES=() BOUNDS=(--within 0.05) PREFERENCE_BOUNDS=(--least-reward 0.9 --within 0)
if [[ "$QUICKSTART_FAST" == 1 ]]; then
    LORA_ITERS=4 DPO_ITERS=3 SAMPLES=(--max-eval-samples 8) BOUNDS=() PREFERENCE_BOUNDS=()
fi

export TOKENIZER_PATH=./model_from_hf HF_DIR=./model_from_hf
LENGTH=256   # the longest sequence of the tiny model

# stage NAME COMMAND...: shows what a command prints and keeps it in NAME.log.
stage() {
    echo "== $1"
    "${@:2}" 2>&1 | tee "$1.log"
}

NPUS_PER_NODE=2 TP=2 PP=1 CKPT_LOAD_DIR=./ckpt_pretrained CKPT_SAVE_DIR=./ckpt_lora DATA_PATH=dataset/tune \
    stage tune_lora bash "$SCRIPTS/tune_glm4_9b_4k_lora_ms.sh" --seq-length 64 --max-position-embeddings "$LENGTH" \
    --train-iters "$LORA_ITERS" --global-batch-size 32 --micro-batch-size 16 --lr 3e-3 --min-lr 3e-4 \
    --lr-warmup-fraction 0.1 --tensorboard-dir tensorboard/tune_lora
CHAT=1 NPUS_PER_NODE=1 TP=1 PP=1 CHECKPOINT=./ckpt_pretrained DATA_PATH=data/mmlu/test \
    stage evaluate_lora bash "$SCRIPTS/evaluate_glm4_9b_ms.sh" --lora-load ./ckpt_lora --seq-length "$LENGTH" --num-shots 0 \
    --evaluation-batch-size 32 "${SAMPLES[@]}"
export MCORE_DIR=./ckpt_pretrained LORA_DIR=./ckpt_lora
SAVE_DIR=./lora_merged_hf stage convert_lora bash "$SCRIPTS/ckpt_convert_glm4_mcore2hf_lora.sh"
SAVE_DIR=./lora_peft stage convert_peft bash "$SCRIPTS/ckpt_convert_glm4_mcore2hf_lora.sh" --save-lora-to-hf

python -m mindspeed_llm.tasks.quickstart compare --full-log evaluate_after.log --lora-log evaluate_lora.log "${BOUNDS[@]}"

# From the tuned model: which of two letters is right, of questions about the names that it was tuned on.
stage make_pairs python -m mindspeed_llm.tasks.quickstart make-pairs --save-dir data
INPUT=data/pairs.json OUTPUT_PREFIX=dataset/pairs WORKERS=1 \
    stage data_pairs bash "$SCRIPTS/data_convert_glm4_tune.sh" --handler-name AlpacaStylePairwiseHandler --pack=false \
    --seq-length 64
NPUS_PER_NODE=2 TP=2 PP=1 CKPT_LOAD_DIR=./ckpt_tuned CKPT_SAVE_DIR=./ckpt_dpo DATA_PATH=dataset/pairs \
    stage dpo bash "$SCRIPTS/dpo_glm4_9b_8k_ms.sh" --seq-length 64 --max-position-embeddings "$LENGTH" \
    --train-iters "$DPO_ITERS" --global-batch-size 32 --micro-batch-size 16 --lr 3e-4 --min-lr 3e-5 \
    --lr-warmup-fraction 0.1 --recompute-num-layers 1 --tensorboard-dir tensorboard/dpo
CHAT=1 NPUS_PER_NODE=1 TP=1 PP=1 CHECKPOINT=./ckpt_dpo DATA_PATH=data/mmlu/test \
    stage evaluate_dpo bash "$SCRIPTS/evaluate_glm4_9b_ms.sh" --seq-length "$LENGTH" --num-shots 0 \
    --evaluation-batch-size 32 "${SAMPLES[@]}"
python -m mindspeed_llm.tasks.quickstart preferences --dpo-log dpo.log --before-log evaluate_after.log \
    --after-log evaluate_dpo.log "${PREFERENCE_BOUNDS[@]}"
