"""Flag blocks of the documented GLM4 scripts of MindSpeed-LLM, as users paste them."""

import shlex

SHAPE_9B = """
    --num-layers 40 --hidden-size 4096 --ffn-hidden-size 13696 --num-attention-heads 32
    --group-query-attention --num-query-groups 2 --padded-vocab-size 151552 --make-vocab-size-divisible-by 1
    --disable-bias-linear --add-qkv-bias --position-embedding-type rope --use-glm-rope --rotary-percent 0.5
    --normalization RMSNorm --norm-epsilon 1.5625e-07 --swiglu --untie-embeddings-and-output-weights
    --attention-dropout 0.0 --hidden-dropout 0.0 --attention-softmax-in-fp32
"""

PRETRAIN_8K = """
    --tensor-model-parallel-size 2 \\
    --pipeline-model-parallel-size 2 \\
    --sequence-parallel \\
    --use-mcore-models \\
    --use-flash-attn \\
    --use-fused-rmsnorm \\
    --use-fused-swiglu \\
    --overlap-grad-reduce \\
    --overlap-param-gather \\
    --use-distributed-optimizer \\
    --num-layers 40 \\
    --hidden-size 4096 \\
    --ffn-hidden-size 13696 \\
    --num-attention-heads 32 \\
    --seq-length 8192 \\
    --micro-batch-size 1 \\
    --global-batch-size 64 \\
    --max-position-embeddings 8192 \\
    --padded-vocab-size 151552 \\
    --make-vocab-size-divisible-by 1 \\
    --group-query-attention \\
    --num-query-groups 2 \\
    --disable-bias-linear \\
    --add-qkv-bias \\
    --position-embedding-type rope \\
    --use-glm-rope \\
    --rotary-percent 0.5 \\
    --no-rope-fusion \\
    --normalization RMSNorm \\
    --swiglu \\
    --tokenizer-type PretrainedFromHF \\
    --tokenizer-name-or-path ./model_from_hf/glm4_hf/ \\
    --lr 1.25e-6 \\
    --norm-epsilon 1.5625e-07 \\
    --train-iters 2000 \\
    --lr-decay-style cosine \\
    --untie-embeddings-and-output-weights \\
    --attention-dropout 0.0 \\
    --init-method-std 0.01 \\
    --hidden-dropout 0.0 \\
    --no-masked-softmax-fusion \\
    --attention-softmax-in-fp32 \\
    --min-lr 1.25e-7 \\
    --weight-decay 1e-1 \\
    --lr-warmup-fraction 0.01 \\
    --clip-grad 1.0 \\
    --adam-beta1 0.9 \\
    --initial-loss-scale 4096 \\
    --adam-beta2 0.95 \\
    --no-load-optim \\
    --no-load-rng \\
    --no-gradient-accumulation-fusion \\
    --no-bias-swiglu-fusion \\
    --bf16 \\
    --ckpt-format torch \\
    --data-path ./dataset/alpaca_text_document \\
    --split 100,0,0 \\
    --log-interval 1 \\
    --save-interval 2000 \\
    --eval-interval 2000 \\
    --eval-iters 0 \\
    --load ./model_weights/glm4_mcore/ \\
    --save ./ckpt/ \\
    --distributed-backend nccl \\
    --ai-framework mindspore
"""

PRETRAIN_4K = PRETRAIN_8K.replace("8192", "4096")

