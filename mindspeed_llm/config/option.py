"""A command-line flag as part of the config field that it sets: one row says everything about an option."""

from dataclasses import MISSING, dataclass, field
from typing import Any

from mindspeed_llm.config.flag_kinds import Kind

ENTRYPOINTS = ("convert", "preprocess", "pretrain", "inference", "evaluation")
RUN = ("pretrain", "inference", "evaluation")
MODEL = RUN + ("convert",)
TRAIN, PREPROCESS, CONVERT, INFERENCE, EVALUATION = (("pretrain",), ("preprocess",), ("convert",), ("inference",),
                                                     ("evaluation",))
REQUIRED = MISSING


@dataclass(frozen=True)
class Flag:
    """One row of the command-line contract.

    `used_by` are the entrypoints where the flag has an effect; the others accept it and say so. In an `option`, `name`
    and `fields` may be left out: the flag is spelled as the field and sets it, and the config's title is the `group`.
    `fields` are `part.field` names of the configs; a part called `cli` is not a config but input of a derived field
    (`--bf16` -> params_dtype). `default` is what holds when the flag is not given, where the field's default does not
    say it. A flag without fields fixes something that has one choice in GLM4 (its value is checked), or belongs to the
    group that is accepted without effect (`why_ignored`).
    """

    kind: Kind
    used_by: tuple[str, ...]
    help: str
    name: str = ""
    fields: tuple[str, ...] = ()
    default: str | None = None
    group: str = ""
    why_ignored: str | None = None


def option(default: Any, *flags: Flag) -> Any:
    """A config field with the flags that set or decide it. `default` may be REQUIRED."""
    return field(default=default, metadata={"flags": flags})


def flag_name(field: str) -> str:
    """Command-line spelling of a config field: `num_layers` -> `--num-layers`."""
    return "--" + field.replace("_", "-")
