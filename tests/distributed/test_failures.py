"""A rank that is killed or raises, or a script that is terminated, ends the whole job: its error on the terminal,
nothing left running.
"""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.launch import (end, free_port, processes_of, script_environment, wait_for_steps,
                                      workers_after_steps)
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps

EXAMPLES = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4"
SECONDS = 180  # a job of a million steps that has not ended by then hangs; a loaded machine takes long to end one
# The scripts' own launcher, with the training script's faulty twin.
LAUNCH_FAULTY = f'source "{EXAMPLES}/common.sh" && launch faulty tests/distributed/faulty_pretrain.py "$@"'
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
AT_ONCE = 3  # jobs, which mostly wait


@dataclass(frozen=True)
class Outcome:
    """How a job ended: status, terminal, processes of it that are left."""

    status: int
    output: str
    left: dict[int, int | None]


@contextmanager
def started(command, folder, **variables):
    """A job (process, mark) in `folder`, ended at the latest on leaving; its processes carry the mark."""
    mark = f"job-{folder}"
    # a shell's background job, which these tests may be, ignores SIGINT, and so does what it starts
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *map(str, command)], cwd=folder, text=True,
        env=script_environment(JOB_MARK=mark, **variables),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, mark
    finally:
        end(processes_of(mark))
        process.wait()


@contextmanager
def pretraining(folder, *flags, **variables):
    """The 8K script on a tiny model, as `started`."""
    write_ramps(folder / "text_document")
    command = ["bash", EXAMPLES / "pretrain_glm4_8k_ms.sh", "--train-iters", 1000000, "--seq-length", 64,
               "--max-position-embeddings", 64, "--global-batch-size", 2, *flags]
    with started(command, folder, MASTER_PORT=free_port(), CKPT_LOAD_DIR="", DATA_PATH=folder / "text_document",
                 TOKENIZER_PATH=folder, **variables) as job:
        yield job


def outcome(process, mark):
    """Of a job that is about to end."""
    output = process.communicate(timeout=SECONDS)[0]
    return Outcome(process.returncode, output, processes_of(mark))


def killed(folder):
    """The job whose rank 1 of two is killed."""
    with pretraining(folder, TP=1, PP=2, NPUS_PER_NODE=2) as (process, mark):
        os.kill(workers_after_steps(process, mark, 2)[1], signal.SIGKILL)
        return outcome(process, mark)


ENDED = {   # ranks, signal to the script, flags, status
    "one process": (1, signal.SIGINT, [], 130),
    "ranks": (2, signal.SIGINT, [], 130),
    "ranks that save": (2, signal.SIGTERM, ["--exit-signal-handler", "--save-interval", 10**6], 0),
}


def ended(folder, ranks, number, flags, _):
    """The job whose script gets a signal."""
    with pretraining(folder, *flags, TP=ranks, PP=1, NPUS_PER_NODE=ranks) as (process, mark):
        wait_for_steps(process)
        process.send_signal(number)
        return outcome(process, mark)


RAISING = {     # which rank, where, flags
    "rank 1 reads bad data": (1, "data", PP2),       # before the first step
    "rank 0 in backward": (0, "backward", TP2),      # its peer waits in a sum
}
MORE_RAISING = {    # with --full
    "rank 0 in forward": (0, "forward", PP2),        # its peer waits for activations, as that of the killed rank does
    "rank 1 in backward": (1, "backward", TP2),
}


def raised(folder, rank, place, parallel):
    """The job that an error of a rank ends."""
    data, damaged = folder / "text_document", folder / "damaged"
    write_ramps(data)
    damaged.with_suffix(".idx").write_bytes(data.with_suffix(".idx").read_bytes()[:40])
    damaged.with_suffix(".bin").write_bytes(data.with_suffix(".bin").read_bytes())
    command = ["bash", "-c", LAUNCH_FAULTY, "launch", *SHAPE, *SCHEDULE, "--train-iters", 1000000, *parallel,
               "--num-layers", 4 if parallel == PP2 else 2, "--data-path", data,
               "--tokenizer-name-or-path", folder]
    with started(command, folder, NNODES=1, NODE_RANK=0, NPUS_PER_NODE=2, LOG_ROOT="logs", MASTER_ADDR="127.0.0.1",
                 MASTER_PORT=free_port(), FAULT_RANK=rank, FAULT=place, FAULT_DATA=damaged) as job:
        return outcome(*job)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, pytestconfig):
    """`{name: future Outcome}` of every job here."""
    raising = RAISING | (MORE_RAISING if pytestconfig.getoption("--full") else {})
    jobs = {"killed": (killed,), **{name: (ended, *case) for name, case in ENDED.items()},
            **{name: (raised, *case) for name, case in raising.items()}}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(function, tmp_path_factory.mktemp("job"), *case)
               for name, (function, *case) in jobs.items()}


def test_killed_rank_ends_the_job(outcomes):
    job = outcomes["killed"].result()
    assert job.status != 0
    assert "rank 1" in job.output.split("error: the job failed")[1]
    assert job.left == {}


@pytest.mark.parametrize("name", ENDED)
def test_ended_script_leaves_nothing_running(name, outcomes):
    _, _, flags, status = ENDED[name]
    job = outcomes[name].result()
    assert job.status == status, job.output[-2000:]
    assert ("successfully saved checkpoint" in job.output) == bool(flags)
    assert job.left == {}


@pytest.mark.parametrize("name", [*RAISING, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_RAISING)])
def test_raising_rank_ends_the_job(name, outcomes):
    rank, place, _ = (RAISING | MORE_RAISING)[name]
    job = outcomes[name].result()
    assert job.status != 0
    told = job.output.split("error: the job failed")[1]
    assert f"rank {rank}: error: " in told, job.output[-3000:]
    assert ("damaged.idx" if place == "data" else "planted fault") in told
    assert job.left == {}
