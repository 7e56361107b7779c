"""Low-rank adapters as parts: what `--lora-target-modules` adds to the linear layers of a model, whose own weights freeze.

An adapter of `W x` adds `scale * B (A x)`, with `A (r, inputs)` and `B (outputs, r)` (Hu et al., "LoRA", 2022). It works
within its layer's operation, between the same communication, so that no message is added: of a column-parallel layer
every rank has all of A and B is cut as W's rows are; of a row-parallel layer A is cut as W's columns are and every rank
has all of B. Of the matrix that all have, a rank sees part of the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.core.sharding import Shared, TensorSpec
from mindspeed_llm.core.transformer.parts import (
    ActivationSizes,
    ColumnParallelLinear,
    Part,
    RowParallelLinear,
)

if TYPE_CHECKING:
    from mindspeed_llm.core.tensor_parallel import LowRank


@dataclass(frozen=True)
class AdapterUse:
    """How the adapters take part in a forward pass: not at all unless `enabled`, which leaves the model without them.

    dropout_key: what the dropout of this pass depends on, a text that no other pass of the run has; None: no dropout,
    as in validation and generation. A pass that backward computes again has the same one.
    """

    enabled: bool = True
    dropout_key: str | None = None


ADAPTERS_ON, ADAPTERS_OFF = AdapterUse(), AdapterUse(enabled=False)


class Adapter(Part):
    """The adapter of a linear layer."""

    def __init__(self, layer: ColumnParallelLinear | RowParallelLinear, lora: LoraConfig) -> None:
        self.lora = lora
        base = layer.weight
        outputs, inputs = base.shape
        name, self.by_columns = base.name.removesuffix(".weight"), isinstance(layer, ColumnParallelLinear)
        everywhere = {"partition_dim": None, "shared": Shared("tp")}
        cut_as_base = {"partition_dim": base.partition_dim, "cut": base.cut, "shared": base.shared}
        for_a, for_b = (everywhere, cut_as_base) if self.by_columns else (cut_as_base, everywhere)
        self.lora_A = TensorSpec(f"{name}.lora_A.weight", (lora.r, inputs), base.layer, decay=True, init="fan_in",
                                 adapter=True, **for_a)
        self.lora_B = TensorSpec(f"{name}.lora_B.weight", (outputs, lora.r), base.layer, decay=True, init="zeros",
                                 adapter=True, **for_b)

    def low_rank(self, use: AdapterUse) -> LowRank | None:
        """What the layer's operation needs of the adapter in a pass."""
        if not use.enabled:
            return None
        dropout = None
        if use.dropout_key is not None and self.lora.dropout:
            # Ranks that cut the input's features drop their own ones; those that have the same input drop the same.
            place = "" if self.by_columns else f"/{self.state.tp.rank}"
            dropout = self.functions.Dropout(self.lora.dropout, f"{use.dropout_key}/{self.lora_A.name}{place}")
        return self.functions.LowRank(self.tensor(self.lora_A), self.tensor(self.lora_B), self.lora.scale, dropout)

    def kept(self, sizes: ActivationSizes) -> int:
        """The product with A."""
        return sizes.tokens * self.lora.r * sizes.element


def adapt(part: Part, lora: LoraConfig) -> None:
    """Freeze the tensors of a part and all its parts, and give adapters to the linear layers of the kinds asked for."""
    part.freeze()
    for layer in part.find(ColumnParallelLinear | RowParallelLinear):
        if layer.weight.name.split(".")[-2] in lora.target_modules:
            layer.adapter = Adapter(layer, lora)
