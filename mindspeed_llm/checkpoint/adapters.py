"""Checkpoints of low-rank adapters: opening them, and whether they belong to a model."""

from pathlib import Path

from mindspeed_llm.checkpoint.load import Checkpoint, open_checkpoint
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import SHAPE_FIELDS, ModelConfig
from mindspeed_llm.config.option import flag_name


def open_adapters(lora_load: str) -> Checkpoint:
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


def require_same_model(adapters: Checkpoint, model: ModelConfig, noop_layers: tuple[int, ...], source: str) -> None:
    """Raise UserError unless the model of `source` is of the shape of that which the adapters were trained on."""
    theirs = adapters.model_config
    pairs = [(flag_name(name), getattr(theirs, name), getattr(model, name)) for name in SHAPE_FIELDS]
    pairs.append(("--noop-layers", adapters.noop_layers, noop_layers))
    for flag, want, have in pairs:
        if want != have:
            raise UserError(f"the adapters of {adapters.directory} are of another model than {source}: {flag} is {want} "
                            f"there and {have} here: give the checkpoint that they were trained on")
