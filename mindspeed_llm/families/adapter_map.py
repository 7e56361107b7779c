"""Adapters of mcore's layers as adapters of a Hugging Face layout's modules.

A layer that is several modules there (linear_qkv: q, k and v) has adapters of these that share one matrix A; rows of B go
where rows of the weight go (`weight_map.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.families.weight_map import HfLayout, Piece, mapped_tensors

_A, _B, _WEIGHT = ".lora_A.weight", ".lora_B.weight", ".weight"


@dataclass(frozen=True)
class MappedAdapter:
    """An adapter: its tensors here, and which rows of `b` are which rows of which module's B (`Piece.name`: the module)."""

    a: TensorSpec
    b: TensorSpec
    pieces: tuple[Piece, ...]

    @property
    def modules(self) -> dict[str, int]:
        """Names of the modules, in the order in which they occur, with their outputs."""
        rows: dict[str, int] = {}
        for piece in self.pieces:
            rows[piece.name] = max(rows.get(piece.name, 0), piece.stop)
        return rows


def mapped_adapters(layout: HfLayout, model: ModelConfig, noop_layers: tuple[int, ...],
                    lora: LoraConfig) -> Iterator[MappedAdapter]:
    """Every adapter of `model` under `lora`, in forward order."""
    pieces = {mapped.spec.name: mapped.pieces
              for mapped in mapped_tensors(layout, model, noop_layers, model.padded_vocab_size)}
    specs = {spec.name: spec for spec in model_specs(model, noop_layers, lora) if spec.adapter}
    for name, spec in specs.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            yield MappedAdapter(spec, specs[layer + _B], tuple(replace(piece, name=piece.name.removesuffix(_WEIGHT))
                                                               for piece in pieces[layer + _WEIGHT]))
