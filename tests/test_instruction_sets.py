"""At every instruction set up to the machine's own: the kernel tests, one bf16 training, one bf16 parity launch.

The machine's own set is the one at which all other tests run, these among them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instruction_sets import INSTRUCTION_SETS

ROOT = Path(__file__).parents[1]
PARITY = "tests/distributed/test_half_precision.py::test_within_the_limits_of_rounding"
# What test_cpu_settings.py and test_cpu_decode.py check, they check at every instruction set by themselves.
KERNELS = [f"tests/kernels/test_cpu_{part}.py" for part in ("attention", "linear", "optimizer", "rows")]
CHECKED = [*KERNELS, "tests/kernels/test_cpu_settings.py::test_the_environment_chooses_the_instruction_set",
           "tests/training/test_training.py::test_bf16_follows_fp32",
           *(f"{PARITY}[2-{row}_bf16]" for row in ("pp2", "tp2_sp", "cp2_ulysses"))]
LEAST = 250  # of these tests that pass: a run that finds or does little must not look right
OWN = [each.name for each in INSTRUCTION_SETS if not each.missing()][-1:]
OTHERS = [each for each in INSTRUCTION_SETS if each.name not in OWN]


@pytest.mark.parametrize("each", OTHERS, ids=lambda each: each.name)
def test_kernels_training_and_parity(each, tmp_path):
    if each.missing():
        pytest.skip(f"this processor has no {each.name}: it lacks {', '.join(sorted(each.missing()))}")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "sub"),
             *CHECKED]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(words, cwd=ROOT, env={**plain, **each.environment()}, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= LEAST, done.stdout[-2000:]
    print(f"{each.name}: {done.stdout.splitlines()[-1]}")


def test_the_sets_are_told_apart():
    """Each has all that the one before needs, and more or another oneDNN limit."""
    for older, newer in zip(INSTRUCTION_SETS, INSTRUCTION_SETS[1:]):
        assert older.flags - {"sse4_1"} <= newer.flags
        assert older.environment() != newer.environment()
