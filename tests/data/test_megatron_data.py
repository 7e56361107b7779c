"""Files, samples and their order are megatron-core's: compared with what the package wrote and read (tests/golden)."""

import json

import numpy as np
import pytest

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.batch import build_train_valid_test
from mindspeed_llm.data.gpt_dataset import GPTDataset
from mindspeed_llm.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, merge_datasets
from tests.golden.make_megatron_data import BLEND_CASES, GOLDEN, GPT_CASES, SEQ, SIZES, documents


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as record:
        return dict(record)


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """Megatron's own files."""
    path = tmp_path_factory.mktemp("megatron")
    for key, content in golden.items():
        if key.startswith("file/"):
            (path / key.removeprefix("file/")).write_bytes(content.tobytes())
    return path


@pytest.mark.parametrize("name", SIZES)
def test_files_are_megatrons_to_the_byte(golden, folder, tmp_path, name):
    dtype = np.int32 if name == "a" else np.uint16
    with IndexedDatasetBuilder(tmp_path / name, dtype) as builder:
        for number, tokens in enumerate(documents(name)):
            builder.add_item(tokens)
            if name != "c" or number % 3 == 0:
                builder.end_document()
        builder.finalize()
    merge_datasets([folder / name], tmp_path / "merged")
    for end in ("bin", "idx"):
        assert (tmp_path / f"{name}.{end}").read_bytes() == golden[f"file/{name}.{end}"].tobytes()
        assert (tmp_path / f"merged.{end}").read_bytes() == golden[f"file/{name}.{end}"].tobytes()
    read = IndexedDataset(folder / name)
    assert [read[number].tolist() for number in range(len(read))] == documents(name)


def spans(words, folder, split, count, seed):
    paths = tuple(str(folder / word) if word in SIZES else word for word in words)
    dataset = build_train_valid_test(DataConfig(data_path=paths, split=split), seq_length=SEQ, seed=seed,
                                     num_samples=(count, 0, 0), kind="text")[0]
    samples = [dataset[index] for index in range(len(dataset))]
    return np.array([[*sample["tokens"], sample["labels"][-1]] for sample in samples])


def test_samples_come_in_megatrons_order(golden, folder):
    for split, count, seed in GPT_CASES:
        assert np.array_equal(spans(["a"], folder, split, count, seed), golden[f"gpt/{split}/{count}/{seed}"]), (
            split, count, seed)


def test_blends_come_in_megatrons_order(golden, folder):
    for words, count in BLEND_CASES:
        assert np.array_equal(spans(words, folder, "100,0,0", count, 1234),
                              golden[f"blend/{json.dumps(words)}/{count}"]), (words, count)


def mutate(content, rng):
    """One damage: a few bytes changed, a piece cut out or put in, the end lost."""
    content = bytearray(content)
    place = int(rng.integers(len(content)))
    kind = int(rng.integers(4))
    if kind == 0:
        for _ in range(int(rng.integers(1, 5))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
    elif kind == 1:
        del content[place:place + int(rng.integers(1, 20))]
    elif kind == 2:
        content[place:place] = rng.bytes(int(rng.integers(1, 20)))
    else:
        content[place:place + 8] = int(rng.choice([-1, 0, 2 ** 31, 2 ** 62, -2 ** 63])).to_bytes(8, "little", signed=True)
    return bytes(content)


@pytest.mark.parametrize("runs", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_damaged_files_are_refused_or_read_within_bounds(folder, tmp_path, runs):
    """Whatever the bytes: a UserError that names a file, or sequences that lie in the .bin."""
    rng = np.random.default_rng(7)
    good = {end: (folder / f"c.{end}").read_bytes() for end in ("idx", "bin")}
    refused = 0
    for number in range(runs):
        end = ("idx", "idx", "idx", "bin")[number % 4]
        for name, content in good.items():
            (tmp_path / f"d.{name}").write_bytes(mutate(content, rng) if name == end else content)
        try:
            data = IndexedDataset(tmp_path / "d")
            assert sum(data[index].size for index in range(len(data))) * data.dtype.itemsize == len(
                (tmp_path / "d.bin").read_bytes())
        except UserError as error:
            assert str(tmp_path / "d") in str(error)
            refused += 1
            continue
        try:
            dataset = GPTDataset(data, (0, len(data)), 5, SEQ, 1)
            assert all(dataset[index]["tokens"].size == SEQ for index in range(5))
        except UserError as error:
            assert "hold no tokens" in str(error)
    assert runs / 2 < refused < runs
