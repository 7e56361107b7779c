"""Checkpoints of low-rank adapters: opening them, and whether they belong to a model."""

from pathlib import Path

from mindspeed_llm.checkpoint.load import Checkpoint, open_checkpoint
from mindspeed_llm.checkpoint.source import WeightSource
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import SHAPE_FIELDS
from mindspeed_llm.config.option import flag_name


def find_adapters(lora_load: str | None, base: WeightSource | None, source: str,
                  flag: str = "--load") -> Checkpoint | None:
    """The checkpoint that holds the adapters of a job: that of --lora-load, else `base`, if it has any.

    `source` is how the user gave the base (with `flag`). Raises UserError or FileNotFoundError where --lora-load holds none
    or those of another model, or the base is none.
    """
    if base is not None and base.adapters_only:
        raise UserError(f"{source} holds adapters only: give it as --lora-load, and the checkpoint of the model that they "
                        f"are of as {flag}")
    if not lora_load:
        return base if base is not None and base.lora is not None else None
    adapters = _open(lora_load)
    if base is not None:
        _require_same_model(adapters, base, source)
    return adapters


def _open(lora_load: str) -> Checkpoint:
    """The checkpoint of --lora-load. Raises UserError or FileNotFoundError where that holds no adapters."""
    if (Path(lora_load) / "adapter_config.json").is_file():
        raise UserError(f"--lora-load {lora_load} is a PEFT adapter directory: convert it with convert_ckpt.py "
                        "--load-model-type hf --save-model-type mg, and give what that writes")
    found = open_checkpoint(lora_load)
    if found is None:
        why = "holds no checkpoint (no latest_checkpointed_iteration.txt)" if Path(lora_load).is_dir() else "does not exist"
        raise FileNotFoundError(f"--lora-load {lora_load} {why}: give a directory that training with --lora-target-modules "
                                "has written")
    if found.lora is None:
        raise UserError(f"--lora-load {lora_load} holds a model without adapters: give it as --load")
    return found


def _require_same_model(adapters: Checkpoint, base: WeightSource, source: str) -> None:
    """Raise UserError unless the base is of the shape of the model which the adapters were trained on."""
    pairs = [(flag_name(name), *(getattr(of.model_config, name) for of in (adapters, base))) for name in SHAPE_FIELDS]
    pairs.append(("--noop-layers", adapters.noop_layers, base.noop_layers))
    for flag, want, have in pairs:
        if want != have:
            raise UserError(f"the adapters of {adapters.directory} are of another model than {source}: {flag} is {want} "
                            f"there and {have} here: give the checkpoint that they were trained on")
