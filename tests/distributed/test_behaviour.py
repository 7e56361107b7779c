"""What four ranks do together beside being right: agree about bad gradients, overlap, evaluate, talk between hosts."""

import json
from pathlib import Path

import pytest

from tests.distributed.launch import run_msrun
from tests.golden.reference import Golden


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("behaviour")
    job = run_msrun(Path(__file__).with_name("behaviour_cases.py"), 4, folder, timeout=200)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_engine_between_hosts_is_exact(ranks):
    assert [rank["mccl"] for rank in ranks] == [[]] * 4


def test_bad_gradient_is_named_and_skipped_everywhere(ranks):
    assert {rank["bad_gradient"]["name"] for rank in ranks} == {"decoder.layers.3.mlp.linear_fc2.weight (rank 3)"}
    for rank in ranks:
        seen = rank["bad_gradient"]
        assert not seen["updated"] and seen["unchanged"] and seen["steps"] == 0


def test_buckets_start_during_backward(ranks):
    for rank in ranks:
        assert rank["early_buckets"]["started"] == rank["early_buckets"]["early"] > 2


def test_interleaved_evaluation(ranks):
    for rank in ranks:
        assert rank["evaluation"]["forward_only"] == pytest.approx(rank["evaluation"]["training"], rel=1e-6)
        assert rank["evaluation"]["training"] == pytest.approx(float(Golden()["loss"]), rel=1e-6)
