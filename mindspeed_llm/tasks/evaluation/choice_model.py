"""What a multiple-choice task needs of a model, and the model that gives it: one method."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.generation.generator import Generator, Pass
from mindspeed_llm.generation.kv_cache import SharedPrefix
from mindspeed_llm.runtime.collectives import all_gather, all_reduce
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.tasks.evaluation.prompt_forms import common_prefix


class ChoiceModel(Protocol):
    """Rates continuations of one token."""

    def score_choices(self, prompts: list[list[int]], choices: Sequence[int]) -> np.ndarray:
        """Logits, fp32 `(len(prompts), len(choices))`, of the token ids `choices` after each prompt."""


class ParallelChoiceModel:
    """A `ChoiceModel` over tensor-, pipeline- and data-parallel ranks; every rank gets all scores.

    Prompts that begin alike (the shots of a subject) are computed together: the common part runs once and its keys and
    values are shared. The rest runs in passes of `batch_size` prompts, joined without padding, longest last; with
    several stages, several passes are under way. Only the last positions reach the output layer, and of their logits
    only those of the choices are exchanged. Data-parallel replicas take every n-th prompt.
    """

    def __init__(self, generator: Generator, batch_size: int) -> None:
        self._generator, self._batch_size = generator, batch_size

    def score_choices(self, prompts: list[list[int]], choices: Sequence[int]) -> np.ndarray:
        """See `ChoiceModel`. Every rank passes the same arguments."""
        dp = self._generator.state.dp
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        mine = self._scores([prompts[index] for index in order[dp.rank::dp.size]], choices)
        most = -(-len(prompts) // dp.size)
        padded = np.zeros((most, len(choices)), np.float32)
        padded[:len(mine)] = mine
        dealt = all_gather(from_numpy(padded), dp).asnumpy() if dp.size > 1 else padded
        scores = np.empty((len(prompts), len(choices)), np.float32)
        for replica in range(dp.size):
            places = order[replica::dp.size]
            scores[places] = dealt[replica * most:replica * most + len(places)]
        return scores

    def _scores(self, prompts: list[list[int]], choices: Sequence[int]) -> np.ndarray:
        if not prompts:
            return np.empty((0, len(choices)), np.float32)
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
        prefix = self._generator.new_cache()
        if shared:
            self._generator.extend([prefix], [prompts[0][:shared]])
        passes = []
        for start in range(0, len(prompts), self._batch_size):
            batch = prompts[start:start + self._batch_size]
            passes.append(Pass([SharedPrefix(prefix) for _ in batch], [shared] * len(batch),
                               [ids[shared:] for ids in batch], list(range(len(batch)))))
        found = self._generator.run(passes, lambda logits: self._pick(logits, choices))
        shape = (len(prompts), len(choices))
        return self._generator.from_last_stage(found, shape).copy().view(np.float32)

    def _pick(self, logits: Tensor, choices: Sequence[int]) -> np.ndarray:
        """The choices' logits `(rows, choices)` out of this rank's shard `(rows, 1, V/T)` and the others'."""
        tp = self._generator.state.tp
        local = logits.astype(mstype.float32).asnumpy().reshape(logits.shape[0], -1)
        picked = np.zeros((len(local), len(choices)), np.float32)
        for column, token in enumerate(choices):
            place = token - tp.rank * local.shape[1]
            if 0 <= place < local.shape[1]:
                picked[:, column] = local[:, place]
        # all but one rank add zero: the sum is exact
        return all_reduce(from_numpy(picked), tp).asnumpy() if tp.size > 1 else picked
