"""`--eval-generate`, `--eval-task` and `--profile` under parallel layouts: samples and accuracies as from one process,
all ranks in one trace, and a training that does not notice.
"""

import json

import pytest

from tests.distributed.sample_cases import write_job

SAMPLES = "--eval-generate 3 --eval-task mmlu --eval-task-interval 3 --evaluation-batch-size 2 --num-shots 1"
TP, PP, CP = (f"--{kind}-parallel-size 2" for kind in ("tensor-model", "pipeline-model", "context"))
LAYOUTS = {
    "TP2 PP2 sequence parallel, virtual": f"{TP} {PP} --sequence-parallel --num-layers-per-virtual-pipeline-stage 1",
    "CP2 DP2 overlap, recompute": f"{CP} --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
                                  "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
}


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_job(folder)
    return lambda world, flags: ranks(world).run("tests.distributed.sample_cases:run", str(folder), flags)


def profiled(folder):
    return (f"--profile --profile-ranks -1 --profile-step-start 2 --profile-step-end 4 --profile-level level1 "
            f"--profile-save-path {folder}")


@pytest.fixture(scope="module")
def alone(run):
    return run(1, SAMPLES)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_are_those_of_one_process_and_training_keeps_its_bits(layout, run, alone, tmp_path):
    shown, silent = run(4, f"{LAYOUTS[layout]} {SAMPLES} {profiled(tmp_path)}"), run(4, LAYOUTS[layout])
    assert len(alone["samples"]) == 6 and len(set(alone["samples"])) > 3
    assert [questions for questions, _ in alone["scores"]] == [5]
    for with_samples, without in zip(shown, silent, strict=True):
        assert with_samples["samples"] == alone["samples"] and without["samples"] == []
        assert with_samples["scores"] == alone["scores"] and without["scores"] == []
        assert with_samples["losses"] == without["losses"] and len(without["losses"]) == 4
        assert with_samples["final"] == without["final"]
    events = [event for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if event["ph"] == "X"]
    for rank in range(4):
        names = [event["name"] for event in events if event["pid"] == rank]
        assert names.count("iteration") == 2
        assert {"forward", "backward", "linear_wgrad", "all_gather", "optimizer step"} < set(names)
