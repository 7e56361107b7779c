"""Loss scaling: keeps fp16 gradients out of the subnormal range (Micikevicius et al., "Mixed Precision Training", 2018)."""

GROWTH_INTERVAL = 1000  # steps without overflow before the scale doubles
HYSTERESIS = 2  # overflows tolerated before it halves
MINIMUM = 1.0


class LossScale:
    """The factor on the loss: 1 for fp32 and bf16, dynamic for fp16 (halved on overflow, doubled after a calm stretch)."""

    def __init__(self, params_dtype: str, initial: float) -> None:
        self.dynamic = params_dtype == "fp16"
        self.value = float(initial) if self.dynamic else 1.0
        self._calm, self._tolerance = 0, HYSTERESIS

    def update(self, overflowed: bool) -> None:
        """Account for one optimizer step."""
        if not self.dynamic:
            return
        if overflowed:
            self._calm = 0
            self._tolerance -= 1
            if self._tolerance <= 0:
                self.value = max(self.value / 2, MINIMUM)
            return
        self._calm += 1
        if self._calm == GROWTH_INTERVAL:
            self._calm, self._tolerance = 0, HYSTERESIS
            self.value *= 2

    def state(self) -> dict:
        """JSON-ready state for a checkpoint."""
        return {"value": self.value, "calm": self._calm, "tolerance": self._tolerance}

    def load_state(self, state: dict) -> None:
        """Inverse of `state`; a scale that is not dynamic stays 1."""
        if self.dynamic:
            self.value, self._calm, self._tolerance = state["value"], state["calm"], state["tolerance"]
