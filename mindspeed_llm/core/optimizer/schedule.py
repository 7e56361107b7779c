"""Learning rate over iterations: warm-up, then constant, linear or cosine decay, as Megatron's scheduler counts
them.
"""

import math

from mindspeed_llm.config.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, iteration: int, train_iters: int) -> float:
    """The rate used by optimizer step number `iteration` (from 1) of a run of `train_iters`.

    Warm-up is linear from 0 over `lr_warmup_iters`, or over `lr_warmup_fraction` of the decay length. The rate after
    `lr_decay_iters` (default: the whole run) is `min_lr`.
    """
    decay_iters = config.lr_decay_iters or train_iters
    warmup = (config.lr_warmup_fraction * decay_iters if config.lr_warmup_fraction is not None
              else config.lr_warmup_iters)
    if warmup > 0 and iteration <= warmup:
        return config.lr * iteration / warmup
    if config.lr_decay_style == "constant":
        return config.lr
    if iteration > decay_iters:
        return config.min_lr
    progress = (iteration - warmup) / max(decay_iters - warmup, 1e-12)
    remaining = 1 - progress if config.lr_decay_style == "linear" else 0.5 * (math.cos(math.pi * progress) + 1)
    return config.min_lr + remaining * (config.lr - config.min_lr)
