"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.config.errors import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sync_directory(path: str | os.PathLike) -> None:
    """Make renames and new names inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of `text` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_picture(path: str | os.PathLike, figure: Figure, dpi: int = 100) -> None:
    """`write_bytes` of a Matplotlib figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    write_bytes(path, png.getvalue())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, fsync, rename over `path`."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_directories(path: Path) -> list[Path]:
    """Create `path` with its parents; returns the directories that were made, innermost first."""
    made = []
    probe = path
    while not probe.exists():
        made.append(probe)
        probe = probe.parent
    path.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(directories: list[Path]) -> None:
    """Remove those of `directories` (innermost first) that are empty."""
    for directory in directories:
        if not directory.is_dir() or any(directory.iterdir()):
            return
        directory.rmdir()
