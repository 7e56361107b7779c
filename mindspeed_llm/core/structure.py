"""Which parts a model has: the one place where its structure is written. Runs without the framework (`parts.py`)."""

from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.transformer.layer import TransformerLayer
from mindspeed_llm.core.transformer.lora import adapt
from mindspeed_llm.core.transformer.parts import Embedding, Norm, OutputLayer, Part, embedding_spec


class ChunkParts(Part):
    """The parts of a model chunk: its `layers`, the embedding if `first`, final norm and output layer if `last`.

    With `lora` everything is frozen but the adapters that it asks for.
    """

    def __init__(self, model: ModelConfig, layers: tuple[int, ...], *, first: bool, last: bool,
                 lora: LoraConfig | None = None) -> None:
        vocab, hidden, tied = model.padded_vocab_size, model.hidden_size, not model.untie_embeddings_and_output_weights
        embedding = embedding_spec(vocab, hidden, tied)
        self.embedding = Embedding(embedding) if first else None
        self.layers = [TransformerLayer(model, number) for number in layers]
        self.final_layernorm = Norm("decoder.final_layernorm", None, hidden, model.norm_epsilon) if last else None
        self.output_layer = OutputLayer(vocab, hidden, embedding if tied else None) if last else None
        if lora is not None:
            adapt(self, lora)

    def specs(self) -> list[TensorSpec]:
        """See `Part`. A tied embedding is there once; a last chunk that is not the first holds it too."""
        return list({spec.name: spec for spec in super().specs()}.values())


def chunk_specs(model: ModelConfig, layers: tuple[int, ...], *, first: bool, last: bool,
                lora: LoraConfig | None = None) -> list[TensorSpec]:
    """Parameters of a model chunk, in forward order."""
    return ChunkParts(model, layers, first=first, last=last, lora=lora).specs()


def model_specs(model: ModelConfig, noop_layers: tuple[int, ...] = (),
                lora: LoraConfig | None = None) -> list[TensorSpec]:
    """Every parameter of the whole model, in forward order."""
    layers = tuple(i for i in range(model.num_layers) if i not in noop_layers)
    return chunk_specs(model, layers, first=True, last=True, lora=lora)
