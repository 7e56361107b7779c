"""The verdict, and the command line end to end, without the framework."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.planner import advice, report, run
from mindspeed_llm.tasks.planner.memory import GIB
from planned import GLM4_9B, TINY, flags, job, mesh

ROOT = Path(__file__).parents[2]


def test_recomputation_comes_first_and_of_as_few_layers_as_needed():
    plan = job(GLM4_9B, mesh(tp=2, pp=2), 8)
    limit = advice.peak(plan) - 1
    change = advice.smallest_change(plan, limit)
    assert change.flags == ("--recompute-granularity full", "--recompute-method block", "--recompute-num-layers 1")
    assert advice.peak(change.job) <= limit
    harder = advice.smallest_change(plan, advice.peak(change.job) - 1)
    assert harder.flags[2] == "--recompute-num-layers 2"


def test_tensor_parallelism_when_recomputation_is_not_enough():
    plan = job(GLM4_9B, f"{mesh(tp=2, pp=2)} --recompute-granularity full --recompute-method uniform "
                        "--recompute-num-layers 1", 8)
    change = advice.smallest_change(plan, 28 * GIB)
    assert change.flags == ("--tensor-model-parallel-size 4",)
    assert change.job.tp == 4 and change.job.dp == 1 and advice.peak(change.job) <= 28 * GIB


def test_changes_that_the_job_would_refuse_are_not_proposed():
    # A sequence of 66 tokens can be cut in 2, as sequence parallelism does, but not in the 4 pieces of a ring of 2.
    plan = job(TINY, "--seq-length 66 --max-position-embeddings 66", 8)
    jobs = [change.job for change in advice.candidates(plan)]
    assert {other.tp for other in jobs} == {1, 2} and {other.cp for other in jobs} == {1}
    assert {other.pp for other in jobs} == {1, 2, 4, 8}


def test_micro_batch_is_the_last_resort_before_mixing():
    plan = job(TINY, "--micro-batch-size 4 --seq-length 4096 --max-position-embeddings 4096 "
                     "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1")
    change = advice.smallest_change(plan, int(0.8 * advice.peak(plan)))
    assert change.flags == ("--micro-batch-size 3",) or change.flags == ("--micro-batch-size 2",)


def test_verdicts():
    plan = job()
    assert report.verdict(plan, 10 * GIB, 64, None, 0) == "verdict: fits, 10.0 of 64 GiB"
    assert "tight" in report.verdict(plan, 60 * GIB, 64, None, 0)
    assert "use more ranks" in report.verdict(plan, 70 * GIB, 64, None, 0)
    change = advice.Change(("--micro-batch-size 1",), plan)
    assert report.verdict(plan, 70 * GIB, 64, change, 50 * GIB).endswith("(50.0 GiB): --micro-batch-size 1")


@pytest.fixture
def dry_run(tmp_path):
    """Runs pretrain_gpt.py where importing the framework fails."""
    (tmp_path / "mindspore.py").write_text("raise ImportError('a dry run must do without')\n", encoding="utf-8")

    def start(*words, **variables):
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK_SIZE", "DEVICE_TARGET")}
        return subprocess.run([sys.executable, str(ROOT / "pretrain_gpt.py"), *words], capture_output=True, text=True,
                              cwd=tmp_path, timeout=60, check=False,
                              env={**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **variables})
    return start


def test_dry_run_prints_the_plan_without_framework_devices_or_data(dry_run):
    done = dry_run(*flags(GLM4_9B, mesh(tp=2, pp=2)), RANK_SIZE="8")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "plan for 8 ranks on Ascend = tensor 2 x context 1 x data 2 x pipeline 2, sequence parallel" in out
    for expected in ("parameters (millions)", "gradients (fp32)", "optimizer state (fp32)", "activations by recompute",
                     "sent per rank and step", "pipeline bubble: 3.0% of a step"):
        assert expected in out
    assert out.splitlines()[-1].startswith("verdict: fits, ")


def test_dry_run_names_the_change_that_fits(dry_run):
    done = dry_run(*flags(GLM4_9B, mesh(tp=2, pp=2) + " --device-memory-gb 32"), RANK_SIZE="8")
    assert done.returncode == 0, done.stderr
    assert "of 30 GiB; smallest change that does" in done.stdout.splitlines()[-1]
    assert "--tensor-model-parallel-size" in done.stdout.splitlines()[-1]


def test_dry_run_without_ranks_plans_one_replica(dry_run):
    done = dry_run(*flags(TINY, mesh(tp=2, pp=2)))
    assert "RANK_SIZE is not set: planning for one replica, 4 ranks" in done.stdout


def test_dry_run_refuses_what_the_job_would_refuse(dry_run):
    done = dry_run(*flags(TINY, mesh(tp=2, pp=2)), RANK_SIZE="6")
    assert done.returncode == 1 and done.stderr.startswith("error: world size (6) must be a multiple of")
    done = dry_run(*flags(TINY), RANK_SIZE="eight")
    assert done.returncode == 1 and "RANK_SIZE (eight)" in done.stderr


def test_target_must_be_known(monkeypatch):
    monkeypatch.setenv("DEVICE_TARGET", "GPU")
    with pytest.raises(UserError, match="DEVICE_TARGET"):
        run(job().configs)
