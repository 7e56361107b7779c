# Sourced: INFERENCE_ARGS, what generation and evaluation have in common, and the variables of both. The checkpoint knows the
# model's shape.
set -euo pipefail
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-6001}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
NPUS_PER_NODE=${NPUS_PER_NODE:-2}

TP=${TP:-1}
PP=${PP:-2}
CHECKPOINT=${CHECKPOINT:-./model_weights/glm4_mcore/}
TOKENIZER_PATH=${TOKENIZER_PATH:-./model_from_hf/glm4_hf/}

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
