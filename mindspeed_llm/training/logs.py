"""The iteration line, whose format other tools parse; TensorBoard event files and Weights & Biases records."""

import os
import time
from dataclasses import dataclass, field
from typing import Protocol

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import TrainConfig


@dataclass(frozen=True)
class IterationRecord:
    """What is reported about the iterations since the last line; times are means over them. `flops`: FLOP/s of a rank and
    the most that it can do, where they are asked for.
    """

    iteration: int
    train_iters: int
    consumed_samples: int
    seconds: float
    learning_rate: float
    global_batch_size: int
    loss: float
    loss_scale: float
    grad_norm: float
    skipped: int
    nans: int
    tokens_per_second: float
    peak_memory_mb: float
    metrics: dict[str, float] = field(default_factory=dict)
    flops: tuple[float, float] | None = None

    def line(self) -> str:
        """The log line: Megatron's fields to the letter, then throughput and memory, the objective's metrics."""
        per_rank, share = "", ""
        if self.flops is not None:
            done, limit = self.flops
            per_rank = f" throughput per GPU (TFLOP/s/GPU): {done / 1e12:.4f} |"
            share = f" share of measured limit: {done / limit:.3f} |"
        return (f" [{time.strftime('%Y-%m-%d %H:%M:%S')}]"
                f" iteration {self.iteration:8d}/{self.train_iters:8d} |"
                f" consumed samples: {self.consumed_samples:12d} |"
                f" elapsed time per iteration (ms): {self.seconds * 1000:.1f} |{per_rank}"
                f" learning rate: {self.learning_rate:.6E} |"
                f" global batch size: {self.global_batch_size:5d} |"
                f" lm loss: {self.loss:.6E} |"
                f" loss scale: {self.loss_scale:.1f} |"
                f" grad norm: {self.grad_norm:.3f} |"
                f" number of skipped iterations: {self.skipped:3d} |"
                f" number of nan iterations: {self.nans:3d} |"
                f" tokens/s: {self.tokens_per_second:.1f} |"
                f" peak memory (MB): {self.peak_memory_mb:.1f} |{share}{metric_fields(self.metrics)}")


def metric_fields(metrics: dict[str, float]) -> str:
    """What an objective reports beside its loss, as further fields of a log line."""
    return "".join(f" {name}: {value:.6E} |" for name, value in metrics.items())


class Board(Protocol):
    """A place where numbers and texts of a run are kept by iteration."""

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """Keep numbers."""

    def text(self, tag: str, text: str, iteration: int) -> None:
        """Keep a text (Markdown)."""

    def close(self) -> None:
        """Nothing more will come."""


class Boards:
    """The boards that a run asks for; on rank 0 (`main`), elsewhere none."""

    def __init__(self, train: TrainConfig, *, main: bool) -> None:
        self._boards: list[Board] = []
        if main and train.tensorboard_dir:
            self._boards.append(TensorBoard(train.tensorboard_dir))
        if main and train.wandb_project:
            self._boards.append(WeightsAndBiases(train))

    def iteration(self, record: IterationRecord) -> None:
        """Keep the numbers of an iteration line."""
        values = {"lm loss": record.loss, "learning-rate": record.learning_rate, "grad-norm": record.grad_norm,
                  "loss-scale": record.loss_scale, "iteration-time": record.seconds,
                  "tokens-per-second": record.tokens_per_second, "peak-memory-mb": record.peak_memory_mb}
        if record.flops is not None:
            values["throughput"] = record.flops[0] / 1e12
        self.scalars({**values, **record.metrics}, record.iteration)

    def validation(self, iteration: int, values: dict[str, float]) -> None:
        """Keep a validation's loss and metrics."""
        self.scalars({f"{tag} validation": value for tag, value in values.items()}, iteration)

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """Keep numbers."""
        for board in self._boards:
            board.scalars(values, iteration)

    def text(self, tag: str, text: str, iteration: int) -> None:
        """Keep a text (Markdown)."""
        for board in self._boards:
            board.text(tag, text, iteration)

    def close(self) -> None:
        """Finish all."""
        for board in self._boards:
            board.close()


class TensorBoard:
    """Event files in `directory`. The writer library is imported on first use."""

    def __init__(self, directory: str) -> None:
        from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(directory)

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """See `Board`."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, iteration)
        self._writer.flush()

    def text(self, tag: str, text: str, iteration: int) -> None:
        """See `Board`."""
        self._writer.add_text(tag, text, iteration)
        self._writer.flush()

    def close(self) -> None:
        """See `Board`."""
        self._writer.close()


class WeightsAndBiases:
    """A record for Weights & Biases. It stays on this machine, to be sent with `wandb sync`, unless WANDB_MODE is set."""

    def __init__(self, train: TrainConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(f"--wandb-project ({train.wandb_project}) needs the package wandb, which is not installed: "
                            "pip install -r requirements-wandb.txt") from None
        os.makedirs(train.wandb_save_dir, exist_ok=True)
        self._run = wandb.init(project=train.wandb_project, name=train.wandb_exp_name, dir=train.wandb_save_dir,
                               mode=os.environ.get("WANDB_MODE", "offline"),
                               settings=wandb.Settings(console="off", disable_git=True, save_code=False))

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """See `Board`."""
        self._run.log(values, step=iteration)

    def text(self, tag: str, text: str, iteration: int) -> None:
        """See `Board`."""
        self._run.log({tag: text}, step=iteration)

    def close(self) -> None:
        """See `Board`."""
        self._run.finish()
