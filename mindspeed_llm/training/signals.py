"""Stopping on SIGTERM after the current iteration, with a checkpoint (`--exit-signal-handler`)."""

import signal

import numpy as np

from mindspeed_llm.core.optimizer.gradients import global_sum
from mindspeed_llm.runtime.collectives import Group


class ExitSignal:
    """Remembers SIGTERM; all ranks agree on whether any of them got it."""

    def __init__(self, enabled: bool, world: Group) -> None:
        self.enabled, self._world, self._received = enabled, world, False
        if enabled:
            signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *_: object) -> None:
        self._received = True

    def on_any_rank(self) -> bool:
        """True when some rank was asked to stop. Collective when enabled."""
        return self.enabled and bool(global_sum(np.array([self._received]), self._world)[0])
