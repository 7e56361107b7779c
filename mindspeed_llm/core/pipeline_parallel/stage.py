"""What a pipeline schedule needs to know of the model."""

from collections.abc import Callable
from dataclasses import dataclass

from mindspore import Tensor
from mindspore import dtype as mstype


@dataclass(frozen=True)
class StageProgram:
    """What one stage does with a micro-batch.

    forward: (micro-batch number, input or None on the first stage) -> output; on the last stage the scalar loss.
    input_shape: micro-batch number -> shape of the activations that arrive for it.
    """

    forward: Callable[[int, Tensor | None], Tensor]
    input_shape: Callable[[int], tuple[int, ...]]
    dtype: mstype.Type
