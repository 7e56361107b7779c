"""Reads numbers back out of training logs: the iteration lines that users' tools parse too, and validation losses."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.config.errors import UserError

LOSS = "lm loss"
VALIDATION = "validation loss"
_ITERATION = re.compile(r"iteration\s+(\d+)/\s*(\d+) \|(.*)\|")
_VALIDATION = re.compile(r"validation loss at iteration (\d+) \| lm loss value: (\S+) \|")


@dataclass(frozen=True)
class Iteration:
    """One iteration line: its number (from 1), of how many, and every field by the name it has there."""

    number: int
    total: int
    values: dict[str, float]

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.values[LOSS]

    @property
    def tokens_per_second(self) -> float | None:
        """None where the line has none."""
        return self.values.get("tokens/s")

    @property
    def seconds(self) -> float:
        """Time of the iteration."""
        return self.values["elapsed time per iteration (ms)"] / 1e3


@dataclass(frozen=True)
class Run:
    """A log's iterations in ascending order, and its validation losses by iteration."""

    name: str
    iterations: list[Iteration]
    validation: dict[int, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the last iteration of all is there."""
        return self.iterations[-1].number >= self.iterations[-1].total

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations and values of a field, where it is a number."""
        points = [(line.number, line.values[name]) for line in self.iterations
                  if math.isfinite(line.values.get(name, math.nan))]
        return [number for number, _ in points], [value for _, value in points]


def read_log(path: str | Path) -> str:
    """A log's text; bytes that are no UTF-8 become U+FFFD. Raises FileNotFoundError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the job that writes this log has not run")
    return path.read_text(encoding="utf-8", errors="replace")


def read_run(path: str | Path, name: str = "") -> Run:
    """The run of a training log.

    A resumed job writes into the same log: of an iteration that occurs twice the later line counts.

    Raises:
        UserError: when the log has no iteration line.
    """
    run = _parsed(read_log(path), name or str(path))
    if run is None:
        raise UserError(f"{path} has no iteration lines: the training job did not get that far; read the log's end")
    return run


def _parsed(text: str, name: str) -> Run | None:
    """The run of a log's text; None when it has no iteration line."""
    iterations: dict[int, Iteration] = {}
    validation: dict[int, float] = {}
    for line in text.splitlines():
        if found := _VALIDATION.search(line):
            validation[int(found[1])] = float(found[2])
        elif found := _ITERATION.search(line):
            values = _fields(found[3])
            if LOSS in values:
                iterations[int(found[1])] = Iteration(int(found[1]), int(found[2]), values)
    if not iterations:
        return None
    return Run(name, [iterations[number] for number in sorted(iterations)], validation)


def find_runs(places: Iterable[str | Path]) -> list[Run]:
    """The runs of log files, and of all logs with iteration lines under directories: NAME.log of a job in one process, or
    the log of rank 0, NAME/worker_0.log, of which msrun.log repeats a part.

    Raises:
        UserError: when a place has none. FileNotFoundError: when it does not exist.
    """
    runs = []
    for place in map(Path, places):
        if place.is_file():
            runs.append(read_run(place))
            continue
        if not place.is_dir():
            raise FileNotFoundError(f"{place}: no such log or directory; the scripts write logs into LOG_ROOT (logs)")
        logs = [path for path in sorted(place.rglob("*.log")) if path.name != "msrun.log"]
        found = [run for path in logs if (run := _parsed(read_log(path), _name(path, place))) is not None]
        if not found:
            raise UserError(f"{place} has no log with iteration lines: give the directory of a training job's logs, or "
                            "wait until it has logged an iteration")
        runs += found
    return runs


def _name(log: Path, place: Path) -> str:
    """That of the job: a log's name, or that of the ranks' directory."""
    job = log.parent if re.fullmatch(r"worker_\d+", log.stem) else log.with_suffix("")
    return str(job.relative_to(place)) if job != place else place.name


def _fields(text: str) -> dict[str, float]:
    values = {}
    for part in text.split("|"):
        name, _, value = part.rpartition(":")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            continue    # a field that is no number is not for curves
    return values
