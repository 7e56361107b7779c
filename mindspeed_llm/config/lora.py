"""Low-rank adapters: which layers have them, and their size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.option import RUN, TRAIN, Flag, option

if TYPE_CHECKING:
    from mindspeed_llm.config.configs import Configs

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
_STORED = ": that of --lora-load"


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of a model whose own weights are frozen: a layer `W x` becomes `W x + alpha / r * B (A dropout(x))`.

    Hu et al., "LoRA", 2022. `target_modules` are the kinds of layers that have adapters; none: there are no adapters.
    """

    target_modules: tuple[str, ...] = option((), Flag(
        kind.words(*TARGETS), RUN, "train low-rank adapters of these layers, in every transformer layer, and nothing "
        "else", name="--lora-target-modules", default=f"no adapters; with --lora-load{_STORED}"))
    r: int = option(16, Flag(
        kind.integer(1), RUN, "rank of the adapters", name="--lora-r", default=f"16; with --lora-load{_STORED}"))
    alpha: int = option(32, Flag(
        kind.integer(1), RUN, "adapters are scaled by this / --lora-r", name="--lora-alpha",
        default=f"32; with --lora-load{_STORED}"))
    dropout: float = option(0.0, Flag(
        kind.number(low=0.0, below=1.0), TRAIN, "in training: part of an adapter's input that is set to 0",
        name="--lora-dropout"))

    @property
    def scale(self) -> float:
        """Factor of every adapter's output."""
        return self.alpha / self.r

    def to_dict(self) -> dict:
        """JSON-ready dictionary, stored in a checkpoint's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "LoraConfig":
        """Inverse of `to_dict`. Unknown keys are an error: they come from a newer writer and could change the model."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"adapters have unknown entries {unknown}: written by a newer mindspeed_llm?")
        return cls(**{**values, "target_modules": tuple(values["target_modules"])})


def resolve(configs: Configs, stored: LoraConfig | None, source: str) -> Configs:
    """`configs` with the adapters of the run as `lora`: those `stored` in the checkpoint `source`, new ones, or None.

    Of stored ones only the dropout may be changed. Raises UserError when the command line contradicts them.
    """
    given: LoraConfig = configs.lora
    if stored is None:
        if given.target_modules and configs.entrypoint != "pretrain":
            raise UserError(f"--lora-target-modules ({' '.join(given.target_modules)}) is given, but {source} holds no "
                            "adapters: give them as --lora-load, or leave the flag out")
        return replace(configs, lora=given if given.target_modules else None)
    for name, flag in (("target_modules", "--lora-target-modules"), ("r", "--lora-r"), ("alpha", "--lora-alpha")):
        asked, known = getattr(given, name), getattr(stored, name)
        same = set(asked) == set(known) if name == "target_modules" else asked == known
        if name in configs.explicit and not same:
            asked, known = (" ".join(value) if isinstance(value, tuple) else value for value in (asked, known))
            raise UserError(f"{flag} ({asked}) contradicts the adapters of {source}, which have {known}: use {known} or "
                            "leave the flag out")
    dropout = given.dropout if "dropout" in configs.explicit else stored.dropout
    return replace(configs, lora=replace(stored, dropout=dropout))
