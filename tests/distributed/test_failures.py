"""A rank that is killed or raises, or a script that is terminated, ends the whole job: its error on the terminal,
nothing left running.
"""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed.launch import end, free_port, processes_of, script_environment, wait_for_steps, workers_after_steps
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps

EXAMPLES = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4"
SECONDS = 180  # a job of a million steps that has not ended by then hangs; a loaded machine takes long to end one
# The scripts' own launcher, with the training script's faulty twin.
LAUNCH_FAULTY = f'source "{EXAMPLES}/common.sh" && launch faulty tests/distributed/faulty_pretrain.py "$@"'
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]


@pytest.fixture
def data(tmp_path):
    """Prefix of an indexed data set."""
    prefix = tmp_path / "text_document"
    write_ramps(prefix)
    return prefix


@contextmanager
def started(command, folder, **variables):
    """A job (process, mark) in `folder`, ended at the latest on leaving; its processes carry the mark."""
    mark = f"job-{folder}"
    process = subprocess.Popen(
        [str(word) for word in command], cwd=folder, env=script_environment(JOB_MARK=mark, **variables), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, mark
    finally:
        end(processes_of(mark))
        process.wait()


@contextmanager
def pretraining(folder, data, *flags, **variables):
    """The 8K script on a tiny model, as `started`."""
    command = ["bash", EXAMPLES / "pretrain_glm4_8k_ms.sh", "--train-iters", 1000000, "--seq-length", 64,
               "--max-position-embeddings", 64, "--global-batch-size", 8, *flags]
    with started(command, folder, MASTER_PORT=free_port(), CKPT_LOAD_DIR="", DATA_PATH=data, TOKENIZER_PATH=folder,
                 **variables) as job:
        yield job


def test_killed_rank_ends_the_job(tmp_path, data):
    with pretraining(tmp_path, data, TP=2, PP=2, NPUS_PER_NODE=4) as (process, mark):
        workers = workers_after_steps(process, mark, 4)
        os.kill(workers[2], signal.SIGKILL)
        output = process.communicate(timeout=SECONDS)[0]
        assert process.returncode != 0
        assert "rank 2" in output.split("error: the job failed")[1]
        assert processes_of(mark) == {}


@pytest.mark.parametrize(("ranks", "number", "flags", "status"), [
    (1, signal.SIGINT, [], 130), (2, signal.SIGINT, [], 130),
    (2, signal.SIGTERM, ["--exit-signal-handler", "--save-interval", 10**6], 0)
], ids=["one process", "ranks", "ranks that save"])
def test_ended_script_leaves_nothing_running(ranks, number, flags, status, tmp_path, data):
    with pretraining(tmp_path, data, *flags, TP=ranks, PP=1, NPUS_PER_NODE=ranks) as (process, mark):
        wait_for_steps(process)
        process.send_signal(number)
        output = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == status, output[-2000:]
        assert ("successfully saved checkpoint" in output) == bool(flags)
        assert processes_of(mark) == {}


RAISING = {
    "rank 1 reads bad data": (1, "data", PP2),       # before the first step
    "rank 0 in forward": (0, "forward", PP2),        # its peer waits for activations
    "rank 1 in backward": (1, "backward", TP2),      # its peer waits in a sum
}


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    """`{name: (status, terminal, processes left)}` of the jobs that a rank ends; all at once, as they mostly wait."""
    with ThreadPoolExecutor() as jobs:
        submitted = {name: jobs.submit(_raise, tmp_path_factory.mktemp("raised"), *case)
                     for name, case in RAISING.items()}
        return {name: job.result() for name, job in submitted.items()}


def _raise(folder, rank, place, parallel):
    data, damaged = folder / "text_document", folder / "damaged"
    write_ramps(data)
    damaged.with_suffix(".idx").write_bytes(data.with_suffix(".idx").read_bytes()[:40])
    damaged.with_suffix(".bin").write_bytes(data.with_suffix(".bin").read_bytes())
    command = ["bash", "-c", LAUNCH_FAULTY, "launch", *SHAPE, *SCHEDULE, "--train-iters", 1000000, *parallel,
               "--num-layers", 4 if parallel == PP2 else 2, "--data-path", data,
               "--tokenizer-name-or-path", folder]
    with started(command, folder, NNODES=1, NODE_RANK=0, NPUS_PER_NODE=2, LOG_ROOT="logs", MASTER_ADDR="127.0.0.1",
                 MASTER_PORT=free_port(), FAULT_RANK=rank, FAULT=place, FAULT_DATA=damaged) as (process, mark):
        output = process.communicate(timeout=SECONDS)[0]
        return process.returncode, output, processes_of(mark)


@pytest.mark.parametrize("name", RAISING)
def test_raising_rank_ends_the_job(name, raised):
    rank, place, _ = RAISING[name]
    status, output, left = raised[name]
    assert status != 0
    told = output.split("error: the job failed")[1]
    assert f"rank {rank}: error: " in told, output[-3000:]
    assert ("damaged.idx" if place == "data" else "planted fault") in told
    assert left == {}
