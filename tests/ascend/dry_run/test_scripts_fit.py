"""The documented training scripts at full size, flags unchanged, on every pipeline stage of a simulated NPU: they fit.

Minutes, hence under --full. The peaks are those of docs/ascend.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SCRIPTS = ROOT / "examples" / "mindspore" / "glm4"
GIB = 2**30
# Of 64 GiB the pool has about 60, and HCCL's buffers come on top of what lives in it.
LIVE, RESERVED = 54 * GIB, 60 * GIB


@pytest.mark.full   # a full-size iteration takes ten seconds
@pytest.mark.parametrize("script, ranks, rank", [
    *((script, 8, rank) for rank in (0, 4) for script in ("pretrain_glm4_9b_4k", "pretrain_glm4_9b_8k",
                                                          "pretrain_glm4_9b_32k", "tune_glm4_9b_32k_full", "dpo_glm4_9b_8k")),
    *((script, 8, 0) for script in ("tune_glm4_9b_4k_lora", "tune_glm4_9b_32k_lora")),
    ("pretrain_glm4_32b", 16, 4)])  # of its eight stages, the third keeps most
def test_a_stage_of_a_script_fits(script, ranks, rank, simulation, tmp_path):
    flags = tmp_path / "flags"
    environment = {**os.environ, "PATH": f"{HERE / 'bin'}{os.pathsep}{os.environ['PATH']}", "DRY_RUN_FLAGS": str(flags),
                   "CKPT_LOAD_DIR": "", "REF_MODEL_DIR": "unread", "LOG_ROOT": str(tmp_path / "logs")}
    subprocess.run(["bash", SCRIPTS / f"{script}_ms.sh"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([sys.executable, HERE / "one_iteration.py", *flags.read_text().splitlines()], cwd=tmp_path,
                          env=simulation | {"RANK_SIZE": str(ranks), "RANK_ID": str(rank)}, capture_output=True, text=True,
                          check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    print(f"{script}, rank {rank}: live {peak['live'] / GIB:.1f}, reserved {peak['reserved'] / GIB:.1f} GiB")
    assert 20 * GIB < peak["live"] <= LIVE and peak["reserved"] <= RESERVED, peak