PRETRAIN_32K = SHAPE_9B + """
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --context-parallel-algo megatron_cp_algo
    --context-parallel-size 4 --sequence-parallel --use-mcore-models --use-flash-attn --use-fused-swiglu
    --use-fused-rmsnorm --overlap-grad-reduce --overlap-param-gather --use-cp-send-recv-overlap
    --use-distributed-optimizer --seq-length 32768 --micro-batch-size 1 --global-batch-size 64
    --max-position-embeddings 32768 --rotary-base 5000000 --tokenizer-type PretrainedFromHF
    --tokenizer-name-or-path ./tok --lr 1.25e-6 --train-iters 2000 --lr-decay-style cosine --init-method-std 0.01
    --no-masked-softmax-fusion --no-create-attention-mask-in-dataloader --min-lr 1.25e-7 --weight-decay 1e-1
    --lr-warmup-fraction 0.01 --clip-grad 1.0 --adam-beta1 0.9 --adam-beta2 0.95 --initial-loss-scale 4096
    --no-gradient-accumulation-fusion --no-load-optim --no-load-rng --no-shared-storage --bf16 --ckpt-format torch
    --data-path ./data --split 100,0,0 --log-interval 1 --save-interval 2000 --eval-interval 1000 --eval-iters 0
    --ai-framework mindspore --distributed-backend nccl --load ./in --save ./out
"""

TUNE_32K = SHAPE_9B + """
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel --use-mcore-models
    --use-flash-attn --use-fused-swiglu --use-fused-rmsnorm --use-distributed-optimizer --seq-length 32768
    --micro-batch-size 2 --global-batch-size 64 --max-position-embeddings 32768 --overlap-grad-reduce --no-rope-fusion
    --rotary-base 5000000 --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ./tok --tokenizer-not-use-fast
    --lr 1.25e-6 --train-iters 2000 --lr-decay-style cosine --init-method-std 0.01 --no-masked-softmax-fusion
    --min-lr 1e-8 --weight-decay 1e-1 --lr-warmup-fraction 0.01 --clip-grad 1.0 --adam-beta1 0.9
    --initial-loss-scale 4096 --adam-beta2 0.95 --no-gradient-accumulation-fusion --no-load-optim --no-load-rng
    --num-layer-list 22,18 --recompute-granularity full --recompute-method block --recompute-num-layers 22 --bf16
    --ckpt-format torch --finetune --stage sft --is-instruction-dataset --variable-seq-lengths --prompt-type glm4
    --data-path ./data --split 100,0,0 --log-interval 1 --save-interval 2000 --eval-interval 1000 --eval-iters 0
    --distributed-backend nccl --load ./in --save ./out --ai-framework mindspore
"""

PRETRAIN_32B = """
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 8 --sequence-parallel --use-mcore-models
    --use-flash-attn --use-fused-rmsnorm --use-fused-swiglu --overlap-grad-reduce --overlap-param-gather
    --use-distributed-optimizer --num-layers 64 --hidden-size 6144 --ffn-hidden-size 23040 --num-attention-heads 48
    --seq-length 8192 --micro-batch-size 1 --global-batch-size 16 --max-position-embeddings 8192
    --padded-vocab-size 151552 --make-vocab-size-divisible-by 1 --group-query-attention --num-query-groups 2
    --disable-bias-linear --position-embedding-type rope --use-glm-rope --rotary-percent 0.5 --no-rope-fusion
    --normalization RMSNorm --swiglu --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ./tok --lr 1.25e-6
    --norm-epsilon 1.5625e-07 --train-iters 2000 --lr-decay-style cosine --untie-embeddings-and-output-weights
    --attention-dropout 0.0 --init-method-std 0.01 --hidden-dropout 0.0 --no-masked-softmax-fusion
    --attention-softmax-in-fp32 --min-lr 1.25e-7 --weight-decay 1e-1 --lr-warmup-fraction 0.01 --clip-grad 1.0
    --adam-beta1 0.9 --initial-loss-scale 4096 --adam-beta2 0.95 --no-load-optim --no-load-rng
    --no-gradient-accumulation-fusion --no-bias-swiglu-fusion --bf16 --noop-layers 6,7,15
    --no-check-for-nan-in-loss-and-grad --recompute-granularity full --recompute-method block --recompute-num-layers 8
    --ckpt-format torch --data-path ./data --split 100,0,0 --log-interval 1 --save-interval 1 --eval-interval 2000
    --eval-iters 0 --distributed-backend nccl --ai-framework mindspore
"""

