"""GLM4: embedding, layers, final norm, output layer; or the part of it that one pipeline stage holds."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ULYSSES, ParallelConfig
from mindspeed_llm.core.context_parallel.partition import local_part, local_positions
from mindspeed_llm.core.context_parallel.ring import ring_attention
from mindspeed_llm.core.context_parallel.ulysses import ulysses_attention
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import ChunkParts
from mindspeed_llm.core.transformer.layer import ForwardContext, TransformerLayer
from mindspeed_llm.core.transformer.lora import ADAPTERS_ON, AdapterUse
from mindspeed_llm.core.transformer.rotary_embedding import RotaryEmbedding
from mindspeed_llm.runtime import autograd

Choice = Callable[[TensorSpec], bool]
"""Whether a parameter is to be trained."""


class GPTModel:
    """One chunk of the model: `layers` (global numbers), with the embedding if `first` and the output layer if `last`.

    With context parallelism the inputs, labels and activations of a rank are its part of the sequence: see
    `local_part`. `lora`: the model has these adapters. `trainable`: all parameters (of a model with adapters: theirs),
    none (inference), or those that it chooses. `parameters`: those of another chunk of the same place, to be shared with
    it.
    """

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, state: ParallelState, dtype: mstype.Type,
                 virtual_stage: int = 0, *, lora: LoraConfig | None = None, trainable: bool | Choice = True,
                 multiple_of: int = 1, parameters: ParameterSet | None = None) -> None:
        chunks = parallel.stage_layers(model)[state.pp.rank]
        self.model, self.parallel, self.state, self.lora = model, parallel, state, lora
        self.first = state.is_first_stage and virtual_stage == 0
        self.last = state.is_last_stage and virtual_stage == len(chunks) - 1
        self.parts = ChunkParts(model, chunks[virtual_stage], first=self.first, last=self.last, lora=lora)
        specs = [replace(spec, trainable=trainable(spec) if callable(trainable) else trainable and spec.trainable)
                 for spec in self.parts.specs()]
        self.parameters = parameters or ParameterSet(specs, state.tp.rank, state.tp.size, dtype,
                                                     multiple_of=multiple_of)
        self.parts.bind(self.parameters.tensors, state)
        frozen_start = self.first and trainable is not False and not specs[0].trainable
        self._tape_from_embedding = frozen_start and (lora is None or parallel.recompute_granularity == "full")
        self.rotary = RotaryEmbedding(model)

    def training_context(self, seq_length: int, cu_seqlens: Tensor | None = None,
                         adapters: AdapterUse = ADAPTERS_ON) -> ForwardContext:
        """Context of a training pass over a whole sequence of `seq_length`, packed if `cu_seqlens` is given.

        Both describe the whole sequence also where context parallelism cuts it. With ADAPTERS_OFF the pass is one of the
        model without its adapters.
        """
        group, algorithm = self.state.cp, self.parallel.context_parallel_algo
        scale = 1 / math.sqrt(self.model.kv_channels)
        if group.size == 1:
            cos, sin = self.rotary(range(seq_length))
        else:
            cos, sin = self.rotary(local_positions(seq_length, group, algorithm))

        def core_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if group.size == 1:
                return kernels.attention(q, k, v, scale, cu_seqlens)
            attend = ulysses_attention if algorithm == ULYSSES else ring_attention
            return attend(q, k, v, scale, group, cu_seqlens)

        if self.parallel.recompute_granularity == "selective":
            return ForwardContext(cos, sin, lambda _, q, k, v: autograd.recompute(core_attention, q, k, v), adapters)
        return ForwardContext(cos, sin, lambda _, q, k, v: core_attention(q, k, v), adapters)

    def local_part(self, array: np.ndarray) -> np.ndarray:
        """This context-parallel rank's rows of a whole sequence's `(S, ...)`: ids, labels, loss weights."""
        return local_part(array, self.state.cp, self.parallel.context_parallel_algo)

    def hidden_states(self, inputs: Tensor, context: ForwardContext) -> Tensor:
        """int32 ids `(S, B)` on the first stage, else the previous stage's `(S, B, H)` -> output of the last layer
        here.
        """
        hidden = inputs
        if self.first:
            self.parameters.settle(self.parts.embedding.weight.name)
            hidden = self.parts.embedding(inputs)
            # Behind a frozen embedding the tape begins at the first adapter, or here: a recomputed layer is not looked into.
            hidden = autograd.leaf(hidden) if self._tape_from_embedding else hidden
        for layers, recomputed in self._layer_blocks():
            def block(h: Tensor, layers=layers) -> Tensor:
                rows, branch = h.reshape(-1, h.shape[-1]), None
                for layer in layers:
                    self.parameters.settle(layer.prefix)
                    rows, branch = layer(rows, branch, context)
                return (rows if branch is None else kernels.add(rows, branch)).reshape(h.shape)
            hidden = autograd.recompute(block, hidden) if recomputed else block(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Output of the last layer -> this rank's vocabulary shard of the logits `(S, B, V/T)`."""
        return self.parts.output_layer.logits(self._final_norm(hidden))

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of every token, fp32 `(S, B)`, for int32 `labels (S, B)`."""
        return self.parts.output_layer.losses(self._final_norm(hidden), labels)

    def _final_norm(self, hidden: Tensor) -> Tensor:
        self.parameters.settle()
        return self.parts.final_layernorm(hidden)

    def _layer_blocks(self) -> list[tuple[list[TransformerLayer], bool]]:
        """The layers in the units in which activations are kept: (layers, whether backward computes them again).

        uniform: all layers, in units of `recompute_num_layers`, of which only the input is kept. block: the first
        `recompute_num_layers` of the chunk, one by one.
        """
        layers, count = self.parts.layers, self.parallel.recompute_num_layers or 0
        if self.parallel.recompute_granularity != "full":
            return [(layers, False)]
        if self.parallel.recompute_method == "block":
            return [([layer], True) for layer in layers[:count]] + [(layers[count:], False)]
        return [(layers[start:start + count], True) for start in range(0, len(layers), count)]


def hidden_shape(model: ModelConfig, state: ParallelState, seq_length: int, batch: int) -> tuple[int, int, int]:
    """Shape of the activations that travel between stages, for `seq_length` positions on this context-parallel rank."""
    return (seq_length // state.tp.size if state.sequence_parallel else seq_length, batch, model.hidden_size)
