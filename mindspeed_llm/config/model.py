"""The shape of a GLM4 model, in Megatron's names."""

from dataclasses import asdict, dataclass, fields

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.option import MODEL, REQUIRED, RUN, Flag, flag_name, option

VOCAB_DIVISOR = 128


@dataclass(frozen=True)
class LocalHeads:
    """Attention heads of a tensor-parallel rank: `groups` key/value heads, `per_group` query heads for each of them, and
    how many ranks hold the same keys and values (`replicas`, 1 unless there are more ranks than query groups).
    """

    groups: int
    per_group: int
    replicas: int

    @property
    def queries(self) -> int:
        """Query heads of a rank."""
        return self.groups * self.per_group


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the tensors and the arithmetic of the model. Defaults are GLM4's constants.

    `ffn_hidden_size` is the width of one of gate and up (linear_fc1 has twice as many rows).
    `rotary_percent` is the rotated part of a head (GLM4: the first half). `post_norm` adds GLM-4-0414's two norms
    after attention and MLP (`post_self_attn_layernorm`, `post_mlp_layernorm`), `qk_layernorm` norms of every query and key
    head before they are rotated (Qwen3).
    """

    num_layers: int = option(REQUIRED, Flag(
        kind.integer(1), MODEL, "transformer layers; the model flags are needed for training, and optional where a "
        "checkpoint gives the shape (then those given are checked against it)"))
    hidden_size: int = option(REQUIRED, Flag(kind.integer(1), MODEL, "width of the residual stream"))
    ffn_hidden_size: int = option(REQUIRED, Flag(
        kind.integer(1), MODEL, "width of one of gate and up", default="4 x --hidden-size"))
    num_attention_heads: int = option(REQUIRED, Flag(kind.integer(1), MODEL, "query heads"))
    num_query_groups: int = option(
        REQUIRED,
        Flag(
            kind.switch(), MODEL, "key/value heads are shared as --num-query-groups says; without it every query "
            "head has its own", name="--group-query-attention", fields=("cli.group_query_attention",), default="off"),
        Flag(kind.integer(1), MODEL, "key/value heads (with --group-query-attention)", default="1"))
    kv_channels: int = option(REQUIRED, Flag(
        kind.integer(1), MODEL, "dimensions of a head", default="--hidden-size / --num-attention-heads"))
    padded_vocab_size: int = option(
        REQUIRED,
        Flag(
            kind.integer(1), MODEL, "rows of the embedding and output layer, padding included",
            default="--vocab-size or the tokenizer's size, padded"),
        Flag(
            kind.integer(1), RUN, "rows before padding, used when --padded-vocab-size is not given",
            name="--vocab-size", fields=("cli.vocab_size",), default="the tokenizer's size"),
        Flag(
            kind.integer(1), RUN, "pad the vocabulary to a multiple of this x --tensor-model-parallel-size, when "
            "--padded-vocab-size is not given",
            name="--make-vocab-size-divisible-by", fields=("cli.make_vocab_size_divisible_by",),
            default=str(VOCAB_DIVISOR)))
    max_position_embeddings: int = option(8192, Flag(
        kind.integer(1), MODEL, "longest sequence the model may see; at least --seq-length; overrides the "
        "checkpoint's", default="the checkpoint's, else --seq-length"))
    norm_epsilon: float = option(1.5625e-07, Flag(
        kind.number(above=0.0), MODEL, "added to the mean square in RMSNorm (1.5625e-07 in glm-4-9b, 1e-05 in "
        "GLM-4-0414)", default="the checkpoint's, else 1.5625e-07"))
    rotary_base: float = option(10000.0, Flag(
        kind.number(above=0.0), MODEL, "base of the rotary embedding; overrides the checkpoint's and is stored in "
        "the next one", default="the checkpoint's, else 10000"))
    rotary_percent: float = option(0.5, Flag(
        kind.number(above=0.0, high=1.0), MODEL, "part of a head that is rotated",
        default="the checkpoint's, else 0.5"))
    add_qkv_bias: bool = option(True, Flag(
        kind.switch(), MODEL, "bias on the query/key/value projection; absent means none", default="off"))
    post_norm: bool = option(False, Flag(
        kind.switch(), MODEL, "GLM-4-0414's two more norms, after attention and after the MLP", default="off"))
    qk_layernorm: bool = option(False, Flag(
        kind.switch(), MODEL, "norms of every query and key head before rotation (Qwen3)", default="off"))
    untie_embeddings_and_output_weights: bool = option(True, Flag(
        kind.switch(), MODEL, "the output layer has its own weight; absent means that it shares the embedding's",
        default="off"))
    init_method_std: float = option(0.02, Flag(
        kind.number(above=0.0), RUN, "standard deviation of random initial weights; with a checkpoint it is only "
        "stored in the next one", default="the checkpoint's, else 0.02"))

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type is int and (not isinstance(value, int) or value < 1):
                raise UserError(f"{flag_name(entry.name)} ({value}) must be a positive whole number")
        if self.num_attention_heads % self.num_query_groups:
            raise UserError(f"--num-attention-heads ({self.num_attention_heads}) must be divisible by "
                            f"--num-query-groups ({self.num_query_groups})")
        if not 0.0 < self.rotary_percent <= 1.0 or self.rotary_dim % 2:
            raise UserError(f"--rotary-percent ({self.rotary_percent}) of --kv-channels ({self.kv_channels}) must be "
                            "an even number of dimensions: use 0.5 or 1.0")

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that RoPE rotates, in interleaved pairs."""
        return int(self.kv_channels * self.rotary_percent)

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_query_groups

    def local_heads(self, tp_size: int) -> LocalHeads:
        """The heads that each of `tp_size` tensor-parallel ranks has: whole query groups, or a part of one."""
        groups = max(1, self.num_query_groups // tp_size)
        return LocalHeads(groups, self.num_attention_heads // tp_size // groups, max(1, tp_size // self.num_query_groups))

    def to_dict(self) -> dict:
        """JSON-ready dictionary, stored in a checkpoint's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Inverse of `to_dict`. Unknown keys are an error: they come from a newer writer and could change the model."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"model config has unknown entries {unknown}: written by a newer mindspeed_llm?")
        return cls(**values)


# A flag may override these fields of a checkpoint (one line says so, and the next checkpoint stores it), and may not
# contradict the others.
OVERRIDABLE_FIELDS = ("max_position_embeddings", "rotary_base", "init_method_std")
SHAPE_FIELDS = tuple(field.name for field in fields(ModelConfig) if field.name not in OVERRIDABLE_FIELDS)
