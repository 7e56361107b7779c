"""From `DataConfig` to data sets, from samples to a batch."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.blending import BlendedDataset, normalized, parse_data_path, samples_per_dataset
from mindspeed_llm.data.gpt_dataset import GPTDataset
from mindspeed_llm.data.indexed_dataset import IndexedDataset
from mindspeed_llm.data.instruction_dataset import InstructionDataset, PackedRows
from mindspeed_llm.data.pairwise_dataset import PairedRows, PairwiseDataset
from mindspeed_llm.data.tokenizer import Tokenizer

SPLIT_NAMES = ("train", "valid", "test")
Dataset = GPTDataset | InstructionDataset | PairwiseDataset | BlendedDataset
KINDS = {"text": IndexedDataset, "instruction": PackedRows, "pairwise": PairedRows}


def collate(samples: Sequence[dict[str, np.ndarray]], pad_id: int = 0) -> dict[str, np.ndarray]:
    """Stack samples; shorter ones (dynamic lengths) are filled up to the longest.

    Returns:
        tokens, labels int64[B,S]; loss_mask float32[B,S]; if any sample is packed also cu_seqlens int32[n+1]: boundaries
        of all segments in the flattened batch [B*S], every row's end among them.
    """
    length = max(sample["tokens"].size for sample in samples)

    def stack(key: str, fill: int, dtype: type) -> np.ndarray:
        result = np.full((len(samples), length), fill, dtype)
        for row, sample in zip(result, samples):
            row[:sample[key].size] = sample[key]
        return result

    batch = {"tokens": stack("tokens", pad_id, np.int64), "labels": stack("labels", 0, np.int64),
             "loss_mask": stack("loss_mask", 0, np.float32)}
    if any("cu_seqlens" in sample for sample in samples):
        bounds = [0]
        for row, sample in enumerate(samples):
            size = sample["tokens"].size
            inner = sample.get("cu_seqlens", np.array([0, size]))[1:]
            ends = np.append(inner, length) if size < length else inner
            bounds += (row * length + ends).tolist()
        batch["cu_seqlens"] = np.array(bounds, np.int32)
    return batch


def parts_of(dataset: Dataset) -> list[GPTDataset | InstructionDataset | PairwiseDataset]:
    """The data sets of which a mixture takes samples, or the one that a data set is."""
    return dataset.datasets if isinstance(dataset, BlendedDataset) else [dataset]


def parse_split(split: str, count: int) -> list[tuple[int, int] | None]:
    """`--split 98,1,1` to the (first, last) ranges of `count` documents for train, valid, test; None for a weight of 0.

    Raises:
        UserError: not up to three numbers >= 0 with a positive sum.
    """
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    shares += [0.0] * (3 - len(shares))
    if len(shares) != 3 or not all(0 <= share < float("inf") for share in shares) or sum(shares) == 0:
        raise UserError(f"--split {split}: give the shares of train, valid, test, such as 98,1,1 or 100,0,0")
    ends = list(accumulate(normalized(shares), initial=0))  # in floating point, as Megatron rounds them
    return [(round(first * count), round(last * count)) if share else None
            for share, first, last in zip(shares, ends, ends[1:])]


def build_train_valid_test(data: DataConfig, *, seq_length: int, seed: int, num_samples: tuple[int, int, int],
                           kind: str = "text", pad_id: int | None = None, tokenizer: Tokenizer | None = None
                           ) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    """The three data sets of `data.data_path` and `data.split`.

    Args:
        data: data_path, split, and for instruction data no_pad_to_seq_lengths and pad_to_multiple_of.
        num_samples: samples to provide for train, valid, test (iterations times global batch size).
        kind: of `KINDS`: one indexed data set per path, or rows of `<prefix>_packed_*_document`.
        pad_id, tokenizer: where the padding token comes from (one of the two, for instruction data).

    Returns:
        data sets of exactly that many samples; None where the split or the number is 0.

    Raises:
        UserError, FileNotFoundError: see `parse_data_path`, `parse_split`, `IndexedDataset`.
    """
    prefixes, weights = parse_data_path(data.data_path)
    if kind == "instruction" and pad_id is None:
        if tokenizer is None:
            raise ValueError("instruction data needs pad_id or tokenizer")
        pad_id = tokenizer.pad_id
    multiple = data.pad_to_multiple_of if data.no_pad_to_seq_lengths else None
    sources = [KINDS[kind](prefix) for prefix in prefixes]
    splits = [parse_split(data.split, len(source)) for source in sources]

    for part, name in enumerate(SPLIT_NAMES):
        for source, split in zip(sources, splits):
            if num_samples[part] > 0 and split[part] and split[part][0] == split[part][1]:
                raise UserError(f"--split {data.split}: of the {len(source)} documents of {source.prefix} nothing is "
                                f"left for {name}: give it a larger share, or 0 to go without")

    def build(source: IndexedDataset | PackedRows | PairedRows, selection: tuple[int, int], count: int | None
              ) -> Dataset:
        if kind == "instruction":
            return InstructionDataset(source, selection, count, seq_length, seed, pad_id, multiple)
        if kind == "pairwise":
            return PairwiseDataset(source, selection, count, seq_length, seed)
        return GPTDataset(source, selection, count, seq_length, seed, data.reset_attention_mask)

    return tuple(
        _build_one(build, sources, [split[part] for split in splits], weights, num_samples[part]) for part in range(3)
    )


def _build_one(build: Callable, sources: list, selections: list, weights: list[float] | None, count: int
               ) -> Dataset | None:
    if count <= 0 or selections[0] is None:
        return None
    if len(sources) == 1 and weights is None:
        return build(sources[0], selections[0], count)
    if weights is None:  # paths without weights: each once, in proportion, as long as that suffices
        datasets = [build(source, selection, None) for source, selection in zip(sources, selections)]
        weights = [len(dataset) for dataset in datasets]
        if count <= sum(weights):
            return BlendedDataset(datasets, weights, count)
        weights = normalized(weights)
    datasets = [build(source, selection, wanted) for source, selection, wanted
                in zip(sources, selections, samples_per_dataset(weights, count))]
    return BlendedDataset(datasets, weights, count)
