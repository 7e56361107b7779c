"""Cases of a RankPool: rows of the parity tables, with and without planted bugs, and the records they are held to."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parameters
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.families import LAYOUTS
from tests.distributed import half_precision
from tests.distributed.planted import with_bug
from tests.distributed.rows import Row
from tests.golden.reference import Golden
from tests.golden.trial import Trial

BUG_STEPS = 2  # of AdamW with a planted bug


@dataclass(frozen=True)
class Variant:
    """A record that golden.npz is not: where it starts, changes of the model, of the batch, and options that the single
    process needs.
    """

    of: Callable[[], Golden] = Golden
    model: dict = field(default_factory=dict)
    batch: dict = field(default_factory=dict)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


PACKED = {"cu_seqlens": np.array([0, 3, 7, 13, 16], np.int32)}
VARIANTS = {
    "tied": Variant(model={"untie_embeddings_and_output_weights": False}),
    "post_norm": Variant(model={"post_norm": True}),
    "deep": Variant(model={"num_layers": 8}),
    "noop": Variant(model={"num_layers": 8}, parallel=ParallelConfig(noop_layers=(2, 3, 6))),
    "packed": Variant(batch=PACKED),
    "lora_packed": Variant(Golden.of_lora, batch=PACKED),
    "lengths": Variant(batch={"lengths": np.array([16, 8, 12, 4])}),
}


def record_of(row: Row, folder: Path) -> Golden:
    """The record of a row: golden.npz, one of a family, or one that `write_records` made."""
    if row.record in LAYOUTS:
        return Golden.of_family(row.record, row.parallel.noop_layers)
    if row.record == "lora":
        return Golden.of_lora()
    return Golden() if row.record == "golden" else Golden(folder / f"{row.record}.npz")


def write_records(folder: str) -> None:
    """For one process: variants of the golden model that Hugging Face's GLM does not have, measured by the same code.

    That one process equals Hugging Face on the golden model is tests/core/test_golden.py's subject.
    """
    folder = Path(folder)
    for name, variant in VARIANTS.items():
        golden = variant.of()
        model = replace(golden.model, **variant.model)
        trial = Trial(golden.with_changes(model, **variant.batch), variant.parallel)
        whole = trial.chunks[0].parameters
        whole.initialize(replace(model, init_method_std=0.1), seed=3)
        _shake_vectors(whole)
        record = {f"weight/{key}": tensor.asnumpy().copy() for key, tensor in whole.tensors.items()}
        trial.forward_backward()
        record |= {f"grad/{key}": tensor.main_grad.asnumpy() * trial.grad_scale
                   for key, tensor in whole.trainable.items()}
        trial.golden = golden.with_changes(model, **record)
        losses, norms = trial.adamw(10)
        np.savez(folder / f"{name}.npz", **record, **{key: golden[key] for key in ("adapters",) if key in golden}, **variant.batch, adamw_losses=np.array(losses),
                 adamw_grad_norms=np.array(norms), ids=golden["ids"], labels=golden["labels"],
                 shape=np.array(json.dumps(model.to_dict())))


def write_half_record(dtype: str, folder: str) -> None:
    """For one process: the golden model in `dtype`."""
    kernels.setup(dtype)
    np.savez(Path(folder, f"{dtype}.npz"), **half_precision.make_record(dtype))


def _shake_vectors(whole: ParameterSet) -> None:
    """Move biases, norm weights and the second matrices of adapters away from 0 and 1, where several mistakes would not
    show.
    """
    noise = np.random.default_rng(5)
    for name, tensor in whole.tensors.items():
        if tensor.ndim == 1 or name.endswith("lora_B.weight"):
            whole.load(name, tensor.asnumpy() + noise.normal(0, 0.2, tensor.shape).astype(np.float32))


def row(sent: dict, folder: str, steps: int) -> dict:
    """Errors of a row, as this rank sees them."""
    return _fp32(Row.from_json(sent), nullcontext(), folder, steps)


def row_with_bug(name: str, folder: str) -> dict:
    """Errors of the row of a planted bug."""
    return _fp32(*with_bug(name), folder, BUG_STEPS)


def half_row(sent: dict, folder: str, order: int) -> dict:
    """Distances of a half-precision row."""
    return _half(Row.from_json(sent), nullcontext(), folder, order)


def half_row_with_bug(name: str, folder: str) -> dict:
    """Distances of the row of a planted half-precision bug."""
    return _half(*with_bug(name), folder)


def _fp32(row: Row, bug: AbstractContextManager, folder: str, steps: int) -> dict:
    with bug, _several_buckets():
        return asdict(Trial(record_of(row, Path(folder)), row.parallel, row.micro_batch).errors(steps))


def _half(row: Row, bug: AbstractContextManager, folder: str, order: int = 1) -> dict:
    kernels.setup(row.dtype)
    with bug, _several_buckets():
        return half_precision.measure(row, record_of(row, Path(folder)), order)


def _several_buckets() -> AbstractContextManager:
    """Gradient buckets so small that the tiny model has several."""
    return patch.object(parameters, "BUCKET_ELEMENTS", 5000)
