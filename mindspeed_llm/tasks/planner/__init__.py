"""What a training job would take, worked out without devices: `pretrain_gpt.py ... --dry-run`.

`job.py` what is planned; `activations.py`, `memory.py`, `communication.py`, `schedule.py` the formulas, each read off
the code that runs; `advice.py` the smallest change that fits; `report.py` the text. docs/planner.md explains and checks
the numbers.
"""

import os

from mindspeed_llm.checkpoint import find_adapters
from mindspeed_llm.config import lora
from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.planner import report
from mindspeed_llm.tasks.planner.advice import peak, smallest_change
from mindspeed_llm.tasks.planner.job import ASCEND, TARGETS, Job
from mindspeed_llm.tasks.planner.memory import GIB, stage_memory, usable


def run(configs: Configs) -> None:
    """Print the plan of the job that `configs` describe, with the verdict in the last line.

    The number of ranks is RANK_SIZE, as msrun sets it, else one replica's ranks; the device is DEVICE_TARGET, else
    Ascend. Raises UserError for sizes that do not fit together.
    """
    adapters = find_adapters(configs.checkpoint.lora_load, None, "--load")
    configs = lora.resolve(configs, adapters and adapters.lora, configs.checkpoint.lora_load)
    world, notes = _world_size(configs)
    job = Job(configs, world, _target())
    stages = [stage_memory(job, stage) for stage in range(job.pp)]
    limit = usable(job)
    largest, change = peak(job), None
    if largest > limit * GIB:
        change = smallest_change(job, int(report.TIGHT * limit * GIB)) or smallest_change(job, int(limit * GIB))
    print("\n".join([*configs.notes, *notes, *report.lines(job, stages),
                     report.verdict(job, largest, limit, change, peak(change.job) if change else 0)]))


def _world_size(configs: Configs) -> tuple[int, list[str]]:
    given = os.environ.get("RANK_SIZE", "")
    if not given:
        size = configs.parallel.model_parallel_size
        return size, [f"RANK_SIZE is not set: planning for one replica, {size} rank{'s' if size > 1 else ''}"]
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"RANK_SIZE ({given}) must be the number of ranks, such as 8")
    return int(given), []


def _target() -> str:
    target = os.environ.get("DEVICE_TARGET") or ASCEND
    if target not in TARGETS:
        raise UserError(f"DEVICE_TARGET ({target}) must be one of {', '.join(TARGETS)}")
    return target
