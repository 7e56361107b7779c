"""The command-line contract as one table: every flag, what it sets, who uses it.

`python -m mindspeed_llm.config.flags > docs/flags.md` writes the reference page.
"""

import difflib
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.fixed_flags import FIXED_FLAGS
from mindspeed_llm.config.lora import LoraConfig
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.option import ENTRYPOINTS, Flag, flag_name
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.preference import PreferenceConfig
from mindspeed_llm.config.serving import ServeConfig
from mindspeed_llm.config.training import (CheckpointConfig, ConvertConfig, EvaluationConfig, InferenceConfig,
                                           OptimizerConfig, ProfileConfig, TrainConfig)

SCRIPTS = {"convert": "convert_ckpt.py", "preprocess": "preprocess_data.py", "pretrain": "pretrain_gpt.py",
           "inference": "inference.py", "evaluation": "evaluation.py"}

CONFIGS = {"parallel": ParallelConfig, "model": ModelConfig, "train": TrainConfig, "optimizer": OptimizerConfig,
           "lora": LoraConfig, "checkpoint": CheckpointConfig, "profile": ProfileConfig, "data": DataConfig,
           "preference": PreferenceConfig, "convert": ConvertConfig, "inference": InferenceConfig, "serve": ServeConfig,
           "evaluation": EvaluationConfig}

_TITLES = {"train": "training", "lora": "low-rank adapters", "profile": "profiling", "preference": "preference tuning",
           "convert": "conversion", "inference": "generation", "serve": "serving"}


def _options() -> Iterator[Flag]:
    for part, config in CONFIGS.items():
        for entry in fields(config):
            for flag in entry.metadata.get("flags", ()):
                yield replace(flag, name=flag.name or flag_name(entry.name), group=_TITLES.get(part, part),
                              fields=flag.fields or (f"{part}.{entry.name}",))


FLAGS: tuple[Flag, ...] = (*_options(), *FIXED_FLAGS)


def flags_of(entrypoint: str) -> dict[str, Flag]:
    """All flag names of the contract as `entrypoint` reads them: its own row where it has one, else another's."""
    rows: dict[str, Flag] = {}
    for flag in FLAGS:
        if flag.name not in rows or entrypoint in flag.used_by:
            rows[flag.name] = flag
    return rows


def nearest_flag(name: str) -> str | None:
    """The known flag most like `name`, or None when none is similar."""
    found = difflib.get_close_matches(name.split("=")[0], [flag.name for flag in FLAGS], n=1, cutoff=0.5)
    return found[0] if found else None


def default_text(flag: Flag) -> str:
    """What holds when the flag is not given, for help and documentation."""
    if flag.default is not None:
        return flag.default
    part, name = flag.fields[0].split(".")
    field = next(entry for entry in fields(CONFIGS[part]) if entry.name == name)
    value = field.default
    if value is MISSING:
        return "required"
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(str(entry) for entry in value)
    return str(value)


def reference_page() -> str:
    """docs/flags.md: the table as Markdown, one section per group."""
    lines = [
        "# Command-line flags",
        "",
        "Written by `python -m mindspeed_llm.config.flags > docs/flags.md`; do not edit by hand.",
        "",
        "- Every entrypoint accepts every flag below, so that one block of flags can be pasted everywhere. A flag that "
        "has no effect in an entrypoint is named there in one line. An unknown flag is an error.",
        "- `--flag value` and `--flag=value` are the same; flags cannot be abbreviated; the later of two wins. A "
        "switch can be taken back: `--sequence-parallel=false`.",
        "- Defaults are those of GLM4's published training where Megatron's differ (AdamW 0.9/0.95, weight decay 0.1, "
        "cosine decay, norm epsilon 1.5625e-07, rotary percent 0.5, no dropout).",
        "- From a checkpoint: a shape flag that contradicts it is an error; `--rotary-base`, "
        "`--max-position-embeddings` and `--seq-length` override it.",
    ]
    for group in dict.fromkeys(flag.group for flag in FLAGS):
        rows = [flag for flag in FLAGS if flag.group == group]
        lines += ["", f"## {group[0].upper()}{group[1:]}", ""]
        if rows[0].why_ignored is not None:
            lines += ["| flag | value | why |", "|---|---|---|"]
            lines += [f"| `{flag.name}` | {_value_text(flag)} | {flag.why_ignored} |" for flag in rows]
            continue
        lines += ["| flag | value | default | effect in | meaning |", "|---|---|---|---|---|"]
        lines += [f"| `{flag.name}` | {_value_text(flag)} | {default_text(flag)} | {_users_text(flag)} | {flag.help} |"
                  for flag in rows]
    return "\n".join(lines) + "\n"


def _value_text(flag: Flag) -> str:
    metavar = flag.kind.metavar
    if not metavar:
        return "switch"
    shown = f"`{metavar}`"
    return shown + " ..." if flag.kind.nargs == "+" else shown


def _users_text(flag: Flag) -> str:
    if set(flag.used_by) == set(ENTRYPOINTS):
        return "all"
    return ", ".join(entry for entry in ENTRYPOINTS if entry in flag.used_by)


if __name__ == "__main__":
    sys.stdout.write(reference_page())
