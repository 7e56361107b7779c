"""The iteration line, whose format other tools parse, and TensorBoard event files."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class IterationRecord:
    """What is reported about the iterations since the last line; times are means over them."""

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

    def line(self) -> str:
        """The log line: Megatron's fields to the letter, then throughput and memory."""
        return (f" [{time.strftime('%Y-%m-%d %H:%M:%S')}]"
                f" iteration {self.iteration:8d}/{self.train_iters:8d} |"
                f" consumed samples: {self.consumed_samples:12d} |"
                f" elapsed time per iteration (ms): {self.seconds * 1000:.1f} |"
                f" learning rate: {self.learning_rate:.6E} |"
                f" global batch size: {self.global_batch_size:5d} |"
                f" lm loss: {self.loss:.6E} |"
                f" loss scale: {self.loss_scale:.1f} |"
                f" grad norm: {self.grad_norm:.3f} |"
                f" number of skipped iterations: {self.skipped:3d} |"
                f" number of nan iterations: {self.nans:3d} |"
                f" tokens/s: {self.tokens_per_second:.1f} |"
                f" peak memory (MB): {self.peak_memory_mb:.1f} |")


class TensorBoard:
    """Event files in `directory`; does nothing when it is None. The writer library is imported on first use."""

    def __init__(self, directory: str | None) -> None:
        self._writer = None
        if directory:
            from tensorboardX import SummaryWriter
            self._writer = SummaryWriter(directory)

    def iteration(self, record: IterationRecord) -> None:
        """Write the scalars of an iteration line."""
        if self._writer is None:
            return
        for tag, value in (("lm loss", record.loss), ("learning-rate", record.learning_rate),
                           ("grad-norm", record.grad_norm), ("loss-scale", record.loss_scale),
                           ("iteration-time", record.seconds), ("tokens-per-second", record.tokens_per_second),
                           ("peak-memory-mb", record.peak_memory_mb)):
            self._writer.add_scalar(tag, value, record.iteration)
        self._writer.flush()

    def validation(self, iteration: int, loss: float) -> None:
        """Write the validation loss."""
        if self._writer is not None:
            self._writer.add_scalar("lm loss validation", loss, iteration)
            self._writer.flush()

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """Write values by their tags."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, iteration)
            self._writer.flush()

    def text(self, tag: str, text: str, iteration: int) -> None:
        """Write a text (Markdown)."""
        if self._writer is not None:
            self._writer.add_text(tag, text, iteration)
            self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()
