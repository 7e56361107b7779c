"""Flags of the model's shape and arithmetic, and of how it is spread over ranks."""

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.flag_kinds import MODEL, RUN, TRAIN, Flag
from mindspeed_llm.config.parallel import RING, ULYSSES

_MODEL = "model"
_PARALLEL = "parallel"


def _fixed(name: str, value_kind: kind.Kind, text: str) -> Flag:
    return Flag(name, value_kind, (), MODEL, text, _MODEL, default="always so")


MODEL_FLAGS = (
    Flag("--num-layers", kind.integer(1), ("model.num_layers",), MODEL,
         "transformer layers; the model flags are needed for training, and optional where a checkpoint gives the shape "
         "(then those given are checked against it)", _MODEL),
    Flag("--hidden-size", kind.integer(1), ("model.hidden_size",), MODEL, "width of the residual stream", _MODEL),
    Flag("--ffn-hidden-size", kind.integer(1), ("model.ffn_hidden_size",), MODEL,
         "width of one of gate and up", _MODEL, default="4 x --hidden-size"),
    Flag("--num-attention-heads", kind.integer(1), ("model.num_attention_heads",), MODEL, "query heads", _MODEL),
    Flag("--group-query-attention", kind.switch(), ("cli.group_query_attention",), MODEL,
         "key/value heads are shared as --num-query-groups says; without it every query head has its own", _MODEL,
         default="off"),
    Flag("--num-query-groups", kind.integer(1), ("model.num_query_groups",), MODEL,
         "key/value heads (with --group-query-attention)", _MODEL, default="1"),
    Flag("--kv-channels", kind.integer(1), ("model.kv_channels",), MODEL, "dimensions of a head", _MODEL,
         default="--hidden-size / --num-attention-heads"),
    Flag("--max-position-embeddings", kind.integer(1), ("model.max_position_embeddings",), MODEL,
         "longest sequence the model may see; at least --seq-length; overrides the checkpoint's", _MODEL,
         default="the checkpoint's, else --seq-length"),
    Flag("--padded-vocab-size", kind.integer(1), ("model.padded_vocab_size",), MODEL,
         "rows of the embedding and output layer, padding included", _MODEL,
         default="--vocab-size or the tokenizer's size, padded"),
    Flag("--vocab-size", kind.integer(1), ("cli.vocab_size",), RUN,
         "rows before padding, used when --padded-vocab-size is not given", _MODEL, default="the tokenizer's size"),
    Flag("--make-vocab-size-divisible-by", kind.integer(1), ("cli.make_vocab_size_divisible_by",), RUN,
         "pad the vocabulary to a multiple of this x --tensor-model-parallel-size, when --padded-vocab-size is not "
         "given", _MODEL, default="128"),
    Flag("--norm-epsilon", kind.number(above=0.0), ("model.norm_epsilon",), MODEL,
         "added to the mean square in RMSNorm (1.5625e-07 in glm-4-9b, 1e-05 in GLM-4-0414)", _MODEL,
         default="the checkpoint's, else 1.5625e-07"),
    Flag("--rotary-base", kind.number(above=0.0), ("model.rotary_base",), MODEL,
         "base of the rotary embedding; overrides the checkpoint's and is stored in the next one", _MODEL,
         default="the checkpoint's, else 10000"),
    Flag("--rotary-percent", kind.number(above=0.0, high=1.0), ("model.rotary_percent",), MODEL,
         "part of a head that is rotated", _MODEL, default="the checkpoint's, else 0.5"),
    Flag("--add-qkv-bias", kind.switch(), ("model.add_qkv_bias",), MODEL,
         "bias on the query/key/value projection; absent means none", _MODEL, default="off"),
    Flag("--post-norm", kind.switch(), ("model.post_norm",), MODEL,
         "GLM-4-0414's two more norms, after attention and after the MLP", _MODEL, default="off"),
    Flag("--qk-layernorm", kind.switch(), ("model.qk_layernorm",), MODEL,
         "norms of every query and key head before rotation (Qwen3)", _MODEL, default="off"),
    Flag("--untie-embeddings-and-output-weights", kind.switch(), ("model.untie_embeddings_and_output_weights",), MODEL,
         "the output layer has its own weight; absent means that it shares the embedding's", _MODEL, default="off"),
    Flag("--init-method-std", kind.number(above=0.0), ("model.init_method_std",), RUN,
         "standard deviation of random initial weights; with a checkpoint it is only stored in the next one", _MODEL,
         default="the checkpoint's, else 0.02"),
    _fixed("--disable-bias-linear", kind.always(), "linear layers have no bias (but see --add-qkv-bias)"),
    _fixed("--swiglu", kind.always(), "the MLP's activation is SwiGLU"),
    _fixed("--normalization", kind.choice("RMSNorm"), "the norm layers are RMSNorm"),
    _fixed("--position-embedding-type", kind.choice("rope"), "positions enter by rotary embedding"),
    _fixed("--use-glm-rope", kind.always(), "rotary embedding turns interleaved pairs, as GLM does"),
    _fixed("--attention-softmax-in-fp32", kind.always(), "softmax is computed in fp32"),
    _fixed("--attention-dropout", kind.zero(), "dropout on attention weights: only 0.0 (Megatron's default is 0.1)"),
    _fixed("--hidden-dropout", kind.zero(), "dropout on hidden states: only 0.0 (Megatron's default is 0.1)"),
)

