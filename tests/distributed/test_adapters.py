"""Adapters saved under one layout go on under another."""

import numpy as np
import pytest

from mindspeed_llm.checkpoint import open_checkpoint
from tests.distributed.adapter_cases import NEW

RUN = "tests.distributed.adapter_cases:losses"
GO_ON = "--load {0}/base --lora-load {0}/half --lora-ckpt-filter"


def test_any_layout_goes_on_with_adapters(ranks, tmp_path):
    folder = str(tmp_path)
    one, four = (lambda flags, size=size: ranks(size).run(RUN, folder, flags)[0] for size in (1, 4))
    one("--train-iters 1 --save {0}/base")
    straight = one(f"{NEW} --save {{0}}/straight")
    first = one(f"{NEW} --exit-interval 3 --save {{0}}/half")
    layouts = ("--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2",
               "--tensor-model-parallel-size 4 --recompute-granularity selective",
               "--context-parallel-size 2 --use-distributed-optimizer")
    for number, layout in enumerate(layouts):
        assert first + four(f"{GO_ON} {layout} --save {{0}}/{number}") == pytest.approx(straight, rel=2e-5)
        with open_checkpoint(tmp_path / "straight") as one_process, open_checkpoint(tmp_path / f"{number}") as ranks_made:
            assert set(one_process.names()) == set(ranks_made.names())
            for name in one_process.names():
                expected, found = (saved.read_global(name).array for saved in (one_process, ranks_made))
                assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected), name
