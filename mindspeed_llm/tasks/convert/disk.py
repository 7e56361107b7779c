"""Room for what a conversion writes, and directories that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindspeed_llm.checkpoint.files import make_directories, remove_empty, sync_directory
from mindspeed_llm.config.errors import UserError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a new directory to write into, which then takes `target`'s name and place; on failure nothing has changed."""
    staging, old = target.with_name(target.name + ".tmp"), target.with_name(target.name + ".old")
    made = make_directories(target.parent)
    if old.is_dir() and not target.exists():  # an earlier run was killed between the two renames below
        os.rename(old, target)
    for leftover in (staging, old):
        if leftover.is_dir():
            shutil.rmtree(leftover)
    staging.mkdir()
    try:
        yield staging
        sync_directory(staging)
        if target.exists():
            os.rename(target, old)
        os.rename(staging, target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        remove_empty(made)
        raise
    if old.exists():
        shutil.rmtree(old)


def require_space(target: Path, wanted: int) -> None:
    """Raise UserError when the file system of `target` (which need not exist yet) has less than `wanted` bytes free."""
    probe = target.absolute()
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < wanted:
        raise UserError(f"--save-dir {target} needs {wanted / 1e9:.2f} GB, but {probe} has {free / 1e9:.2f} GB free: "
                        "free some, or give a directory on another disk")
