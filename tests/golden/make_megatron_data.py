"""Record what megatron-core's data classes write and read into megatron_data.npz; the package is needed for this alone.

    pip download --no-deps megatron-core==0.16.1 && unzip megatron_core-*.whl -d megatron
    PYTHONPATH=megatron:. python tests/golden/make_megatron_data.py      # with torch and numpy<2

Of the files it records the bytes that `IndexedDatasetBuilder` writes, of samples the S + 1 tokens of each, in the order
of `GPTDataset`, and of `BlendedDataset`, which the package's own builder makes from weights and sizes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("megatron_data.npz")
SEQ = 16
SIZES = {"a": [13, 0, 40, 7, 1, 16, 17, 55, 3, 29, 31, 64, 2], "b": [90, 5, 33, 21, 8, 70], "c": [12] * 25}
GPT_CASES = [(split, count, seed) for split in ("100,0,0", "70,20,10") for count in (1, 12, 17, 18, 30, 31, 32, 50, 99)
             for seed in (1, 1234)]
BLEND_CASES = [
    (("0.3", "a", "0.7", "b"), 40), (("1", "a", "1", "b", "1", "c"), 60), (("0.2", "a", "0.1", "b", "3.7", "c"), 100),
    (("0.9", "c", "0.1", "a"), 7), (("a", "b", "c"), 20), (("a", "c"), 35), (("0.33", "b", "0.33", "a", "0.34", "c"), 99),
]


def documents(name: str) -> list[list[int]]:
    """The documents of a data set: tokens that tell where they come from."""
    first = {"a": 0, "b": 20_000, "c": 40_000}[name]
    return [[first + 100 * number + place for place in range(size)] for number, size in enumerate(SIZES[name])]


def write(folder: Path) -> None:
    """All data sets in Megatron's own hand; of "c" a document has up to three sequences."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    for name in SIZES:
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=np.int32 if name == "a" else np.uint16)
        for number, tokens in enumerate(documents(name)):
            builder.add_item(torch.tensor(tokens, dtype=torch.int64))
            if name != "c" or number % 3 == 0:
                builder.end_document()
        builder.finalize(str(folder / f"{name}.idx"))


def build(paths: list[str], weights: list[float] | None, split: str, count: int, seed: int) -> object:
    """The training data set of megatron-core for these flags."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        unique_identifiers = {}
        eod, pad, vocab_size = 65000, 65001, 65002

    config = GPTDatasetConfig(random_seed=seed, sequence_length=SEQ, blend=(paths, weights), split=split,
                              tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False,
                              eod_mask_loss=False, create_attention_mask=False)
    return BlendedMegatronDatasetBuilder(GPTDataset, (count, 0, 0), lambda: True, config).build()[0]


def spans(dataset: object, count: int) -> np.ndarray:
    """int32[n, S + 1]: the tokens of the first samples, of all if there are fewer."""
    samples = [dataset[index] for index in range(min(count, len(dataset)))]
    return np.array([[*sample["tokens"].tolist(), int(sample["labels"][-1])] for sample in samples], np.int32)


def main() -> None:
    """Write the record."""
    record = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        for file in sorted(folder.iterdir()):
            record[f"file/{file.name}"] = np.frombuffer(file.read_bytes(), np.uint8)
        for split, count, seed in GPT_CASES:
            dataset = build([str(folder / "a")], None, split, count, seed)
            record[f"gpt/{split}/{count}/{seed}"] = spans(dataset, count)
        for words, count in BLEND_CASES:
            weights = [float(word) for word in words[0::2]] if words[0] not in SIZES else None
            paths = [str(folder / word) for word in words if word in SIZES]
            record[f"blend/{json.dumps(words)}/{count}"] = spans(build(paths, weights, "100,0,0", count, 1234), count)
    np.savez_compressed(GOLDEN, **record)
    print({key: value.shape for key, value in record.items()})


if __name__ == "__main__":
    main()
