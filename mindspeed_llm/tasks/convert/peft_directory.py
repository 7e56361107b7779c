"""A PEFT adapter directory: adapter_config.json and adapter_model.safetensors, read and written without PEFT."""

import json
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.dtypes import SAFETENSORS_DTYPES, TAGS, StoredTensor
from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile, SafetensorsWriter
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.families.hf_directory import read_json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What makes an adapter another thing than W x + alpha / r B A x: entry of the config -> the values it may have.
_PLAIN = {"peft_type": ("LORA",), "bias": ("none", None), "fan_in_fan_out": (False, None), "use_dora": (False, None),
          "use_rslora": (False, None), "lora_bias": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
          "modules_to_save": (None, []), "target_parameters": (None, []), "layer_replication": (None, [])}

Matrices = dict[str, dict[str, StoredTensor]]
"""Module name -> {"A": (r, inputs), "B": (outputs, r)}."""


def read(path: Path) -> tuple[int, float, float, Matrices]:
    """Rank, scale, dropout and matrices of a directory. Raises UserError or FileNotFoundError naming file and remedy."""
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"--lora-load {path} has no {name}: give a PEFT adapter directory")
    config = read_json_object(path / CONFIG)
    for key, allowed in _PLAIN.items():
        if config.get(key, allowed[-1]) not in allowed:
            raise UserError(f"{path / CONFIG}: {key} {config[key]!r} cannot be converted, only {allowed[0]!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path / CONFIG}: r {rank!r} and lora_alpha {alpha!r} must be a positive whole number and a number")
    found: Matrices = {}
    with SafetensorsFile(path / WEIGHTS) as file:
        for name, entry in file.tensors.items():
            module, letter = name.removesuffix(".weight").removeprefix(_PREFIX), name.removesuffix(".weight")[-1]
            if not name.startswith(_PREFIX) or not module.endswith((".lora_A", ".lora_B")) or entry.dtype not in TAGS:
                raise UserError(f"{path / WEIGHTS}: {name} ({entry.dtype}) is no matrix of an adapter of a linear layer in "
                                f"{', '.join(TAGS)}: only such adapters can be converted")
            array = np.array(file.flat(name)).reshape(entry.shape)
            found.setdefault(module[:-len(".lora_A")], {})[letter] = StoredTensor(array, TAGS[entry.dtype])
    for module, matrices in found.items():
        if set(matrices) != {"A", "B"} or matrices["A"].shape[:1] + matrices["B"].shape[1:] != (rank, rank):
            raise UserError(f"{path / WEIGHTS}: the adapter of {module} has not A and B of rank {rank} ({CONFIG})")
    return rank, alpha / rank, float(config.get("lora_dropout") or 0.0), found


def write(path: Path, lora: LoraConfig, matrices: Matrices, base: str) -> None:
    """Write a directory for adapters of the Hugging Face model `base` into the existing directory `path`."""
    config = {"base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
              "init_lora_weights": True, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "peft_type": "LORA",
              "r": lora.r, "target_modules": sorted({module.split(".")[-1] for module in matrices}),
              "task_type": "CAUSAL_LM"}
    tensors = {f"{_PREFIX}{module}.lora_{letter}.weight": tensor for module, both in sorted(matrices.items())
               for letter, tensor in both.items()}
    heads = [(name, SAFETENSORS_DTYPES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()]
    with SafetensorsWriter(path / WEIGHTS, heads, {"format": "pt"}) as writer:
        for tensor in tensors.values():
            writer.write(tensor.array)
    write_text(path / CONFIG, json.dumps(config, indent=2) + "\n")
