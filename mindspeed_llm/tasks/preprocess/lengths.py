"""`--report`: how long the documents or conversations are, on the terminal and as a picture."""

import itertools
from pathlib import Path

import numpy as np

from mindspeed_llm.checkpoint.files import write_picture

BARS = 20
WIDTH = 50


def histogram(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts [n], edges [n+1]) in up to 20 bins of one width, which is a round number.

    The last bin takes in all that is longer than the 99.5th percentile asks for: a few giants must not press all the
    others into one bin.
    """
    top = max(1, int(np.percentile(lengths, 99.5)))
    width = next(step * 10 ** power for power in itertools.count() for step in (1, 2, 5)
                 if step * 10 ** power * BARS >= top)
    bins = -(-(top + 1) // width)
    edges = np.arange(bins + 1, dtype=np.int64) * width
    counts, _ = np.histogram(np.minimum(lengths, edges[-1] - 1), edges)
    edges[-1] = max(edges[-1], int(lengths.max()) + 1)
    return counts, edges


def report(lengths: np.ndarray, picture: str | Path, seq_length: int | None) -> str:
    """Text of the histogram; the same is drawn into `picture` (PNG).

    Args:
        lengths: int[N >= 1], tokens per document or conversation.
        seq_length: `--seq-length` where it limits them, else None.
    """
    counts, edges = histogram(lengths)
    quantiles = [int(value) for value in np.percentile(lengths, (50, 90, 99))]
    lines = [f"{lengths.size} sequences, {int(lengths.sum(dtype=np.int64))} tokens; mean {lengths.mean():.1f}, median "
             f"{quantiles[0]}, 90% up to {quantiles[1]}, 99% up to {quantiles[2]}, longest {lengths.max()}"]
    if seq_length is not None:
        cut = int((lengths >= seq_length).sum())
        lines.append(f"{cut} ({100 * cut / lengths.size:.1f}%) fill --seq-length {seq_length}: they may have been cut")
    places = len(str(int(edges[-1])))
    for count, first, after in zip(counts, edges, edges[1:]):
        bar = "#" * int(np.ceil(WIDTH * count / counts.max()))
        lines.append(f"{first:>{places}} - {after - 1:>{places}} {count:>{len(str(lengths.size))}} {bar}".rstrip())
    _draw(counts, edges, picture, seq_length)
    return "\n".join([*lines, f"drawn in {picture}"])


def _draw(counts: np.ndarray, edges: np.ndarray, picture: str | Path, seq_length: int | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    width = int(edges[1] - edges[0])
    axes.bar(edges[:-1], counts, width=0.9 * width, align="edge")
    axes.set(xlabel=f"tokens (the last bar: up to {edges[-1] - 1})", ylabel="sequences")
    if seq_length is not None and seq_length <= edges[-2] + width:
        axes.axvline(seq_length, color="tab:red", linestyle="--", label=f"--seq-length {seq_length}")
        axes.legend()
    write_picture(picture, figure, dpi=120)
