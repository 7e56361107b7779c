"""Access to recorded reference numbers: golden.npz, or another record of the same layout."""

import json
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.families import find_layout
from mindspeed_llm.families.weight_map import mapped_tensors


@cache
def _stored(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, which nobody may change."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


class Golden:
    """A record: model shape, `ids` and `labels (B, S)`, `weight/<name>`, `grad/<name>`, `loss`, `adamw_losses`,
    `adamw_grad_norms`, all of the whole model. Optional: `lengths (B)` of the rows, `cu_seqlens` of packed segments in
    every row. Default: Hugging Face's numbers, see make_golden.py. `lora`: the adapters that the model has, or None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._data = dict(_stored(path or Path(__file__).with_name("golden.npz")))
        self._data.setdefault("lengths", np.full(len(self._data["ids"]), self._data["ids"].shape[1]))
        self.model = ModelConfig.from_dict(json.loads(str(self._data["shape"])))
        self.lora = _adapters(self._data)

    @classmethod
    def of_lora(cls) -> "Golden":
        """golden.npz under the adapters of make_lora.py: `lora` is their description, gradients are theirs alone."""
        made = cls()
        made._data |= _stored(Path(__file__).with_name("lora.npz"))
        made.lora = _adapters(made._data)
        return made

    @classmethod
    def of_family(cls, flag: str, noop_layers: tuple[int, ...] = ()) -> "Golden":
        """The record of make_families.py for a value of --model-type-hf, in mcore's names and row order."""
        data = dict(_stored(Path(__file__).with_name(f"{flag}.npz")))
        layout = find_layout(flag)
        model = layout.read_config(json.loads(str(data.pop("config"))), flag)
        model = replace(model, num_layers=model.num_layers + len(noop_layers))
        made = cls()
        for mapped in mapped_tensors(layout, model, noop_layers, model.padded_vocab_size):
            for kind in ("weight", "grad"):
                data[f"{kind}/{mapped.spec.name}"] = np.concatenate(
                    [data[f"{kind}/{piece.name}"][piece.start:piece.stop] for piece in mapped.pieces])
        made.model, made._data = model, {"lengths": np.full(*data["ids"].shape), **data}
        return made

    def __getitem__(self, key: str) -> np.ndarray:
        return self._data[key]

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def names(self, kind: str) -> list[str]:
        """Keys that start with `kind/`."""
        return [key for key in self._data if key.startswith(f"{kind}/")]

    def with_changes(self, model: ModelConfig, **arrays: np.ndarray) -> "Golden":
        """A record with another model and some entries replaced."""
        changed = copy(self)
        changed.model, changed._data = model, {**self._data, **arrays}
        return changed

    def local(self, kind: str, spec: TensorSpec, rank: int = 0, size: int = 1) -> np.ndarray:
        """A tensor-parallel rank's part of `weight/<name>` or `grad/<name>`."""
        whole, axis = self._data[f"{kind}/{spec.name}"], spec.partition_dim or 0
        return np.concatenate([whole.take(range(start, stop), axis) for start, stop in spec.segments(rank, size)], axis)

    def norm(self, name: str) -> float:
        """L2 norm of a parameter's whole gradient."""
        return float(np.linalg.norm(self._data[f"grad/{name}"]))


def _adapters(record: dict) -> LoraConfig | None:
    return LoraConfig.from_dict(json.loads(str(record["adapters"]))) if "adapters" in record else None
