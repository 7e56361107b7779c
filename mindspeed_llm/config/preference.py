"""Options of preference tuning (`--stage dpo`)."""

from dataclasses import dataclass

from mindspeed_llm.config import flag_kinds as kind
from mindspeed_llm.config.option import TRAIN, Flag, option

REFERENCE_FREE = ("simpo", "orpo")


@dataclass(frozen=True)
class PreferenceConfig:
    """The loss over pairs of answers and the reference model that it compares with."""

    dpo_loss_type: str = option("sigmoid", Flag(
        kind.choice("sigmoid", "hinge", "ipo", *REFERENCE_FREE), TRAIN, "loss of a pair: sigmoid is DPO's own; simpo "
        "and orpo need no reference model"))
    dpo_beta: float = option(0.1, Flag(
        kind.number(above=0.0), TRAIN, "how strongly rewards weigh differences of log-probabilities; for orpo the "
        "weight of the odds ratio"))
    dpo_label_smoothing: float = option(0.0, Flag(
        kind.number(low=0.0, below=0.5), TRAIN, "share of pairs taken to be the wrong way round (--dpo-loss-type "
        "sigmoid)"))
    gamma_beta_ratio: float = option(1.4, Flag(
        kind.number(low=0.0), TRAIN, "target margin divided by --dpo-beta (--dpo-loss-type simpo)"))
    pref_ftx: float = option(0.0, Flag(
        kind.number(low=0.0), TRAIN, "weight of the mean cross entropy of the chosen answers, added to the loss"))
    ref_model: str | None = option(None, Flag(
        kind.path(), TRAIN, "checkpoint directory of the reference model, which stays as it is",
        default="with adapters their base, --load; else required"))
    precompute_ref: bool = option(False, Flag(
        kind.switch(), TRAIN, "before training compute what the reference model says of all pairs, keep it beside the "
        "data, and train without that model in memory"))

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.dpo_loss_type not in REFERENCE_FREE
