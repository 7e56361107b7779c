"""Losses over pairs of answers, from the log-probabilities that models give them."""

from collections.abc import Callable

from mindspore import Tensor, mint

from mindspeed_llm.config.preference import PreferenceConfig
from mindspeed_llm.runtime import device
from mindspeed_llm.training.passes import Metrics

METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
           "logps/rejected")
PER_TOKEN = ("ipo", "simpo", "orpo")
"""Losses that take the mean log-probability of an answer's tokens, the others take the sum."""


def pair_losses(config: PreferenceConfig, policy: Tensor, reference: Tensor | None, sizes: Tensor
                ) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each of P pairs, and of each answer the score and the log-probability that go into it.

    Args:
        policy: fp32 `(2P,)`, sums of the log-probabilities of the answers' tokens: P chosen ones, then P rejected ones.
        reference: the same from the reference model, or None for a loss that has none.
        sizes: fp32 `(2P,)`, numbers of tokens of the answers.

    Returns:
        losses `(P,)`, --pref-ftx included; scores `(2P,)`, of which --dpo-beta times is the implicit reward;
        log-probabilities `(2P,)`, per token for `PER_TOKEN`.
    """
    means = policy / sizes
    if config.dpo_loss_type in PER_TOKEN:
        logps, reference = means, None if reference is None else reference / sizes
    else:
        logps = policy
    scores = logps if reference is None else logps - reference
    chosen, rejected = halves(scores)
    losses = _LOSSES[config.dpo_loss_type](config, chosen, rejected)
    if config.pref_ftx:
        losses = losses - config.pref_ftx * halves(means)[0]
    return losses, scores, logps


def pair_metrics(config: PreferenceConfig, scores: Tensor, logps: Tensor) -> Metrics:
    """Means over the pairs of what `METRICS` names, from what `pair_losses` returned.

    The names are those of Hugging Face's TRL, https://huggingface.co/docs/trl/dpo_trainer
    """
    chosen, rejected = halves(config.dpo_beta * scores)
    values = (chosen, rejected, device.cast(chosen > rejected, chosen.dtype), chosen - rejected, *halves(logps))
    return {name: value.mean() for name, value in zip(METRICS, values, strict=True)}


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the chosen and of the rejected answers."""
    pairs = values.shape[0] // 2
    return values[:pairs], values[pairs:]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), which is minus the log-sigmoid of -x; exact for large |x|.

    Written so that whatever slope relu is given at 0, the slope there is 1/2: with the model at its reference, where
    training starts, all margins are 0.
    """
    positive = mint.nn.functional.relu(x)
    return positive + mint.log1p(mint.exp(x - 2 * positive))


def _sigmoid(config: PreferenceConfig, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Rafailov et al., "Direct Preference Optimization", 2023 (arXiv:2305.18290), eq. 7. Label smoothing: Mitchell, "A
    note on DPO with noisy preferences", 2023.
    """
    margins, smoothing = config.dpo_beta * (chosen - rejected), config.dpo_label_smoothing
    losses = softplus(-margins)
    return losses if not smoothing else (1 - smoothing) * losses + smoothing * softplus(margins)


def _hinge(config: PreferenceConfig, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Zhao et al., "SLiC-HF", 2023 (arXiv:2305.10425), over DPO's rewards."""
    return mint.nn.functional.relu(1 - config.dpo_beta * (chosen - rejected))


def _ipo(config: PreferenceConfig, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023
    (arXiv:2310.12036), eq. 17, over means of log-probabilities as in TRL.
    """
    distance = chosen - rejected - 1 / (2 * config.dpo_beta)
    return distance * distance


def _simpo(config: PreferenceConfig, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Meng et al., "SimPO", 2024 (arXiv:2405.14734), eq. 6."""
    return softplus(-config.dpo_beta * (chosen - rejected - config.gamma_beta_ratio))


def _orpo(config: PreferenceConfig, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Hong et al., "ORPO", 2024 (arXiv:2403.07691), eq. 6 and 7, --dpo-beta being its lambda."""
    log_odds = [logps - mint.log1p(-mint.exp(logps)) for logps in (chosen, rejected)]
    return config.dpo_beta * softplus(log_odds[1] - log_odds[0]) - chosen


_LOSSES: dict[str, Callable[[PreferenceConfig, Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid, "hinge": _hinge, "ipo": _ipo, "simpo": _simpo, "orpo": _orpo}
