"""What the model runs over at once."""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.runtime.memory import from_numpy

Sample = dict[str, np.ndarray]
"""An entry of a data set."""


@dataclass(frozen=True)
class MicroBatch:
    """tokens, labels int32 `(S, B)`; cu_seqlens: int32 boundaries of packed segments, or None.

    S is the whole sequence, before context parallelism cuts it. The model runs over `tokens` and `cu_seqlens`; the rest
    is for the loss, and an objective adds to it in a class of its own.
    """

    tokens: np.ndarray
    labels: np.ndarray
    cu_seqlens: np.ndarray | None

    @property
    def seq_length(self) -> int:
        """S."""
        return self.tokens.shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self.tokens.shape[1]


def local(chunk: GPTModel, array: np.ndarray) -> Tensor:
    """A context-parallel rank's rows of `(S, ...)`, on the device."""
    return from_numpy(np.ascontiguousarray(chunk.local_part(array)))
