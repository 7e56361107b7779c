"""Accuracies as a bar chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_picture
from mindspeed_llm.tasks.evaluation.results import SubjectResult, by_category, summary

_ROW, _WIDTH = 0.28, 9.0  # inches: of a bar's row, of the picture


def write_chart(file: Path, task: str, results: Sequence[SubjectResult], categories: Mapping[str, str]) -> None:
    """A PNG with a bar of each subject, category and the total, coloured by category, and 95% intervals (1.96 standard
    errors). It appears whole or not at all.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(categories.values()))
    bars = sorted(((result.name, summary([result]), categories.get(result.name)) for result in results),
                  key=lambda bar: (names.index(bar[2]) if bar[2] else len(names), bar[0]))
    bars += [(name, entry, name) for name, entry in by_category(results, categories).items()]
    bars.append(("total", summary(results), None))
    figure = Figure(figsize=(_WIDTH, 1.2 + _ROW * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    colors = [f"C{names.index(category) % 10}" if category else "gray" for _, _, category in bars]
    axes.barh([name for name, _, _ in bars], [entry.acc for _, entry, _ in bars], color=colors,
              xerr=[1.96 * (entry.stderr or 0.0) for _, entry, _ in bars], ecolor="black", capsize=2)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy, with 95% interval")
    axes.set_title(task)
    write_picture(file, figure)
