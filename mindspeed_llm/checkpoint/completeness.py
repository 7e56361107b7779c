"""Does a set of files hold every element of every parameter? Answered from metadata alone."""

import math
from collections import defaultdict

from mindspeed_llm.checkpoint.boxes import Box, shard_boxes, uncovered
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.structure import model_specs


def entry_boxes(entry: dict) -> tuple[Box, ...]:
    """What the tensor of a metadata entry holds of its global tensor."""
    return shard_boxes(entry["global_shape"], entry["axis"], entry["segments"], *entry.get("range", (0, None)))


def stored_adapters(metadata: dict) -> LoraConfig | None:
    """The adapters that a checkpoint holds."""
    return LoraConfig.from_dict(metadata["adapters"]) if "adapters" in metadata else None


def check_complete(metadata: dict, where: str) -> None:
    """Raise UserError naming the first parameter (or optimizer state) of which elements are missing.

    Optimizer state is optional as a whole; when a parameter has some, all of exp_avg and exp_avg_sq must be there. Of a
    model with adapters only these have any, and a checkpoint that says so holds nothing else.
    """
    model, lora = ModelConfig.from_dict(metadata["model"]), stored_adapters(metadata)
    held: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for entry in metadata["files"].values():
        for tensor in entry["tensors"].values():
            held[tensor["name"], tensor.get("state", "weight")].append(tensor)
    with_optimizer = any(state != "weight" for _, state in held)
    for spec in model_specs(model, tuple(metadata["parallel"]["noop_layers"]), lora):
        if metadata.get("adapters_only") and not spec.adapter:
            continue
        required = ("weight", "exp_avg", "exp_avg_sq") if with_optimizer and spec.trainable else ("weight",)
        whole = shard_boxes(spec.shape, None, ((0, spec.shape[0]),))
        states = required + (("master",) if (spec.name, "master") in held else ())
        for state in states:
            entries = held.get((spec.name, state), [])
            for entry in entries:
                if tuple(entry["global_shape"]) != spec.shape:
                    raise UserError(f"{where}: {spec.name} has global shape {entry['global_shape']}, the model config "
                                    f"gives {list(spec.shape)}")
            missing = uncovered(whole, (box for entry in entries for box in entry_boxes(entry)))
            if missing:
                count = sum(box.rows * box.cols for box in missing)
                what = "the weight" if state == "weight" else f"optimizer state {state}"
                raise UserError(f"{where}: {count} of {math.prod(spec.shape)} elements of {what} {spec.name} are in "
                                f"none of its {len(metadata['files'])} files: a rank's file is missing")
