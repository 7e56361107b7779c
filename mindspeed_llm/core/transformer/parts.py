"""The parts that a model is put together from. Each says which tensors it has, what it does with them, and what that
leaves for the backward pass; initialisation, checkpoints, conversion, the optimizer and the planner all ask the parts.

Describing parts does not load the framework, `bind` does: conversion and planning run without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mindspeed_llm import kernels
from mindspeed_llm.core.sharding import LOGITS_ROWS, Cut, Shared, TensorSpec, even

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mindspore import Tensor

    from mindspeed_llm.core.parallel_state import ParallelState
    from mindspeed_llm.core.tensor_parallel import LowRank
    from mindspeed_llm.core.transformer.lora import Adapter, AdapterUse

FP32_BYTES = 4


@dataclass(frozen=True)
class ActivationSizes:
    """What the activations of a micro-batch are made of on one rank.

    tokens: inside tensor-parallel regions; residual_tokens: between them (fewer under sequence parallelism). element:
    bytes of a number. tp: tensor-parallel size. attention_statistics: fp32 numbers that attention keeps for a row of a
    query head, 0 where it is computed again.
    """

    tokens: int
    residual_tokens: int
    element: int
    tp: int
    attention_statistics: int


class Part:
    """Has the tensors and parts that are its attributes (alone or in lists), in the order of the forward pass."""

    def members(self, kind: type) -> list:
        """Attributes of that type."""
        values = [item for value in vars(self).values() for item in (value if isinstance(value, list) else [value])]
        return [value for value in values if isinstance(value, kind)]

    def specs(self) -> list[TensorSpec]:
        """The parameters, in forward order."""
        return [spec for member in self.members(TensorSpec | Part)
                for spec in ([member] if isinstance(member, TensorSpec) else member.specs())]

    def bind(self, tensors: Mapping[str, Tensor], state: ParallelState) -> None:
        """Give the part this rank's tensors, by the names of `specs`, and its groups: from here on it can be called."""
        from mindspeed_llm.core import tensor_parallel
        self.tensors, self.state, self.functions = tensors, state, tensor_parallel
        self.place = state.tp, state.sequence_parallel
        for part in self.members(Part):
            part.bind(tensors, state)

    def tensor(self, spec: TensorSpec | None) -> Tensor | None:
        """This rank's tensor."""
        return None if spec is None else self.tensors[spec.name]

    def freeze(self) -> None:
        """Make every tensor one that is not trained."""
        for name, value in vars(self).items():
            if isinstance(value, TensorSpec):
                setattr(self, name, replace(value, trainable=False))
        for part in self.members(Part):
            part.freeze()

    def find(self, kind: type) -> list:
        """The parts of that type, at any depth."""
        return [found for part in self.members(Part)
                for found in ([part] if isinstance(part, kind) else part.find(kind))]

    def kept(self, sizes: ActivationSizes) -> int:
        """Bytes that a forward pass keeps for its backward pass."""
        return sum(part.kept(sizes) for part in self.members(Part))


class Linear(Part):
    """What the parallel linear layers have in common: `weight (outputs, inputs)` and, where `lora.adapt` gave it one, an
    adapter.
    """

    weight: TensorSpec
    adapter: Adapter | None = None

    def low_rank(self, use: AdapterUse) -> LowRank | None:
        """The adapter's part in a pass."""
        return None if self.adapter is None else self.adapter.low_rank(use)

    @property
    def learns(self) -> bool:
        """Whether the weight or an adapter learns from the input."""
        return self.weight.trainable or self.adapter is not None

    def kept(self, sizes: ActivationSizes) -> int:
        """The input, if anything learns from it, and what the adapter keeps."""
        return self.learns * self.input_bytes(sizes) + super().kept(sizes)


class ColumnParallelLinear(Linear):
    """`(..., inputs) -> (..., outputs / T)`: every tensor-parallel rank has the rows of `weight (outputs, inputs)` and of
    the bias that `cut` gives it. Gathers the sequence first under sequence parallelism.
    """

    def __init__(self, name: str, layer: int | None, inputs: int, outputs: int, cut: Cut, *, bias: bool = False,
                 shared: Shared | None = None) -> None:
        self.weight = TensorSpec(f"{name}.weight", (outputs, inputs), layer, 0, True, "normal", cut, shared)
        self.bias = TensorSpec(f"{name}.bias", (outputs,), layer, 0, False, "zeros", cut, shared) if bias else None

    def __call__(self, x: Tensor, adapters: AdapterUse) -> Tensor:
        """`x (S, ..., K)`, S cut under sequence parallelism."""
        return self.functions.column_parallel_linear(x, self.tensor(self.weight), self.tensor(self.bias), *self.place,
                                                     self.low_rank(adapters))

    def input_bytes(self, sizes: ActivationSizes) -> int:
        """Bytes of the input as it is before it is gathered."""
        return sizes.residual_tokens * self.weight.shape[1] * sizes.element


