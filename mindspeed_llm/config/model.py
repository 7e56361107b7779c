"""The shape of a GLM4 model, in Megatron's names."""

from dataclasses import asdict, dataclass, fields

from mindspeed_llm.config.errors import UserError


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

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    padded_vocab_size: int
    max_position_embeddings: int = 8192
    norm_epsilon: float = 1.5625e-07
    rotary_base: float = 10000.0
    rotary_percent: float = 0.5
    add_qkv_bias: bool = True
    post_norm: bool = False
    qk_layernorm: bool = False
    untie_embeddings_and_output_weights: bool = True
    init_method_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
                     "kv_channels", "padded_vocab_size", "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{flag_name(name)} ({value}) must be a positive whole number")
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


# Every field is one or the other: what a checkpoint fixes and a flag may not contradict, and what a flag may override (one
# line says so, and the next checkpoint stores it).
SHAPE_FIELDS = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
                "kv_channels", "padded_vocab_size", "norm_epsilon", "rotary_percent", "add_qkv_bias", "post_norm", "qk_layernorm",
                "untie_embeddings_and_output_weights")
OVERRIDABLE_FIELDS = ("max_position_embeddings", "rotary_base", "init_method_std")


def flag_name(field: str) -> str:
    """Command-line spelling of a config field: `num_layers` -> `--num-layers`."""
    return "--" + field.replace("_", "-")
