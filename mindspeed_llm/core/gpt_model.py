"""GLM4: embedding, layers, final norm, output layer; or the part of it that one pipeline stage holds."""

import math

from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.sharding import chunk_specs
from mindspeed_llm.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from mindspeed_llm.core.tensor_parallel.layers import column_parallel_linear, vocab_parallel_embedding
from mindspeed_llm.core.transformer.layer import ForwardContext, TransformerLayer
from mindspeed_llm.core.transformer.rotary_embedding import RotaryEmbedding
from mindspeed_llm.runtime import autograd

EMBEDDING, FINAL_NORM, OUTPUT = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"


class GPTModel:
    """One chunk of the model: `layers` (global numbers), with the embedding if `first` and the output layer if `last`."""

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, state: ParallelState, dtype: mstype.Type,
                 virtual_stage: int = 0, *, trainable: bool = True, multiple_of: int = 1) -> None:
        chunks = parallel.stage_layers(model)[state.pp.rank]
        self.model, self.parallel, self.state = model, parallel, state
        self.first = state.is_first_stage and virtual_stage == 0
        self.last = state.is_last_stage and virtual_stage == len(chunks) - 1
        specs = chunk_specs(model, chunks[virtual_stage], first=self.first, last=self.last)
        self.parameters = ParameterSet(specs, state.tp.rank, state.tp.size, dtype, trainable=trainable,
                                       multiple_of=multiple_of)
        self.layers = [TransformerLayer(model, state, self.parameters, number) for number in chunks[virtual_stage]]
        self.rotary = RotaryEmbedding(model)

    def training_context(self, seq_length: int, cu_seqlens: Tensor | None = None) -> ForwardContext:
        """Context of a training pass over a whole sequence of `seq_length`, packed if `cu_seqlens` is given."""
        cos, sin = self.rotary(range(seq_length))
        scale = 1 / math.sqrt(self.model.kv_channels)
        return ForwardContext(cos, sin, lambda _, q, k, v: kernels.attention(q, k, v, scale, cu_seqlens))

    def hidden_states(self, inputs: Tensor, context: ForwardContext) -> Tensor:
        """int32 ids `(S, B)` on the first stage, else the previous stage's `(S, B, H)` -> output of the last layer here."""
        tp, sequence_parallel = self.state.tp, self.state.sequence_parallel
        hidden = (vocab_parallel_embedding(inputs, self.parameters[EMBEDDING], tp, sequence_parallel)
                  if self.first else inputs)
        recomputed = self._recomputed_layers()
        for index, layer in enumerate(self.layers):
            if index in recomputed:
                hidden = autograd.recompute(lambda h, layer=layer: layer(h, context), hidden)
            else:
                hidden = layer(hidden, context)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Output of the last layer -> this rank's vocabulary shard of the logits `(S, B, V/T)`."""
        normed = kernels.rms_norm(hidden, self.parameters[FINAL_NORM], self.model.norm_epsilon)
        weight = self.parameters[OUTPUT if self.model.untie_embeddings_and_output_weights else EMBEDDING]
        return column_parallel_linear(normed, weight, None, self.state.tp, self.state.sequence_parallel)

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of every token, fp32 `(S, B)`, for int32 `labels (S, B)`."""
        return vocab_parallel_cross_entropy(self.logits(hidden), labels, self.state.tp)

    def _recomputed_layers(self) -> range:
        """Positions in this chunk whose activations are computed again in backward."""
        if self.parallel.recompute_granularity != "full":
            return range(0)
        if self.parallel.recompute_method == "block":
            return range(min(len(self.layers), self.parallel.recompute_num_layers or 0))
        return range(len(self.layers))


def hidden_shape(model: ModelConfig, state: ParallelState, seq_length: int, batch: int) -> tuple[int, int, int]:
    """Shape of the activations that travel between stages, for `seq_length` positions on this context-parallel rank."""
    return (seq_length // state.tp.size if state.sequence_parallel else seq_length, batch, model.hidden_size)


