"""Run by test_parity.py under msrun on every rank: all rows of the parity table of this world size, one after the
other.

    python parity_cases.py records OUT            one process, no msrun: writes the records that golden.npz lacks
    msrun ... parity_cases.py rows OUT [NAME...]  writes OUT/WORLD_RANK.json: {row or planted bug's name: errors}
"""

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parameters
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.runtime import collectives, device
from tests.distributed import half_precision
from tests.distributed.planted import PLANTED, PLANTED_HALF, PLANTED_WORLD, with_bug
from tests.distributed.rows import HALF_PRECISION_ROWS, ROWS
from tests.golden.reference import Golden
from tests.golden.trial import Trial

@dataclass(frozen=True)
class Variant:
    """A record that golden.npz is not: changes of the model, of the batch, and options that the single process
    needs.
    """

    model: dict = field(default_factory=dict)
    batch: dict = field(default_factory=dict)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


VARIANTS = {
    "tied": Variant({"untie_embeddings_and_output_weights": False}),
    "post_norm": Variant({"post_norm": True}),
    "deep": Variant({"num_layers": 8}),
    "noop": Variant({"num_layers": 8}, parallel=ParallelConfig(noop_layers=(2, 3, 6))),
    "packed": Variant(batch={"cu_seqlens": np.array([0, 3, 7, 13, 16], np.int32)}),
    "lengths": Variant(batch={"lengths": np.array([16, 8, 12, 4])}),
}


def record_of(name: str, folder: Path) -> Golden:
    """The record of that name: golden.npz, or one that `write_records` made."""
    return Golden() if name == "golden" else Golden(folder / f"{name}.npz")


def write_records(folder: Path) -> None:
    """Variants of the golden model that Hugging Face's GLM does not have, measured in one process by the same code.

    That one process equals Hugging Face on the golden model is tests/core/test_golden.py's subject.
    """
    golden = Golden()
    for name, variant in VARIANTS.items():
        model = replace(golden.model, **variant.model)
        trial = Trial(golden.with_changes(model, **variant.batch), variant.parallel)
        whole = trial.chunks[0].parameters
        whole.initialize(replace(model, init_method_std=0.1), seed=3)
        _shake_vectors(whole)
        record = {f"weight/{key}": tensor.asnumpy().copy() for key, tensor in whole.tensors.items()}
        trial.forward_backward()
        record |= {f"grad/{key}": tensor.main_grad.asnumpy() * trial.grad_scale
                   for key, tensor in whole.tensors.items()}
        trial.golden = golden.with_changes(model, **record)
        losses, norms = trial.adamw(10)
        np.savez(folder / f"{name}.npz", **record, **variant.batch, adamw_losses=np.array(losses),
                 adamw_grad_norms=np.array(norms), ids=golden["ids"], labels=golden["labels"],
                 shape=np.array(json.dumps(model.to_dict())))
    for dtype in half_precision.DTYPES:
        kernels.setup(dtype)
        np.savez(folder / f"{dtype}.npz", **half_precision.make_record(dtype))


def _shake_vectors(whole: ParameterSet) -> None:
    """Move biases and norm weights away from 0 and 1, where several mistakes would not show."""
    noise = np.random.default_rng(5)
    for name, tensor in whole.tensors.items():
        if tensor.ndim == 1:
            whole.load(name, tensor.asnumpy() + noise.normal(0, 0.2, tensor.shape).astype(np.float32))


def run_rows(folder: Path, names: list[str]) -> None:
    """All rows of this world size (or those named), errors written for this rank."""
    world = collectives.init()
    # Small enough that the tiny model has several.
    parameters.BUCKET_ELEMENTS = 5000
    results = {}
    for row in ROWS:
        if row.world == world.size and (not names or row.name in names):
            start = time.time()
            errors = Trial(record_of(row.record, folder), row.parallel, row.micro_batch).errors()
            results[row.name] = asdict(errors)
            if world.rank == world.size - 1:
                print(f"{row.name}: {errors} {time.time() - start:.1f} s", flush=True)
    for name in PLANTED:
        if world.size == PLANTED_WORLD and (not names or name in names):
            row, bug = with_bug(name)
            with bug:
                trial = Trial(record_of(row.record, folder), row.parallel, row.micro_batch)
                results[name] = asdict(trial.errors(steps=2))
    half = {row.name: (row, nullcontext()) for row in HALF_PRECISION_ROWS if row.world == world.size}
    if world.size == PLANTED_WORLD:
        half |= {name: with_bug(name) for name in PLANTED_HALF}
    for name, (row, bug) in half.items():
        if not names or name in names:
            kernels.setup(row.dtype)
            with bug:
                results[name] = half_precision.measure(row, record_of(row.record, folder))
    (folder / f"{world.size}_{world.rank}.json").write_text(json.dumps(results), encoding="utf-8")
    collectives.barrier()


if __name__ == "__main__":
    device.setup()
    kernels.setup()
    if sys.argv[1] == "records":
        write_records(Path(sys.argv[2]))
    else:
        run_rows(Path(sys.argv[2]), sys.argv[3:])
