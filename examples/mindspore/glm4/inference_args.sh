# Sourced: INFERENCE_ARGS, what generation and evaluation have in common. The checkpoint knows the model's shape.
set -euo pipefail
set_dtype_args

INFERENCE_ARGS=(
    --use-mcore-models
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size "$PP"
    --load "$CHECKPOINT"
    --tokenizer-type PretrainedFromHF
    --tokenizer-name-or-path "$TOKENIZER_PATH"
    --ai-framework mindspore
    "${DTYPE_ARGS[@]}"
)
