# Sourced: MODEL_ARGS, the shape of every model here, stated once. GLM4's constants first, then each size.
set -euo pipefail
MODEL_ARGS=(
    --use-mcore-models
    --group-query-attention
    --num-query-groups 2
    --add-qkv-bias
    --disable-bias-linear
    --swiglu
    --normalization RMSNorm
    --norm-epsilon 1.5625e-07
    --position-embedding-type rope
    --use-glm-rope
    --rotary-percent 0.5
    --untie-embeddings-and-output-weights
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --attention-softmax-in-fp32
)

case "$MODEL" in
    glm4-9b)
        MODEL_ARGS+=(--num-layers 40 --hidden-size 4096 --ffn-hidden-size 13696 --num-attention-heads 32
            --kv-channels 128 --padded-vocab-size 151552)
        ;;
    glm4-tiny)  # for a laptop, CI and the quickstart
        MODEL_ARGS+=(--num-layers 4 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4
            --kv-channels 32 --padded-vocab-size 1024)
        ;;
    *) echo "error: MODEL ($MODEL) must be glm4-9b or glm4-tiny" >&2; exit 1 ;;
esac
