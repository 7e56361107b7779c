"""One transformer layer of GLM4: attention and MLP with their norms and residuals.

Shapes: S sequence (S/T between parallel layers under sequence parallelism), B batch, H hidden, N heads, G query groups,
D head width; N and G are this rank's. Activations are rows, `(S * B, ...)`, except in attention: products want two axes,
and turning them into two is a call of its own for every operand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import Shared, gate_up, query_groups
from mindspeed_llm.core.transformer.lora import ADAPTERS_ON, AdapterUse
from mindspeed_llm.core.transformer.parts import (
    FP32_BYTES,
    ActivationSizes,
    ColumnParallelLinear,
    Norm,
    Part,
    RowParallelLinear,
)

if TYPE_CHECKING:
    from mindspore import Tensor


@dataclass(frozen=True)
class ForwardContext:
    """What a forward pass shares among its layers.

    cos, sin: fp32 `(S, rotary_dim / 2)` of the positions of this rank's part of the sequence.
    core_attention: `(layer number, q (S, B, N, D), k (S, B, G, D), v (S, B, G, D)) -> (S, B, N, D)`; training, context
    parallelism and the KV cache differ here and nowhere else in the model.
    adapters: how low-rank adapters take part, where the model has any.
    """

    cos: Tensor
    sin: Tensor
    core_attention: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    adapters: AdapterUse = ADAPTERS_ON


class Attention(Part):
    """Self-attention of global layer `number`, with rotary positions."""

    def __init__(self, model: ModelConfig, number: int, name: str) -> None:
        self.model, self.number = model, number
        width = model.num_attention_heads * model.kv_channels
        self.linear_qkv = ColumnParallelLinear(
            f"{name}.linear_qkv", number, model.hidden_size, width + 2 * model.num_query_groups * model.kv_channels,
            query_groups(model), bias=model.add_qkv_bias, shared=Shared("kv_replica", rows=2 * model.kv_channels))
        # Every rank has the norms' weights and sees its own heads only.
        self.q_layernorm, self.k_layernorm = (
            Norm(f"{name}.{letter}_layernorm", number, model.kv_channels, model.norm_epsilon, Shared("tp"))
            if model.qk_layernorm else None for letter in "qk")
        self.linear_proj = RowParallelLinear(f"{name}.linear_proj", number, width, model.hidden_size)

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Rows `x (S * B, H)` -> rows; S cut under sequence parallelism."""
        heads, dim = self.model.local_heads(self.state.tp.size), self.model.kv_channels
        qkv = self.linear_qkv(x, context.adapters)
        if self.q_layernorm is None:
            q_SBND, k_SBGD, v_SBGD = kernels.qkv_rope(qkv, context.cos, context.sin, heads.groups, heads.per_group, dim)
        else:
            q_SBND, k_SBGD, v_SBGD = kernels.split_qkv(
                qkv.reshape(context.cos.shape[0], -1, qkv.shape[-1]), heads.groups, heads.per_group, dim)
            q_SBND = kernels.rope(self.q_layernorm(q_SBND), context.cos, context.sin)
            k_SBGD = kernels.rope(self.k_layernorm(k_SBGD), context.cos, context.sin)
        out_SBND = context.core_attention(self.number, q_SBND, k_SBGD, v_SBGD)
        return self.linear_proj(out_SBND.reshape(-1, heads.queries * dim), context.adapters)

    def kept(self, sizes: ActivationSizes) -> int:
        """The inputs of the products, the second of which is attention's output; q, k, v and row statistics; q and k as
        they were before their norms.
        """
        heads, head = self.model.local_heads(sizes.tp), self.model.kv_channels * sizes.element
        kept = (heads.queries + 2 * heads.groups) * head + heads.queries * sizes.attention_statistics * FP32_BYTES
        if self.q_layernorm is not None:
            kept += (heads.queries + heads.groups) * (head + FP32_BYTES)
        return self.linear_qkv.kept(sizes) + self.linear_proj.kept(sizes) + sizes.tokens * kept


class MLP(Part):
    """SwiGLU between two products."""

    def __init__(self, model: ModelConfig, number: int, name: str) -> None:
        hidden, self.ffn = model.hidden_size, model.ffn_hidden_size
        self.linear_fc1 = ColumnParallelLinear(f"{name}.linear_fc1", number, hidden, 2 * self.ffn, gate_up(self.ffn))
        self.linear_fc2 = RowParallelLinear(f"{name}.linear_fc2", number, self.ffn, hidden)

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Rows `x (S * B, H)` -> rows; S cut under sequence parallelism."""
        return self.linear_fc2(kernels.swiglu(self.linear_fc1(x, context.adapters)), context.adapters)

    def kept(self, sizes: ActivationSizes) -> int:
        """Beside the inputs of the products: gate and up."""
        return super().kept(sizes) + 2 * (sizes.tokens * self.ffn // sizes.tp * sizes.element)


class TransformerLayer(Part):
    """Rows `(S * B, H)` -> rows. Pre-norm; GLM-4-0414 also norms what each branch adds."""

    def __init__(self, model: ModelConfig, number: int) -> None:
        self.prefix = prefix = f"decoder.layers.{number}."

        def norm(name: str) -> Norm:
            return Norm(prefix + name, number, model.hidden_size, model.norm_epsilon)

        self.input_layernorm = norm("input_layernorm")
        self.self_attention = Attention(model, number, prefix + "self_attention")
        self.post_self_attn_layernorm = norm("post_self_attn_layernorm") if model.post_norm else None
        self.pre_mlp_layernorm = norm("pre_mlp_layernorm")
        self.mlp = MLP(model, number, prefix + "mlp")
        self.post_mlp_layernorm = norm("post_mlp_layernorm") if model.post_norm else None

    def __call__(self, hidden: Tensor, branch: Tensor | None, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """The layer's input is `hidden + branch` (`hidden` without one), its output the sum of the two that it returns: the
        next layer adds them together with its norm.
        """
        hidden, normed = self.input_layernorm.add(hidden, branch)
        branch = self.self_attention(normed, context)
        branch = self.post_self_attn_layernorm(branch) if self.post_self_attn_layernorm else branch
        hidden, normed = self.pre_mlp_layernorm.add(hidden, branch)
        branch = self.mlp(normed, context)
        return hidden, self.post_mlp_layernorm(branch) if self.post_mlp_layernorm else branch
