"""Rows of the parity tables, measured on resident ranks: each once a session, when a test asks for it."""

import pytest

from tests.distributed.rows import Row

CASES = "tests.distributed.parity_cases:"


@pytest.fixture(scope="session")
def records(ranks, tmp_path_factory):
    """Folder of the records that golden.npz lacks, made by one process."""
    folder = tmp_path_factory.mktemp("parity")
    ranks(1).run(f"{CASES}write_records", str(folder))
    return folder


@pytest.fixture(scope="session")
def half_records(ranks, tmp_path_factory):
    """`half_records(dtype)`: folder with the record of one process in that dtype."""
    folder, made = tmp_path_factory.mktemp("half_parity"), set()

    def make(dtype: str):
        if dtype not in made:
            ranks(1).run(f"{CASES}write_half_record", dtype, str(folder))
            made.add(dtype)
        return folder
    return make


@pytest.fixture(scope="session")
def half_row(ranks, half_records):
    """`half_row(row, order)`: per rank the distances of a half-precision row; `order` as for Trial."""
    measured = {}

    def measure(row: Row, order: int = 1) -> list[dict]:
        if (row.name, order) not in measured:
            folder = str(half_records(row.dtype))
            measured[row.name, order] = ranks(row.world).run(f"{CASES}half_row", row.to_json(), folder, order)
        return measured[row.name, order]
    return measure
