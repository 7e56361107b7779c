"""Reads numbers back out of the logs of evaluation, and the jobs' times."""

import re
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.report.logs import read_log, read_run

REWARD_ITERATIONS = 10   # of preference tuning, of which the reward accuracy is the mean
_ACCURACY = re.compile(r"mmlu acc = (\d+)/(\d+)=")


@dataclass(frozen=True)
class Accuracy:
    """Right answers and questions."""

    right: int
    questions: int

    @property
    def share(self) -> float:
        """Right answers per question."""
        return self.right / self.questions


def read_accuracy(path: str | Path) -> Accuracy:
    """The total of an evaluation log: its last `mmlu acc = right/questions=...` line.

    Raises:
        UserError: when the log has none.
    """
    matches = _ACCURACY.findall(read_log(path))
    if not matches or not int(matches[-1][1]):
        raise UserError(f"{path} has no line 'mmlu acc = ...': the evaluation did not get that far; read the log's end")
    return Accuracy(int(matches[-1][0]), int(matches[-1][1]))


def read_reward_accuracy(path: str | Path) -> float:
    """Share of the pairs with a higher reward for the chosen answer, over the last iterations of preference tuning.

    Raises:
        UserError: when the log has no such iterations.
    """
    _, shares = read_run(path).series("rewards/accuracies")
    if not shares:
        raise UserError(f"{path} has no field rewards/accuracies: it is no log of --stage dpo")
    last = shares[-REWARD_ITERATIONS:]
    return sum(last) / len(last)


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
