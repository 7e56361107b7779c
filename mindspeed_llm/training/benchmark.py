"""A benchmark that runs while a model is trained (`--eval-task`): what the loop asks of it, and what it reports.

The benchmarks themselves are a task of their own (`tasks/evaluation/`), which training knows nothing of: the
entrypoint, which knows both, hands the loop one (`training.run(configs, benchmark_of)`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.gpt_model import GPTModel


@dataclass(frozen=True)
class Scores:
    """Accuracies, 0 to 1, in total and by category; `stderr`: standard error of the total, None for one question."""

    task: str
    questions: int
    accuracy: float
    stderr: float | None
    categories: dict[str, float] = field(default_factory=dict)

    def line(self, iteration: int) -> str:
        """The log line."""
        parts = [f" {self.task} at iteration {iteration}", f"questions: {self.questions}", f"acc: {self.accuracy:.6f}"]
        parts += [] if self.stderr is None else [f"standard error: {self.stderr:.6f}"]
        return " | ".join([*parts, *(f"{name}: {value:.6f}" for name, value in self.categories.items())]) + " |"

    def scalars(self) -> dict[str, float]:
        """Tags of TensorBoard and their values."""
        return {f"{self.task} acc": self.accuracy} | {f"{self.task} acc/{name}": value
                                                      for name, value in self.categories.items()}


class Benchmark(Protocol):
    """Puts questions to the model as it is."""

    def run(self) -> Scores:
        """The scores, on every rank. Collective among all ranks; leaves everything that training goes on with as it
        is.
        """


BenchmarkOf = Callable[[Configs, list[GPTModel]], Benchmark]
"""Makes the benchmark of a run over this rank's chunks of the model. Raises UserError when its files are not right."""