class RowParallelLinear(Linear):
    """`(..., inputs / T) -> (..., outputs)`: every rank has equal columns of `weight (outputs, inputs)`; the result is the
    sum over ranks (scattered along the sequence under sequence parallelism). No bias.
    """

    def __init__(self, name: str, layer: int | None, inputs: int, outputs: int) -> None:
        self.weight = TensorSpec(f"{name}.weight", (outputs, inputs), layer, 1, True, "scaled_normal", even(inputs))

    def __call__(self, x: Tensor, adapters: AdapterUse) -> Tensor:
        """`x (S, ..., K / T)`."""
        return self.functions.row_parallel_linear(x, self.tensor(self.weight), *self.place, self.low_rank(adapters))

    def input_bytes(self, sizes: ActivationSizes) -> int:
        """Bytes of the input."""
        return sizes.tokens * self.weight.shape[1] // sizes.tp * sizes.element


class Norm(Part):
    """RMSNorm over `width`. Every rank has the weight and, by default, sees its gradient of a part of the sequence under
    sequence parallelism, the whole one otherwise.
    """

    def __init__(self, name: str, layer: int | None, width: int, epsilon: float,
                 shared: Shared = Shared("tp", by_sequence=True)) -> None:
        self.weight = TensorSpec(f"{name}.weight", (width,), layer, None, False, "ones", None, shared)
        self.epsilon = epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """`x (..., width)`."""
        return kernels.rms_norm(x, self.tensor(self.weight), self.epsilon)

    def add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + branch` (`x` without one), with which the residual stream goes on, and its norm."""
        return kernels.add_rms_norm(x, branch, self.tensor(self.weight), self.epsilon)

    def kept(self, sizes: ActivationSizes) -> int:
        """The input, and a number for every row of it."""
        return sizes.residual_tokens * (self.weight.shape[0] * sizes.element + FP32_BYTES)


def embedding_spec(vocab: int, width: int, tied: bool) -> TensorSpec:
    """The word embedding, cut over the vocabulary; if tied, the last stage has it too, as its output layer."""
    return TensorSpec("embedding.word_embeddings.weight", (vocab, width), None, 0, True, "normal", even(vocab),
                      Shared("embedding") if tied else None)


class Embedding(Part):
    """Word embedding, cut over the vocabulary."""

    def __init__(self, weight: TensorSpec) -> None:
        self.weight = weight

    def __call__(self, ids: Tensor) -> Tensor:
        """int32 `ids (S, B)` -> `(S, B, H)`, S cut under sequence parallelism."""
        return self.functions.vocab_parallel_embedding(ids, self.tensor(self.weight), *self.place)


class OutputLayer(Part):
    """Logits, or the loss without them; cut over the vocabulary. `tied`: the embedding's spec, to use its weight."""

    def __init__(self, vocab: int, width: int, tied: TensorSpec | None) -> None:
        self.weight = tied or TensorSpec("output_layer.weight", (vocab, width), None, 0, True, "normal", even(vocab))

    def logits(self, x: Tensor) -> Tensor:
        """`x (S, B, H)`, S cut under sequence parallelism -> this rank's shard of the logits, `(S, B, V / T)`."""
        return self.functions.column_parallel_linear(x, self.tensor(self.weight), None, *self.place)

    def losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of every token, fp32 `(S, B)`, for int32 `labels (S, B)`."""
        return self.functions.output_cross_entropy(x, self.tensor(self.weight), labels, *self.place)

    def kept(self, sizes: ActivationSizes) -> int:
        """The input, two numbers a token, and the logits if they are of a single chunk."""
        vocab, width = self.weight.shape
        logits = sizes.tokens * vocab // sizes.tp if sizes.tokens <= LOGITS_ROWS else 0
        return (sizes.residual_tokens * width + logits) * sizes.element + 2 * sizes.tokens * FP32_BYTES
