"""A simulated NPU for the tests of this directory."""

import os
from pathlib import Path

import pytest

import stubs

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def simulation(tmp_path_factory):
    """Variables of a process with a simulated NPU; skips where there can be none."""
    try:
        variables = stubs.environment(tmp_path_factory.mktemp("stubs"))
    except RuntimeError as reason:
        pytest.skip(f"no simulated NPU: {reason}")
    paths = [variables.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")), str(ROOT)]
    dropped = ("DEVICE_TARGET", "MINDSPEED_LLM_KERNELS", "RANK_SIZE", "RANK_ID", "DEVICE_ID")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, **variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
