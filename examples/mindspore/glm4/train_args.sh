# Sourced: TRAIN_ARGS, what pre-training and tuning have in common.
set -euo pipefail
set_dtype_args

TRAIN_ARGS=(
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size "$PP"
    --context-parallel-size "$CP"
    --use-distributed-optimizer
    --use-flash-attn
    --use-fused-rmsnorm
    --use-fused-swiglu
    --tokenizer-type PretrainedFromHF
    --tokenizer-name-or-path "$TOKENIZER_PATH"
    --data-path $DATA_PATH
    --split 100,0,0
    --global-batch-size 64
    --train-iters 2000
    --lr 1.25e-6
    --lr-decay-style cosine
    --lr-warmup-fraction 0.01
    --weight-decay 0.1
    --clip-grad 1.0
    --adam-beta1 0.9
    --adam-beta2 0.95
    --init-method-std 0.01
    --initial-loss-scale 4096
    --log-interval 1
    --save-interval 2000
    --eval-interval 2000
    --eval-iters 0
    --ai-framework mindspore
    "${DTYPE_ARGS[@]}"
)
if [[ "$SP" == 1 && "$TP" -gt 1 ]]; then
    TRAIN_ARGS+=(--sequence-parallel)
fi
