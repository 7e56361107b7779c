"""The plans printed in docs/planner.md are what the planner says now."""

from pathlib import Path

import pytest

from mindspeed_llm.tasks.planner import run
from planned import GLM4_9B, job, mesh

PAGE = Path(__file__).parents[2] / "docs" / "planner.md"
LONG = "--seq-length 32768 --max-position-embeddings 32768"
TUNE = ("--micro-batch-size 2 --num-layer-list 22,18 --recompute-granularity full --recompute-method block "
        "--recompute-num-layers 22")


PRETRAIN = f"{LONG} {mesh(2, 2, 2)} --recompute-granularity full --recompute-method block --recompute-num-layers 12"
PLANS = [(f"--seq-length 4096 {mesh(2, 2)}", 8), (mesh(2, 2), 8), (PRETRAIN, 8), (PRETRAIN, 16),
         (f"{LONG} {TUNE} {mesh(2, 2)}", 8)]


@pytest.mark.parametrize("flags, ranks", PLANS, ids=["4K 1x8", "8K 1x8", "32K 1x8", "32K 2x8", "tune 32K 1x8"])
def test_page_holds_the_plan(flags, ranks, monkeypatch, capsys):
    monkeypatch.setenv("RANK_SIZE", str(ranks))
    monkeypatch.setenv("DEVICE_TARGET", "Ascend")
    run(job(GLM4_9B, flags, ranks).configs)
    printed = capsys.readouterr().out.strip()
    assert f"```\n{printed}\n```" in PAGE.read_text(encoding="utf-8"), f"docs/planner.md is out of date: now\n{printed}"
