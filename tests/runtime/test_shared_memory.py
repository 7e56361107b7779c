"""The shared memory transport between real processes: exact results, order, and errors instead of hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_llm.runtime.shared_memory import build, roster

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "shared_memory_worker.py"


@pytest.fixture(scope="module", autouse=True)
def library(compiler):
    """Built before the clock of any test runs."""
    return build.build()


def run(scenario: str, ranks: int, directory: Path, limit: float = 30, **env: str):
    """Run a scenario; returns per rank (exit code, last line of stderr, seconds until its end)."""
    started = time.monotonic()
    job = subprocess.Popen([sys.executable, str(WORKER), scenario, str(ranks), str(directory)], text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
                           stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        told = job.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        told = job.communicate()[0]
    ended = {int(rank): (int(code), float(end) - started) for rank, code, end in map(str.split, told.splitlines())}
    results = []
    for rank in range(ranks):
        error = directory / f"error-{rank}"
        text = error.read_text(encoding="utf-8").strip() if error.exists() else ""
        assert rank in ended, f"rank {rank} still ran after {limit} s: {text}"
        code, end = ended[rank]
        results.append((code, text.splitlines()[-1] if text else "", end))
    return results


def names() -> set[str]:
    """What has a name in shared memory, but for semaphores of Python's multiprocessing: other jobs of the machine come
    and go with them, and the transport has none.
    """
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def succeed(scenario: str, ranks: int, directory: Path, **env: str):
    before = names()
    results = run(scenario, ranks, directory, **env)
    assert [result[0] for result in results] == [0] * ranks, results
    assert names() <= before


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_collectives_are_exact(ranks, tmp_path):
    succeed("collectives", ranks, tmp_path)


@pytest.mark.parametrize("scenario, ranks", [("large", 2), ("halves", 2), ("subgroups", 4), ("subgroups", 6),
                                             ("stopped_reader", 3), ("quick_steps", 3),
                                             ("one_forward_one_backward", 4), ("random_messages", 2),
                                             ("random_messages", 5), ("two_hosts", 4), ("refused", 3)])
def test_scenario(scenario, ranks, tmp_path):
    succeed(scenario, ranks, tmp_path)


def test_tensors_of_both_engines(ranks):
    ranks(2).run("tests.runtime.shared_memory_tensors:compare_engines")


@pytest.mark.parametrize("scenario, ranks, killed", [("endless", 4, -9), ("exits_in_ring", 3, 1)])
def test_death_of_a_rank_ends_the_others(scenario, ranks, killed, tmp_path):
    before = names()
    results = run(scenario, ranks, tmp_path)
    assert results[2][0] == killed
    for rank in set(range(ranks)) - {2}:
        code, message, ended = results[rank]
        assert code == 1 and "rank 2 (pid " in message and "died" in message, message
        assert ended - results[2][2] < 5
    assert names() <= before


def test_rank_that_left_is_named(tmp_path):
    (code, message, _), (other, _, _) = run("leaves", 2, tmp_path)
    assert other == 0 and code == 1
    assert "rank 1 (pid " in message and "has left the job while rank 0 waits in barrier #1 of group world" in message


def test_time_limit_names_who_is_missing(tmp_path):
    results = run("absent", 3, tmp_path, MINDSPEED_LLM_COLLECTIVE_TIMEOUT="1")
    assert [result[0] for result in results] == [1, 0, 1]
    assert any("in all_gather #1 of group world; not arrived: rank 1 (" in results[rank][1] for rank in (0, 2))
    assert all(results[rank][2] < results[1][2] for rank in (0, 2))


@pytest.mark.parametrize("scenario, texts", [
    ("different_sizes", ["rank 0, 2: all_reduce float32 sum of 40 bytes (#1)",
                         "rank 1: all_reduce float32 sum of 400000 bytes"]),
    ("different_operations", ["rank 0, 2: all_reduce float32 max of 40 bytes (#1)", "rank 1: barrier of 0 bytes"]),
])
def test_mismatch_is_reported_by_all(scenario, texts, tmp_path):
    for code, message, _ in run(scenario, 3, tmp_path):
        assert code == 1 and all(text in message for text in texts), message


def test_message_of_another_size_is_an_error(tmp_path):
    code, message, _ = run("message_size", 2, tmp_path)[0]
    assert code == 1 and "rank 1 sent 100 bytes where rank 0 expects 64" in message


def test_process_start_times():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    assert roster.start_time(os.getpid()) > 0
    deadline = time.monotonic() + 10
    while roster.start_time(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert roster.start_time(child.pid) is None and Path(f"/proc/{child.pid}").exists(), "a zombie counts as dead"
    child.wait()


def test_build_without_a_compiler_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="CXX=no-such-compiler was not found"):
        build.build()
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("MINDSPEED_LLM_CACHE", str(tmp_path))
    with pytest.raises(build.BuildError, match="false failed: 1"):
        build.build()
    assert not list(tmp_path.rglob("*.so"))
