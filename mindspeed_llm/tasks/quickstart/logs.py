"""Reads numbers back out of the jobs' logs: the lines that users' tools parse too."""

import re
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.config.errors import UserError

_ITERATION = re.compile(r"iteration\s+(?P<iteration>\d+)/\s*(?P<total>\d+) \|.*?"
                        r"elapsed time per iteration \(ms\): (?P<ms>[\d.]+) \|.*?"
                        r"lm loss: (?P<loss>\S+) \|")
_TOKENS = re.compile(r"tokens/s: ([\d.]+)")
_ACCURACY = re.compile(r"mmlu acc = (\d+)/(\d+)=")


@dataclass(frozen=True)
class Iteration:
    """One iteration line: number (from 1), loss in nats per token, milliseconds, tokens per second if given."""

    number: int
    loss: float
    milliseconds: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Accuracy:
    """Right answers and questions."""

    right: int
    questions: int

    @property
    def share(self) -> float:
        """Right answers per question."""
        return self.right / self.questions


def read_log(path: str | Path) -> str:
    """A log's text; bytes that are no UTF-8 become U+FFFD. Raises FileNotFoundError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the job that writes this log has not run")
    return path.read_text(encoding="utf-8", errors="replace")


def read_iterations(path: str | Path) -> list[Iteration]:
    """The iteration lines of a training log in ascending order.

    A resumed job writes into the same log: of an iteration that occurs twice the later line counts.

    Raises:
        UserError: when the log has none.
    """
    found: dict[int, Iteration] = {}
    for line in read_log(path).splitlines():
        match = _ITERATION.search(line)
        if match:
            speed = _TOKENS.search(line)
            number = int(match["iteration"])
            found[number] = Iteration(number, float(match["loss"]), float(match["ms"]),
                                      float(speed[1]) if speed else None)
    if not found:
        raise UserError(f"{path} has no iteration lines: the training job did not get that far; read the log's end")
    return [found[number] for number in sorted(found)]


def read_accuracy(path: str | Path) -> Accuracy:
    """The total of an evaluation log: its last `mmlu acc = right/questions=...` line.

    Raises:
        UserError: when the log has none.
    """
    matches = _ACCURACY.findall(read_log(path))
    if not matches or not int(matches[-1][1]):
        raise UserError(f"{path} has no line 'mmlu acc = ...': the evaluation did not get that far; read the log's end")
    return Accuracy(int(matches[-1][0]), int(matches[-1][1]))


def read_times(path: str | Path) -> dict[str, float]:
    """Seconds per job from lines `name<TAB>seconds`, in order of first appearance; a later line replaces an earlier.

    Raises:
        UserError: a line that is not of this form.
    """
    times: dict[str, float] = {}
    for number, line in enumerate(read_log(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, _, seconds = line.partition("\t")
        try:
            times[name] = float(seconds)
        except ValueError:
            raise UserError(f"{path} line {number} is {line!r}: a job's name, a tab and its seconds are "
                            "wanted") from None
    return times
