"""One launch per world size measures every row of the parity tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launch import run_msrun, worker_environment

CASES = Path(__file__).with_name("parity_cases.py")


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Folder of the records that golden.npz lacks, made in one process."""
    folder = tmp_path_factory.mktemp("parity")
    done = subprocess.run([sys.executable, str(CASES), "records", str(folder)], env=worker_environment(),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def table(records):
    """`table(world)`: per rank what it measured, `{row or planted bug: errors}`; one launch per size.

    A launch that failed is not tried again for the next row.
    """
    measured = {}

    def measure(world: int) -> list[dict[str, dict]]:
        if world not in measured:
            measured[world] = None
            job = run_msrun(CASES, world, "rows", records, timeout=400)
            assert job.returncode == 0, job.stdout[-3000:] + job.stderr
            measured[world] = [json.loads((records / f"{world}_{rank}.json").read_text()) for rank in range(world)]
        assert measured[world] is not None, f"the launch of {world} ranks failed: see the first row of that size"
        return measured[world]

    return measure
