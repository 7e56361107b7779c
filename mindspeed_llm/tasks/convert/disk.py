"""Is there room for what a conversion writes?"""

import shutil
from pathlib import Path

from mindspeed_llm.config.errors import UserError


def require_space(target: Path, wanted: int) -> None:
    """Raise UserError when the file system of `target` (which need not exist yet) has less than `wanted` bytes free."""
    probe = target.absolute()
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < wanted:
        raise UserError(f"--save-dir {target} needs {wanted / 1e9:.2f} GB, but {probe} has {free / 1e9:.2f} GB free: "
                        "free some, or give a directory on another disk")