PARALLEL_FLAGS = (
    Flag("--tensor-model-parallel-size", kind.integer(1), ("parallel.tensor_model_parallel_size",), RUN,
         "ranks that share each layer's matrices", _PARALLEL),
    Flag("--pipeline-model-parallel-size", kind.integer(1), ("parallel.pipeline_model_parallel_size",), RUN,
         "stages the layers are split into", _PARALLEL),
    Flag("--context-parallel-size", kind.integer(1), ("parallel.context_parallel_size",), TRAIN,
         "ranks that share each sequence", _PARALLEL),
    Flag("--context-parallel-algo", kind.choice(RING, ULYSSES),
         ("parallel.context_parallel_algo",), TRAIN, "ring attention, or Ulysses (all-to-all over heads)", _PARALLEL),
    Flag("--sequence-parallel", kind.switch(), ("parallel.sequence_parallel",), RUN,
         "between tensor-parallel regions each rank holds a part of the sequence; ignored at "
         "--tensor-model-parallel-size 1", _PARALLEL),
    Flag("--num-layers-per-virtual-pipeline-stage", kind.integer(1),
         ("parallel.num_layers_per_virtual_pipeline_stage",), TRAIN,
         "interleaved schedule with chunks of so many layers", _PARALLEL),
    Flag("--num-layer-list", kind.integers(), ("parallel.num_layer_list", "convert.num_layer_list"), MODEL,
         "layers of each pipeline stage, such as 22,18; they add up to --num-layers", _PARALLEL,
         default="equal stages"),
    Flag("--noop-layers", kind.integers(), ("parallel.noop_layers", "convert.noop_layers"), MODEL,
         "layers (counted from 0) that keep their place in the split but do nothing, such as 6,7,15", _PARALLEL),
    Flag("--use-distributed-optimizer", kind.switch(), ("parallel.use_distributed_optimizer",), TRAIN,
         "optimizer state is sharded over the data-parallel ranks", _PARALLEL),
    Flag("--overlap-grad-reduce", kind.switch(), ("parallel.overlap_grad_reduce",), TRAIN,
         "gradients are reduced while the backward pass runs", _PARALLEL),
    Flag("--overlap-param-gather", kind.switch(), ("parallel.overlap_param_gather",), TRAIN,
         "updated parameters are gathered while the next forward pass runs; needs --use-distributed-optimizer and "
         "--overlap-grad-reduce", _PARALLEL),
    Flag("--recompute-granularity", kind.choice("full", "selective"), ("parallel.recompute_granularity",), TRAIN,
         "save memory by recomputing whole layers, or attention only, in the backward pass", _PARALLEL),
    Flag("--recompute-method", kind.choice("block", "uniform"), ("parallel.recompute_method",), TRAIN,
         "with full: recompute the first --recompute-num-layers of a stage, or all in groups of so many", _PARALLEL),
    Flag("--recompute-num-layers", kind.integer(1), ("parallel.recompute_num_layers",), TRAIN,
         "layers, as --recompute-method says", _PARALLEL),
    Flag("--no-shared-storage", kind.switch(), ("parallel.no_shared_storage",), TRAIN,
         "nodes do not share a file system: each builds its own data caches", _PARALLEL),
)
