"""Flags that set no field: what has one choice in GLM4, and what is accepted without effect."""

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.option import CONVERT, ENTRYPOINTS, MODEL, Flag

_KERNELS = "kernels are chosen for the device target"


def _fixed(name: str, value_kind: kind.Kind, text: str, used_by: tuple[str, ...] = MODEL, group: str = "model") -> Flag:
    return Flag(value_kind, used_by, text, name=name, default="always so", group=group)


def _ignored(name: str, why: str, value_kind: kind.Kind = kind.switch()) -> Flag:
    return Flag(value_kind, ENTRYPOINTS, why, name=name, default="", group="accepted without effect", why_ignored=why)


FIXED_FLAGS = (
    _fixed("--disable-bias-linear", kind.always(), "linear layers have no bias (but see --add-qkv-bias)"),
    _fixed("--swiglu", kind.always(), "the MLP's activation is SwiGLU"),
    _fixed("--normalization", kind.choice("RMSNorm"), "the norm layers are RMSNorm"),
    _fixed("--position-embedding-type", kind.choice("rope"), "positions enter by rotary embedding"),
    _fixed("--use-glm-rope", kind.always(), "rotary embedding turns interleaved pairs, as GLM does"),
    _fixed("--attention-softmax-in-fp32", kind.always(), "softmax is computed in fp32"),
    _fixed("--attention-dropout", kind.zero(), "dropout on attention weights: only 0.0 (Megatron's default is 0.1)"),
    _fixed("--hidden-dropout", kind.zero(), "dropout on hidden states: only 0.0 (Megatron's default is 0.1)"),
    _fixed("--model-type", kind.choice("GPT"), "a decoder-only model", CONVERT, "conversion"),
    _ignored("--use-mcore-models", "there is one model"),
    _ignored("--use-flash-attn", _KERNELS),
    _ignored("--use-fused-rmsnorm", _KERNELS),
    _ignored("--use-fused-swiglu", _KERNELS),
    _ignored("--use-fused-rotary-pos-emb", _KERNELS),
    _ignored("--no-rope-fusion", _KERNELS),
    _ignored("--no-bias-swiglu-fusion", _KERNELS),
    _ignored("--no-masked-softmax-fusion", _KERNELS),
    _ignored("--no-gradient-accumulation-fusion", _KERNELS),
    _ignored("--no-create-attention-mask-in-dataloader", "a causal mask is never built"),
    _ignored("--variable-seq-lengths", "every stage knows how long a micro-batch is: they may always differ"),
    _ignored("--lora-fusion", "an adapter is always computed within its layer's operation, between the same communication"),
    _ignored("--use-cp-send-recv-overlap", "ring attention always sends while it computes"),
    _ignored("--enable-thinking", "no prompt template here has a thinking part"),
    _ignored("--streaming", "preprocessing always reads a few rows at a time"),
    _ignored("--reset-position-ids", "rotary embedding knows distances only: in documents that --reset-attention-mask "
             "keeps apart they are the same from any first position; without that flag positions run on"),
    _ignored("--neat-pack", "--pack always numbers the conversations of a row, and they never see each other"),
    _ignored("--tokenizer-not-use-fast", "the ids are the same either way: a slow tokenizer's own code is never run"),
    _ignored("--distributed-backend", "collectives follow the device target", kind.choice("nccl", "hccl")),
    _ignored("--ckpt-format", "there is one checkpoint format", kind.choice("torch")),
    _ignored("--ai-framework", "there is one framework", kind.choice("mindspore")),
)