GENERATE = SHAPE_9B + """
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 2 --use-mcore-models --seq-length 8192
    --max-position-embeddings 8192 --no-rope-fusion --max-new-tokens 256 --micro-batch-size 1 --load ./in
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ./tok --tokenizer-not-use-fast --no-load-optim
    --no-load-rng --no-masked-softmax-fusion --no-gradient-accumulation-fusion --exit-on-missing-checkpoint --seed 42
    --bf16 --ai-framework mindspore --ckpt-format torch
"""

EVALUATE = SHAPE_9B + """
    --task-data-path ./mmlu/test/ --task mmlu --use-mcore-models --tensor-model-parallel-size 1
    --pipeline-model-parallel-size 2 --seq-length 8192 --max-new-tokens 1 --max-position-embeddings 8192
    --no-rope-fusion --no-chat-template --load ./in --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ./tok
    --tokenizer-not-use-fast --no-masked-softmax-fusion --no-gradient-accumulation-fusion --micro-batch-size 1
    --exit-on-missing-checkpoint --no-load-rng --no-load-optim --bf16 --seed 42 --ai-framework mindspore
    --ckpt-format torch
"""

HF2MCORE = """
    --model-type-hf chatglm3 --model-type GPT --load-model-type hf --save-model-type mg
    --target-tensor-parallel-size 2 --target-pipeline-parallel-size 2 --load-dir ./model_from_hf/glm4_hf
    --save-dir ./model_weights/glm4_mcore --tokenizer-model ./model_from_hf/glm4_hf/tokenizer.json --add-qkv-bias
    --use-mcore-models --params-dtype bf16 --ai-framework mindspore
"""

MCORE2HF = """
    --use-mcore-models --model-type-hf chatglm3 --model-type GPT --load-model-type mg --save-model-type hf
    --add-qkv-bias --target-tensor-parallel-size 1 --target-pipeline-parallel-size 1 --ai-framework mindspore
    --load-dir ./model_weights/glm4_mcore/ --save-dir ./model_from_hf/glm4_hf/
"""

DATA_TUNE = """
    --input ./dataset/train.parquet --tokenizer-name-or-path ./model_from_hf/glm4_hf/
    --output-prefix ./dataset/glm4_9b_hf/alpaca --workers 4 --log-interval 1000 --tokenizer-type PretrainedFromHF
    --tokenizer-not-use-fast --handler-name AlpacaStyleInstructionHandler --prompt-type glm4 --seq-length 32768 --pack
    --append-eod
"""

TINY = """
    --num-layers 4 --hidden-size 128 --ffn-hidden-size 256 --num-attention-heads 8 --group-query-attention
    --num-query-groups 2 --kv-channels 16 --padded-vocab-size 512 --add-qkv-bias
    --untie-embeddings-and-output-weights --seq-length 256 --max-position-embeddings 256 --micro-batch-size 1
    --global-batch-size 8 --train-iters 20 --data-path d --tokenizer-name-or-path t
"""

BLOCKS = {"pretrain 4k": ("pretrain", PRETRAIN_4K), "pretrain 8k": ("pretrain", PRETRAIN_8K),
          "pretrain 32k": ("pretrain", PRETRAIN_32K), "tune 32k": ("pretrain", TUNE_32K),
          "pretrain 32b": ("pretrain", PRETRAIN_32B), "generate": ("inference", GENERATE),
          "evaluate": ("evaluation", EVALUATE), "hf2mcore": ("convert", HF2MCORE), "mcore2hf": ("convert", MCORE2HF),
          "data tune": ("preprocess", DATA_TUNE)}

BASE = {"pretrain": TINY, "inference": "--load in --tokenizer-name-or-path t",
        "evaluation": "--load in --tokenizer-name-or-path t --task-data-path mmlu/test",
        "convert": "--load-dir in --save-dir out",
        "preprocess": "--input i --output-prefix o --tokenizer-name-or-path t"}


def argv(block: str) -> list[str]:
    """The words of a block as a shell would pass them."""
    return shlex.split(block.replace("\\\n", " "))
