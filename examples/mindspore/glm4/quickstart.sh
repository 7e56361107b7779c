#!/usr/bin/env bash
# The whole road on this machine's CPU with a tiny GLM4: convert, preprocess, pre-train, fine-tune, generate, evaluate, convert
# back. The model learns facts about an invented world in pre-training, the form of a question in tuning, and is examined on
# facts that tuning never asked about.
#
#     bash examples/mindspore/glm4/quickstart.sh
#
# Running again reuses what is done; delete the work folder to start afresh.
QUICKSTART_DIR=${QUICKSTART_DIR:-./quickstart}      # work folder
QUICKSTART_FAST=${QUICKSTART_FAST:-0}               # 1: few steps and no accuracy bound, for the tests
MASTER_PORT=${MASTER_PORT:-6010}                    # a free port

set -euo pipefail
SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bash "$SCRIPTS/setup_env.sh"

export MODEL=glm4-tiny DTYPE=fp32 DEVICE_TARGET=CPU
source "$SCRIPTS/common.sh"
source "$SCRIPTS/model_args.sh"

mkdir -p "$QUICKSTART_DIR/done"
cd "$QUICKSTART_DIR"

PRETRAIN_ITERS=250 TUNE_ITERS=110 SAMPLES=() BOUNDS=(--most-before 0.35 --least-after 0.80)
if [[ "$QUICKSTART_FAST" == 1 ]]; then
    PRETRAIN_ITERS=3 TUNE_ITERS=2 SAMPLES=(--max-eval-samples 8) BOUNDS=()
fi

# job NAME COMMAND...: run once; time and output are kept, and an interrupted job runs again.
job() {
    local name=$1 started status=0
    shift
    if [[ -f "done/$name" ]]; then
        echo "== $name: done before, reused"
        return
    fi
    echo "== $name"
    started=$(date +%s.%N)
    "$@" 2>&1 | tee "$name.log" || status=$?
    ((status == 0)) || { echo "error: quickstart job $name failed; its output is in $PWD/$name.log" >&2; exit "$status"; }
    date +%s.%N | awk -v from="$started" -v name="$name" '{ printf "%s\t%.1f\n", name, $1 - from }' >"done/$name.tmp"
    mv "done/$name.tmp" "done/$name"
}

export TOKENIZER_PATH=./model_from_hf HF_DIR=./model_from_hf WORKERS=1 TP=2 PP=2 MASTER_PORT

LENGTH=256   # the longest sequence of the tiny model
job make_data python -m mindspeed_llm.tasks.quickstart make-data --save-dir data
job make_model python -m mindspeed_llm.tasks.quickstart make-model --save-dir model_from_hf "${MODEL_ARGS[@]}" \
    --seq-length "$LENGTH" --max-position-embeddings "$LENGTH"

MCORE_DIR=./mcore job convert_hf2mcore bash "$SCRIPTS/ckpt_convert_glm4_hf2mcore.sh"
INPUT=data/pretrain.jsonl OUTPUT_PREFIX=dataset/pretrain job data_pretrain bash "$SCRIPTS/data_convert_glm4_pretrain.sh"
INPUT=data/instructions.json OUTPUT_PREFIX=dataset/tune job data_tune bash "$SCRIPTS/data_convert_glm4_tune.sh" \
    --seq-length 64 --pack=false

NPUS_PER_NODE=4 CKPT_LOAD_DIR=./mcore CKPT_SAVE_DIR=./ckpt_pretrained DATA_PATH=dataset/pretrain_text_document \
    job pretrain bash "$SCRIPTS/pretrain_glm4_8k_ms.sh" --seq-length 128 --max-position-embeddings "$LENGTH" \
    --train-iters "$PRETRAIN_ITERS" --global-batch-size 16 --micro-batch-size 8 --lr 4e-3 --min-lr 4e-4 \
    --lr-warmup-fraction 0.1 --save-interval 100 --tensorboard-dir tensorboard/pretrain

# Samples come from the pre-trained model: it completes statements, the tuned one answers questions.
mapfile -t prompts <data/prompts.txt
prompt_flags=()
for prompt in "${prompts[@]}"; do prompt_flags+=(--prompt "$prompt"); done
NPUS_PER_NODE=2 TP=1 CHECKPOINT=./ckpt_pretrained job generate bash "$SCRIPTS/generate_glm4_9b_ms.sh" \
    --no-chat-template --max-new-tokens 8 "${prompt_flags[@]}"

evaluate() {
    CHAT=1 NPUS_PER_NODE=1 TP=1 PP=1 CHECKPOINT=$1 DATA_PATH=data/mmlu/test bash "$SCRIPTS/evaluate_glm4_9b_ms.sh" \
        --seq-length "$LENGTH" --num-shots 0 --evaluation-batch-size 32 "${SAMPLES[@]}"
}
job evaluate_before evaluate ./ckpt_pretrained
# on fewer ranks: any layout loads a checkpoint
NPUS_PER_NODE=2 PP=1 CKPT_LOAD_DIR=./ckpt_pretrained CKPT_SAVE_DIR=./ckpt_tuned DATA_PATH=dataset/tune \
    job tune bash "$SCRIPTS/tune_glm4_9b_32k_full_ms.sh" --seq-length 64 --max-position-embeddings "$LENGTH" \
    --rotary-base 10000 --train-iters "$TUNE_ITERS" --global-batch-size 32 --micro-batch-size 16 --lr 1e-3 --min-lr 1e-4 \
    --lr-warmup-fraction 0.1 --recompute-num-layers 1 --tensorboard-dir tensorboard/tune
job evaluate_after evaluate ./ckpt_tuned
MCORE_DIR=./ckpt_tuned job convert_mcore2hf bash "$SCRIPTS/ckpt_convert_glm4_mcore2hf.sh"

cat $(ls -tr done/*) >times.tsv
python -m mindspeed_llm.tasks.quickstart report --save-dir . --times times.tsv --pretrain-log pretrain.log \
    --tune-log tune.log --before-log evaluate_before.log --after-log evaluate_after.log --generate-log generate.log \
    "${BOUNDS[@]}"
