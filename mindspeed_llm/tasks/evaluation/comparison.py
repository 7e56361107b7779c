"""Two evaluations of the same questions side by side: `evaluation.py --compare A B`.

The scores are paired by question. The difference's standard error is that of the mean of the paired differences
(Miller, "Adding Error Bars to Evals", 2024, arXiv:2411.00640, section 4); for answers that are right or wrong McNemar's
test (McNemar, 1947, "Note on the sampling error of the difference between correlated proportions") in its exact form
gives the probability of a difference at least so large by chance: of the questions that one of the two answered rightly
and the other not, each has even odds (two-sided binomial test). For scores in parts of a point it is that of the normal
distribution.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.config.errors import UserError

_COLUMNS = {"subject", "number", "score", "key"}
Scores = dict[tuple[str, str], tuple[str, float]]
"""(subject, number) -> (hash of the question, score)."""


@dataclass(frozen=True)
class Difference:
    """`questions` pairs; mean scores of A and B; `stderr` of B - A (None for one pair); `only_a`, `only_b`: questions
    on which A, or B, has the higher score; `p`: the probability of so large a difference by chance.
    """

    questions: int
    a: float
    b: float
    stderr: float | None
    only_a: int
    only_b: int
    p: float


def compare(folder_a: str, folder_b: str) -> str:
    """The comparison as text, for every benchmark that both folders hold. Raises UserError or FileNotFoundError."""
    names = [{file.name.removesuffix("_answers.csv") for file in _folder(folder).glob("*_answers.csv")}
             for folder in (folder_a, folder_b)]
    common = sorted(names[0] & names[1])
    if not common:
        raise UserError(f"--compare {folder_a} {folder_b}: there is no benchmark whose <task>_answers.csv both hold "
                        f"({', '.join(sorted(names[0])) or 'none'} and {', '.join(sorted(names[1])) or 'none'})")
    return "\n\n".join(_report(task, folder_a, folder_b) for task in common)


def difference(pairs: list[tuple[float, float]]) -> Difference:
    """Of (score of A, score of B) of each question, at least one."""
    count, gaps = len(pairs), [b - a for a, b in pairs]
    mean = math.fsum(gaps) / count
    stderr = (math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (count - 1) / count) if count > 1 else None)
    only_a, only_b = sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    if all(score in (0.0, 1.0) for pair in pairs for score in pair):
        p = mcnemar_exact(only_a, only_b)
    else:
        p = math.erfc(abs(mean) / stderr / math.sqrt(2)) if stderr else float(mean == 0)
    return Difference(count, math.fsum(a for a, _ in pairs) / count, math.fsum(b for _, b in pairs) / count, stderr,
                      only_a, only_b, p)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided: the probability that `only_a + only_b` fair coins fall at least so unevenly."""
    coins, ways, total = only_a + only_b, 1, 0
    for heads in range(min(only_a, only_b) + 1):
        total += ways
        ways = ways * (coins - heads) // (heads + 1)
    return min(1.0, 2 * total / 2**coins)


def _report(task: str, folder_a: str, folder_b: str) -> str:
    scores_a, scores_b = (_read(_folder(folder) / f"{task}_answers.csv") for folder in (folder_a, folder_b))
    if scores_a.keys() != scores_b.keys() or any(scores_a[place][0] != scores_b[place][0] for place in scores_a):
        place = next(place for place in [*scores_a, *scores_b]
                     if scores_a.get(place, "")[:1] != scores_b.get(place, "")[:1])
        raise UserError(f"--compare {folder_a} {folder_b}: {task} was not asked the same questions (first difference: "
                        f"{place[0]}, number {place[1]}): evaluate both with the same files and --max-eval-samples")
    subjects: dict[str, list[tuple[float, float]]] = {}
    for place, (_, score) in scores_a.items():
        subjects.setdefault(place[0], []).append((score, scores_b[place][1]))
    every = [pair for pairs in subjects.values() for pair in pairs]
    rows = [(name, difference(pairs)) for name, pairs in [*subjects.items(), ("total", every)]]
    width = max(len(name) for name, _ in rows)
    lines = [f"{task}: A = {folder_a}, B = {folder_b}",
             f"{'subject':>{width}}   question_n   acc A      acc B      B - A      stderr     only A   only B   p"]
    lines += [f"{name:>{width}}   {entry.questions:>10}   {entry.a:.6f}   {entry.b:.6f}   {entry.b - entry.a:+.5f}   "
              f"{'-' if entry.stderr is None else format(entry.stderr, '.6f'):<8}   {entry.only_a:>6}   "
              f"{entry.only_b:>6}   {entry.p:.4f}" for name, entry in rows]
    total = rows[-1][1]
    if total.stderr is not None:
        gap, margin = total.b - total.a, 1.96 * total.stderr
        lines.append(f"B - A = {gap:+.5f}, 95% interval {gap - margin:+.5f} to {gap + margin:+.5f}, p = {total.p:.4g}")
    return "\n".join(lines)


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"--compare {path}: no such directory; give the --output-dir of two evaluations")
    return Path(path)


def _read(file: Path) -> Scores:
    with open(file, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := _COLUMNS - set(reader.fieldnames or ()):
            raise UserError(f"{file} has no column {', '.join(sorted(missing))}: it is of another version; evaluate "
                            "anew")
        return {(row["subject"], row["number"]): (row["key"], float(row["score"])) for row in reader}
