"""Data of the script tests: what the preprocessing scripts would write, without running them."""

import numpy as np

from tests.training.tiny_job import write_documents

IDS = 256  # the single bytes of any tokenizer of the ChatGLM layout


def write_text(folder, tokens):
    """Pre-training data with documents of several hundred ids, `tokens` in all; returns its prefix."""
    draws = np.random.default_rng(1)
    sizes = draws.integers(200, 900, tokens // 500)
    write_documents(str(folder / "text_document"), [draws.integers(0, IDS, size) for size in sizes])
    return str(folder / "text_document")


def write_packed(folder, rows, length):
    """Instruction data as `--pack` leaves it: rows of `length` ids with three conversations and a padded end each, loss
    on the second half of a conversation; returns its prefix.
    """
    draws = np.random.default_rng(2)
    parts = {"input_ids": [], "attention_mask": [], "labels": []}
    for _ in range(rows):
        borders = np.sort(draws.choice(np.arange(2, length - 8), 2, replace=False)).tolist() + [length - 5]
        ids, mask = draws.integers(0, IDS, length), np.zeros(length, np.int64)
        labels = np.full(length, -100)
        for number, (start, stop) in enumerate(zip([0, *borders[:-1]], borders, strict=True), 1):
            mask[start:stop] = number
            labels[(start + stop) // 2:stop] = ids[(start + stop) // 2:stop]
        for name, array in (("input_ids", ids), ("attention_mask", mask), ("labels", labels)):
            parts[name].append(array)
    for name, arrays in parts.items():
        write_documents(str(folder / f"packed_packed_{name}_document"), arrays)
    return str(folder / "packed")
