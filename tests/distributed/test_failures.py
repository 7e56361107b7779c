"""A rank that is killed or raises ends the whole job: soon, with its error on the terminal, with nothing left running."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.distributed.launch import free_port, script_environment
from tests.training.tiny_job import write_documents

SCRIPT = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4" / "pretrain_glm4_8k_ms.sh"
SECONDS = 15


def _workers(mark):
    """{rank: pid} of the job whose environment holds `mark`."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"pretrain_gpt.py" not in (process / "cmdline").read_bytes():
                continue
            environment = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if "=" in entry)
        except OSError:
            continue
        if environment.get("JOB_MARK") == mark and environment.get("MS_ROLE") == "MS_WORKER":
            found[int(environment["RANK_ID"])] = int(process.name)
    return found


@pytest.fixture
def job(tmp_path):
    """A training job of four ranks that has done its first iterations; yields (process, mark)."""
    data, mark = tmp_path / "text_document", f"job-{tmp_path}"
    write_documents(data, [[(start + step) % 256 for step in range(90)] for start in range(40)])
    environment = script_environment(TP=2, PP=2, NPUS_PER_NODE=4, MASTER_PORT=free_port(), CKPT_LOAD_DIR="",
                                     DATA_PATH=data, TOKENIZER_PATH=tmp_path, JOB_MARK=mark)
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--train-iters", "1000000", "--seq-length", "64", "--max-position-embeddings", "64",
         "--global-batch-size", "8"], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        for line in process.stdout:
            if "iteration        3/" in line:
                break
        yield process, mark
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the job has ended by itself, as it should


def test_killed_rank_ends_the_job(job):
    process, mark = job
    workers = _workers(mark)
    assert sorted(workers) == [0, 1, 2, 3]
    os.kill(workers[2], signal.SIGKILL)
    started = time.monotonic()
    output = process.communicate(timeout=60)[0]
    elapsed = time.monotonic() - started
    assert process.returncode != 0
    assert elapsed < SECONDS, output[-2000:]
    assert "rank 2" in output.split("error: the job failed")[1]
    assert _workers(mark) == {}
