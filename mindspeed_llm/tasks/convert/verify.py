"""`convert_ckpt.py --verify DIR`: read every byte of an mcore checkpoint against its checksums."""

import time
from pathlib import Path

from mindspeed_llm.checkpoint import Checkpoint, layout
from mindspeed_llm.config.errors import UserError


def verify(directory: str) -> None:
    """Check every iteration in a checkpoint directory, or one iteration's own directory, and print a line for each.

    Raises UserError that names every bad file with its tensors, FileNotFoundError where there is no checkpoint.
    """
    root = Path(directory)
    single = (root / layout.METADATA).is_file()
    places = [root] if single else [root / name for name in layout.saved_iterations(root)]
    if not places:
        raise FileNotFoundError(f"--verify {root} holds no mcore checkpoint (no {layout.METADATA}, no iter_* directory "
                                "with one)")
    problems = [] if single else _tracker_problems(root)
    for place in places:
        found, line = _check(place)
        problems += found
        print(line, flush=True)
    if problems:
        raise UserError(f"--verify {root}: " + "\n".join(problems))


def _check(place: Path) -> tuple[list[str], str]:
    started = time.monotonic()
    try:
        with Checkpoint(place) as checkpoint:
            problems = list(checkpoint.problems())
            files, size = checkpoint.size
    except (UserError, FileNotFoundError) as error:
        return [str(error)], f"{place}: cannot be read"
    if problems:
        return problems, f"{place}: {len(problems)} problems"
    seconds = time.monotonic() - started
    return [], (f"{place}: complete and undamaged, {files} files, {size / 1e6:.1f} MB in {seconds:.1f} s "
                f"({size / 1e6 / max(seconds, 1e-9):.0f} MB/s)")


def _tracker_problems(root: Path) -> list[str]:
    try:
        named = layout.latest_iteration(root)
    except UserError as error:
        return [str(error)]
    if named is None:
        return [f"{root / layout.TRACKER} is missing"]
    if layout.iteration_name(named) not in layout.saved_iterations(root):
        return [f"{root / layout.TRACKER} names iteration {named}, which is not there"]
    return []
