"""Names of everything in a checkpoint directory, and the tracker.

    <save>/latest_checkpointed_iteration.txt
    <save>/iter_0000001/metadata.json
    <save>/iter_0000001/mp_rank_00_000/model.safetensors          (tp rank, pp rank; mp_rank_00 when PP = 1)
    <save>/iter_0000001/mp_rank_00_000/optimizer_dp_000.safetensors
"""

import re
from pathlib import Path

from mindspeed_llm.config.errors import UserError

FORMAT = "mindspeed_llm checkpoint"
FORMAT_VERSION = 1
TRACKER = "latest_checkpointed_iteration.txt"
METADATA = "metadata.json"
STAGING = ".tmp"  # suffix of an iteration's directory while it is written
REPLACED = ".old"  # suffix of an iteration's directory while a new save of the same iteration takes its place


def iteration_name(iteration: int) -> str:
    """Directory name of an iteration."""
    return f"iter_{iteration:07d}"


def rank_directory(tp_rank: int, pp_rank: int, pp_size: int) -> str:
    """Directory name of a model-parallel rank."""
    return f"mp_rank_{tp_rank:02d}" if pp_size == 1 else f"mp_rank_{tp_rank:02d}_{pp_rank:03d}"


def model_file(tp_rank: int, pp_rank: int, pp_size: int) -> str:
    """Path of a rank's weights below the iteration's directory."""
    return f"{rank_directory(tp_rank, pp_rank, pp_size)}/model.safetensors"


def optimizer_file(tp_rank: int, pp_rank: int, pp_size: int, dp_rank: int) -> str:
    """Path of a rank's optimizer state below the iteration's directory."""
    return f"{rank_directory(tp_rank, pp_rank, pp_size)}/optimizer_dp_{dp_rank:03d}.safetensors"


def latest_iteration(directory: str | Path) -> int | None:
    """Iteration that the tracker in `directory` names; None when there is no tracker. UserError when it is damaged."""
    tracker = Path(directory) / TRACKER
    if not tracker.is_file():
        return None
    with open(tracker, encoding="utf-8", errors="replace") as file:
        text = file.read(100).strip()
    if not re.fullmatch(r"[0-9]{1,12}", text):
        found = ", ".join(saved_iterations(directory)) or "the iter_* directories (there are none)"
        raise UserError(f"{tracker} holds {text[:40]!r}, an iteration number expected: write the number of one of "
                        f"{found} into it")
    return int(text)


def iteration_number(name: str) -> int | None:
    """Inverse of `iteration_name`; None for another name."""
    return int(name.removeprefix("iter_")) if re.fullmatch(r"iter_[0-9]{7,12}", name) else None


def saved_iterations(directory: str | Path) -> list[str]:
    """Names of the complete iteration directories below `directory`, ascending."""
    names = (path.parent.name for path in Path(directory).glob(f"iter_*/{METADATA}"))
    return sorted(name for name in names if not name.endswith((STAGING, REPLACED)))
