"""Angles of the rotary position embedding."""

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.runtime.memory import from_numpy


class RotaryEmbedding:
    """Cosines and sines of `position * base^(-2i / rotary_dim)`; those of the positions asked for last are kept, for
    the next micro-batch.
    """

    def __init__(self, model: ModelConfig) -> None:
        exponents = np.arange(0, model.rotary_dim, 2, dtype=np.float64) / model.rotary_dim
        self._inverse_frequencies = model.rotary_base**-exponents
        self._cache: dict[tuple | bytes, tuple[Tensor, Tensor]] = {}

    def __call__(self, positions: range | np.ndarray) -> tuple[Tensor, Tensor]:
        """cos and sin, each fp32 `(len(positions), rotary_dim / 2)`."""
        if isinstance(positions, range):
            key = (positions.start, positions.stop)
        else:
            key = positions.tobytes()
        if key not in self._cache:
            self._cache = {key: self._angles(np.asarray(positions))}
        return self._cache[key]

    def _angles(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        angles = np.outer(positions.astype(np.float64), self._inverse_frequencies)
        return from_numpy(np.cos(angles).astype(np.float32)), from_numpy(np.sin(angles).astype(np.float32))
