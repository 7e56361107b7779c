"""One transformer layer of GLM4: attention and MLP with their norms and residuals.

Shapes: S sequence (S/T between parallel layers under sequence parallelism), B batch, H hidden, N heads, G query groups,
D head width; N and G are this rank's. Activations are rows, `(S * B, ...)`, except in attention: products want two axes,
and turning them into two is a call of its own for every operand.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.tensor_parallel.layers import column_parallel_linear, row_parallel_linear


@dataclass(frozen=True)
class ForwardContext:
    """What a forward pass shares among its layers.

    cos, sin: fp32 `(S, rotary_dim / 2)` of the positions of this rank's part of the sequence.
    core_attention: `(layer number, q (S, B, N, D), k (S, B, G, D), v (S, B, G, D)) -> (S, B, N, D)`; training, context
    parallelism and the KV cache differ here and nowhere else in the model.
    """

    cos: Tensor
    sin: Tensor
    core_attention: Callable[[int, Tensor, Tensor, Tensor], Tensor]


class TransformerLayer:
    """Global layer `number` over rows `(S * B, H)`; its tensors come from `parameters`."""

    def __init__(self, model: ModelConfig, state: ParallelState, parameters: ParameterSet, number: int) -> None:
        self.model, self.state, self.number = model, state, number
        self.groups = max(1, model.num_query_groups // state.tp.size)
        self.heads_per_group = model.num_attention_heads // state.tp.size // self.groups
        self.prefix = prefix = f"decoder.layers.{number}."
        self.input_norm = parameters[prefix + "input_layernorm.weight"]
        self.qkv_weight = parameters[prefix + "self_attention.linear_qkv.weight"]
        self.qkv_bias = parameters.get(prefix + "self_attention.linear_qkv.bias")
        self.proj_weight = parameters[prefix + "self_attention.linear_proj.weight"]
        self.post_attention_norm = parameters.get(prefix + "post_self_attn_layernorm.weight")
        self.mlp_norm = parameters[prefix + "pre_mlp_layernorm.weight"]
        self.fc1_weight = parameters[prefix + "mlp.linear_fc1.weight"]
        self.fc2_weight = parameters[prefix + "mlp.linear_fc2.weight"]
        self.post_mlp_norm = parameters.get(prefix + "post_mlp_layernorm.weight")

    def __call__(self, hidden: Tensor, branch: Tensor | None, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """The layer's input is `hidden + branch` (`hidden` without one), its output the sum of the two that it returns: the
        next layer adds them together with its norm. Pre-norm; GLM-4-0414 also norms what each branch adds.
        """
        epsilon = self.model.norm_epsilon
        hidden, normed = kernels.add_rms_norm(hidden, branch, self.input_norm, epsilon)
        attended = self._post_norm(self._attention(normed, context), self.post_attention_norm)
        hidden, normed = kernels.add_rms_norm(hidden, attended, self.mlp_norm, epsilon)
        return hidden, self._post_norm(self._mlp(normed), self.post_mlp_norm)

    def _post_norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else kernels.rms_norm(x, weight, self.model.norm_epsilon)

    def _attention(self, x: Tensor, context: ForwardContext) -> Tensor:
        tp, sequence_parallel = self.state.tp, self.state.sequence_parallel
        qkv = column_parallel_linear(x, self.qkv_weight, self.qkv_bias, tp, sequence_parallel)
        q_SBND, k_SBGD, v_SBGD = kernels.qkv_rope(qkv, context.cos, context.sin, self.groups, self.heads_per_group,
                                                  self.model.kv_channels)
        out_SBND = context.core_attention(self.number, q_SBND, k_SBGD, v_SBGD)
        return row_parallel_linear(out_SBND.reshape(-1, self.proj_weight.shape[1]), self.proj_weight, tp,
                                   sequence_parallel)

    def _mlp(self, x: Tensor) -> Tensor:
        tp, sequence_parallel = self.state.tp, self.state.sequence_parallel
        gate_up = column_parallel_linear(x, self.fc1_weight, None, tp, sequence_parallel)
        return row_parallel_linear(kernels.swiglu(gate_up), self.fc2_weight, tp, sequence_parallel)
