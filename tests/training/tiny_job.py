"""Flags and data of a tiny training job."""

import numpy as np

from mindspeed_llm.data.indexed_dataset import IndexedDatasetBuilder

SHAPE = ("--num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4 --group-query-attention "
         "--num-query-groups 2 --kv-channels 8 --padded-vocab-size 320 --add-qkv-bias --disable-bias-linear --swiglu "
         "--normalization RMSNorm --position-embedding-type rope --untie-embeddings-and-output-weights "
         "--max-position-embeddings 32 --seq-length 32").split()
SCHEDULE = ("--micro-batch-size 2 --global-batch-size 4 --train-iters 6 --lr 1e-2 --lr-decay-style cosine --min-lr 1e-3 "
            "--lr-warmup-fraction 0.2 --weight-decay 0.1 --clip-grad 1.0 --eval-iters 0").split()


def write_ramps(prefix):
    """An indexed data set of 40 documents that count up by one, 90 ids each."""
    write_documents(prefix, [[(start + step) % 256 for step in range(90)] for start in range(40)])


def write_documents(prefix, documents, dtype=np.int32):
    """An indexed data set with one sequence per document."""
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            builder.add_item(document)
            builder.end_document()
        builder.finalize()


def write_pairs(prefix, pairs=12):
    """Pairs: prompts of 5 ids, of which the chosen answer repeats the last, and the rejected one counts down."""
    rng = np.random.default_rng(1)
    columns = {name: [] for name in ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")}
    for _ in range(pairs):
        prompt = rng.integers(20, 200, 5)
        for answer, ids in (("chosen", np.full(rng.integers(2, 7), prompt[-1])),
                            ("rejected", prompt[-1] - 1 - np.arange(rng.integers(2, 7)))):
            columns[f"{answer}_input_ids"].append(np.concatenate([prompt, ids]))
            columns[f"{answer}_labels"].append(np.concatenate([np.full(5, -100), ids]))
    for name, documents in columns.items():
        write_documents(f"{prefix}_packed_{name}_document", documents)
    return str(prefix)
