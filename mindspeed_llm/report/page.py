"""One HTML page about training runs: a table and a curve for every number of their iteration lines, as inline SVG."""

import io
import re
import statistics
from collections.abc import Sequence
from html import escape

from mindspeed_llm.report.logs import LOSS, VALIDATION, Run

# Names of fields in the iteration line, in the order of the page; what else a run has follows. Not drawn: counters that
# follow from the iteration, and what hardly ever moves.
_FIRST = (LOSS, "learning rate", "grad norm", "tokens/s", "peak memory (MB)", "elapsed time per iteration (ms)")
_NOT_DRAWN = ("consumed samples", "global batch size")
_ONLY_IF_MOVING = ("loss scale", "number of skipped iterations", "number of nan iterations")
# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK = "#010203"    # becomes the page's text colour, light or dark
_SMOOTH_FROM = 50   # points from which a curve is drawn smoothed, over its raw points
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5b6570; --paper: #ffffff; --line: #d9dee3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --soft: #98a2ad; --paper: #14181c; --line: #333b43; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 1200px; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } p { color: var(--soft); margin: 0 0 1.2rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .5rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; color: var(--soft); } figcaption { color: var(--ink); font-weight: 600; }
figure svg { width: 100%; height: auto; }
"""


def page(runs: Sequence[Run], title: str, refresh: float | None = None) -> str:
    """The page's HTML. `refresh`: seconds after which a browser loads it again, None: never."""
    again = f'<meta http-equiv="refresh" content="{refresh:g}">' if refresh else ""
    going = sum(not run.ended for run in runs)
    state = f"{going} of {len(runs)} under way" if going else "all at their last iteration"
    return "\n".join([
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {state}</p>",
        _table(runs), '<div class="curves">',
        *(f"<figure><figcaption>{escape(name)}</figcaption>{_curve(runs, name)}</figure>" for name in fields(runs)),
        "</div></body></html>", ""])


def fields(runs: Sequence[Run]) -> list[str]:
    """Names of the numbers that get a curve."""
    names = dict.fromkeys(name for run in runs for line in run.iterations for name in line.values)
    moving = [name for name in names if name not in _NOT_DRAWN and (
        name not in _ONLY_IF_MOVING or any(len(set(run.series(name)[1])) > 1 for run in runs))]
    return [name for name in _FIRST if name in moving] + [name for name in moving if name not in _FIRST]


def _table(runs: Sequence[Run]) -> str:
    rows = ["<table><tr><th>run</th><th>iteration</th><th>loss, first</th><th>last</th><th>lowest</th>"
            "<th>validation, last</th><th>tokens/s, median</th><th>peak memory (MB)</th><th>time left</th></tr>"]
    for number, run in enumerate(runs):
        last, losses = run.iterations[-1], run.series(LOSS)[1] or [float("nan")]
        speeds, memory = run.series("tokens/s")[1], run.series("peak memory (MB)")[1]
        validation = f"{run.validation[max(run.validation)]:.4f}" if run.validation else ""
        rows.append(
            f'<tr><td><span class="swatch" style="background:{_colour(number)}"></span>{escape(run.name)}</td>'
            f"<td>{last.number} / {last.total}</td><td>{losses[0]:.4f}</td><td>{losses[-1]:.4f}</td>"
            f"<td>{min(losses):.4f}</td><td>{validation}</td>"
            f"<td>{f'{statistics.median(speeds):.0f}' if speeds else ''}</td>"
            f"<td>{f'{max(memory):.0f}' if memory else ''}</td><td>{_time_left(run)}</td></tr>")
    return "".join(rows) + "</table>"


def _time_left(run: Run) -> str:
    """From the median time of the last iterations."""
    left = run.iterations[-1].total - run.iterations[-1].number
    if not left:
        return ""
    seconds = round(left * statistics.median(line.seconds for line in run.iterations[-20:]))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _curve(runs: Sequence[Run], name: str) -> str:
    """An `<svg>` of one field of all runs."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9,
                **{key: _INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color",
                                         "ytick.color", "grid.color")}}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5, 2.8), layout="constrained")
        axis = figure.add_subplot()
        for number, run in enumerate(runs):
            colour, (iterations, values) = _colour(number), run.series(name)
            marker = "o" if len(values) == 1 else None
            smooth = len(values) >= _SMOOTH_FROM
            axis.plot(iterations, values, color=colour, alpha=0.25 if smooth else 1, linewidth=1, marker=marker,
                      markersize=3)
            if smooth:
                axis.plot(iterations, _smoothed(values), color=colour, linewidth=1.5)
            if name == LOSS and run.validation:
                axis.plot(sorted(run.validation), [run.validation[key] for key in sorted(run.validation)], "o--",
                          color=colour, markersize=3, linewidth=1, label=VALIDATION)
                axis.legend(frameon=False)
        axis.grid(True, alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("iteration")
        picture = io.StringIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    text = picture.getvalue()
    return re.sub(_INK, "currentColor", text[text.index("<svg"):])


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean over about a twentieth of the curve, without the pull of its start (Kingma and Ba's correction)."""
    weight = 1 - 20 / max(20 + len(values), 40)
    mean, smooth = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        smooth.append(mean / (1 - weight**count))
    return smooth
