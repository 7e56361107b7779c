"""The 32K scripts, shorter: two context-parallel ranks train as one process does, all other flags as they are."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.distributed.launch import free_port, script_environment
from tests.scripts.tiny_data import write_packed, write_text

SCRIPTS = Path(__file__).parents[2] / "examples" / "mindspore" / "glm4"
LENGTH, ITERATIONS = 512, 2


def train(script, folder, data, tokenizer, batch, context):
    """[(loss, gradient norm)] of every iteration on `context` ranks."""
    folder.mkdir()
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), "--seq-length", str(LENGTH), "--max-position-embeddings", str(LENGTH),
         "--global-batch-size", str(batch), "--train-iters", str(ITERATIONS), "--lr", "1e-3"],
        cwd=folder, text=True, timeout=300, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=script_environment(NPUS_PER_NODE=context, TP=1, PP=1, CP=context, MASTER_PORT=free_port(), CKPT_LOAD_DIR="",
                               CKPT_SAVE_DIR=folder / "saved", DATA_PATH=data, TOKENIZER_PATH=tokenizer))
    assert done.returncode == 0, done.stdout[-3000:]
    assert context == 1 or f"context {context}" in done.stdout
    assert f"successfully saved checkpoint from iteration {ITERATIONS}" in done.stdout
    found = re.findall(r"iteration +\d+/.* lm loss: (\S+) \|.* grad norm: (\S+) \|", done.stdout)
    return [tuple(map(float, pair)) for pair in found]


CASES = {"pretrain_glm4_9b_32k_ms.sh": (1, False), "tune_glm4_9b_32k_full_ms.sh": (2, True)}    # batch, packed


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer_dir):
    """`{(script, ranks): future of what train gives}`; several at a time, as starting them is mostly waiting."""
    folder, submitted = tmp_path_factory.mktemp("long"), {}
    data = {True: write_packed(folder, 4, LENGTH), False: write_text(folder, 4 * LENGTH)}
    with ThreadPoolExecutor(3) as jobs:
        for script, (batch, packed) in CASES.items():
            for ranks in (2, 1):
                submitted[script, ranks] = jobs.submit(train, script, folder / f"{script}-{ranks}", data[packed],
                                                       tokenizer_dir, batch, ranks)
        yield submitted


@pytest.mark.parametrize("script", CASES)
def test_context_parallel_ranks_train_as_one_process(script, runs):
    two, one = (runs[script, ranks].result() for ranks in (2, 1))
    assert len(one) == len(two) == ITERATIONS and one[0][0] > one[1][0] > 0
    for (loss, norm), (expected_loss, expected_norm) in zip(two, one, strict=True):
        assert loss == pytest.approx(expected_loss, rel=2e-5)
        assert norm == pytest.approx(expected_norm, rel=2e-5, abs=1e-3)  # three decimals in the log
