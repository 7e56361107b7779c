#!/usr/bin/env bash
# Evaluate GLM4-9B on MMLU. DATA_PATH holds <subject>_test.csv; the shots come from the folder `dev` beside it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CHECKPOINT=${CHECKPOINT:-${CKPT_LOAD_DIR:-./model_weights/glm4_mcore/}}
DATA_PATH=${DATA_PATH:-./mmlu/test/}
TASK=${TASK:-mmlu}
source "$EXAMPLE_DIR/inference_args.sh"

launch evaluate_glm4_9b evaluation.py "${INFERENCE_ARGS[@]}" --task "$TASK" --task-data-path "$DATA_PATH" \
    --seq-length 8192 --max-new-tokens 1 --evaluation-batch-size 1 "$@"
