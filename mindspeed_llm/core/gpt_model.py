"""GLM4: embedding, layers, final norm, output layer; or the part of it that one pipeline stage holds."""

import math

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ULYSSES, ParallelConfig
from mindspeed_llm.core.context_parallel.partition import local_part, local_positions
from mindspeed_llm.core.context_parallel.ring import ring_attention
from mindspeed_llm.core.context_parallel.ulysses import ulysses_attention
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.sharding import TensorSpec, chunk_specs
from mindspeed_llm.core.tensor_parallel.cross_entropy import output_cross_entropy
from mindspeed_llm.core.tensor_parallel.layers import column_parallel_linear, vocab_parallel_embedding
from mindspeed_llm.core.transformer.layer import ForwardContext, TransformerLayer
from mindspeed_llm.core.transformer.rotary_embedding import RotaryEmbedding
from mindspeed_llm.runtime import autograd

EMBEDDING, FINAL_NORM = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"
OUTPUT = "output_layer.weight"


class GPTModel:
    """One chunk of the model: `layers` (global numbers), with the embedding if `first` and the output layer if `last`.

    With context parallelism the inputs, labels and activations of a rank are its part of the sequence: see
    `local_part`. `parameters` are those of another chunk of the same place, to be shared with it.
    """

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, state: ParallelState, dtype: mstype.Type,
                 virtual_stage: int = 0, *, trainable: bool = True, multiple_of: int = 1,
                 parameters: ParameterSet | None = None) -> None:
        chunks = parallel.stage_layers(model)[state.pp.rank]
        self.model, self.parallel, self.state = model, parallel, state
        self.first = state.is_first_stage and virtual_stage == 0
        self.last = state.is_last_stage and virtual_stage == len(chunks) - 1
        specs = chunk_specs(model, chunks[virtual_stage], first=self.first, last=self.last)
        self.parameters = parameters or ParameterSet(specs, state.tp.rank, state.tp.size, dtype, trainable=trainable,
                                                     multiple_of=multiple_of, late=self._late_gradients(specs))
        self.layers = [TransformerLayer(model, state, self.parameters, number) for number in chunks[virtual_stage]]
        self.rotary = RotaryEmbedding(model)

    def training_context(self, seq_length: int, cu_seqlens: Tensor | None = None) -> ForwardContext:
        """Context of a training pass over a whole sequence of `seq_length`, packed if `cu_seqlens` is given.

        Both describe the whole sequence also where context parallelism cuts it.
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
            return ForwardContext(cos, sin, lambda _, q, k, v: autograd.recompute(core_attention, q, k, v))
        return ForwardContext(cos, sin, lambda _, q, k, v: core_attention(q, k, v))

    def local_part(self, array: np.ndarray) -> np.ndarray:
        """This context-parallel rank's rows of a whole sequence's `(S, ...)`: ids, labels, loss weights."""
        return local_part(array, self.state.cp, self.parallel.context_parallel_algo)

    def hidden_states(self, inputs: Tensor, context: ForwardContext) -> Tensor:
        """int32 ids `(S, B)` on the first stage, else the previous stage's `(S, B, H)` -> output of the last layer
        here.
        """
        tp, sequence_parallel = self.state.tp, self.state.sequence_parallel
        hidden = (vocab_parallel_embedding(inputs, self.parameters[EMBEDDING], tp, sequence_parallel)
                  if self.first else inputs)
        for layers, recomputed in self._layer_blocks():
            def block(h: Tensor, layers=layers) -> Tensor:
                for layer in layers:
                    self.parameters.settle(layer.prefix)
                    h = layer(h, context)
                return h
            hidden = autograd.recompute(block, hidden) if recomputed else block(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Output of the last layer -> this rank's vocabulary shard of the logits `(S, B, V/T)`."""
        return column_parallel_linear(*self._output_operands(hidden), None, self.state.tp, self.state.sequence_parallel)

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of every token, fp32 `(S, B)`, for int32 `labels (S, B)`."""
        return output_cross_entropy(*self._output_operands(hidden), labels, self.state.tp, self.state.sequence_parallel)

    def _output_operands(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The output layer's input and weight."""
        normed = kernels.rms_norm(hidden, self.parameters[FINAL_NORM], self.model.norm_epsilon)
        return normed, self.parameters[OUTPUT if self.model.untie_embeddings_and_output_weights else EMBEDDING]

    def _layer_blocks(self) -> list[tuple[list[TransformerLayer], bool]]:
        """The layers in the units in which activations are kept: (layers, whether backward computes them again).

        uniform: all layers, in units of `recompute_num_layers`, of which only the input is kept. block: the first
        `recompute_num_layers` of the chunk, one by one.
        """
        count = self.parallel.recompute_num_layers or 0
        if self.parallel.recompute_granularity != "full":
            return [(self.layers, False)]
        if self.parallel.recompute_method == "block":
            return [([layer], True) for layer in self.layers[:count]] + [(self.layers[count:], False)]
        return [(self.layers[start:start + count], True) for start in range(0, len(self.layers), count)]

    def _late_gradients(self, specs: list[TensorSpec]) -> set[str]:
        """Parameters whose gradients are complete only when backward has ended.

        Uncut ones may get theirs from the tape instead of a fused accumulation; a tied embedding waits for the other
        stage.
        """
        tied = not self.model.untie_embeddings_and_output_weights
        return {spec.name for spec in specs if spec.axis is None or (tied and spec.name == EMBEDDING)}


def hidden_shape(model: ModelConfig, state: ParallelState, seq_length: int, batch: int) -> tuple[int, int, int]:
    """Shape of the activations that travel between stages, for `seq_length` positions on this context-parallel rank."""
    return (seq_length // state.tp.size if state.sequence_parallel else seq_length, batch, model.hidden_size)
