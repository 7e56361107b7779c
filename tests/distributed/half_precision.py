"""bf16 and fp16 under parallel layouts: held to one process in the same dtype, and to fp32.

Rounding makes a second right answer differ from the first, so 2e-5 cannot be asked everywhere. What can be asked
follows from where a layout rounds.

Data and pipeline parallelism, and Ulysses, cut the work between kernels, not within one: every tensor is rounded where
one process rounds it, and what is summed over ranks is fp32. Such rows are held to one process as fp32 rows are
(EXACT).

Tensor parallelism rounds each rank's partial sum, ring attention each rank's partial attention. Two things can be asked
of such a row. Where it is rounded depends on the TP and CP sizes only, so that the row's losses and gradient norms are,
within SERIES, those of the plain layout with the same two sizes (`baseline`), whose micro-batches are of the rows that
replicas have together (`replicas`): a sum of weight gradients in another order moves a gradient norm by 1e-9, by which
one master may round to the other bf16 number, which is 2e-4 in the next. And it is another draw of the noise that
one process has against fp32 (`noise`, measured in the same run): independent draws of equal size are sqrt(2) apart, so
a row's gradients may be GRADIENT_DRAWS times the noise away from one process or from fp32, its losses and gradient
norms, which are the largest of a few single numbers and scatter more, SERIES_DRAWS times. A parameter after a step
may round to the neighbouring value: one unit roundoff (UNIT).

In fp16, which has no kernels of our own on CPU, a weight gradient summed over micro-batches and one summed over ranks
differ in their last fp32 bits. Masters then differ as little, but one that lies between two fp16 numbers may round to
either, which moves the losses and gradient norms of later steps by a part of a unit roundoff (SERIES).
"""

from dataclasses import asdict, dataclass

import numpy as np

from mindspeed_llm.config.parallel import RING, ParallelConfig
from tests.distributed.rows import Row
from tests.golden.reference import Golden
from tests.golden.trial import SHORT_STEPS, Trial, distance, relative

STEPS = {"bf16": SHORT_STEPS, "fp16": 2}  # of AdamW; fp16 on CPU is the slow reference backend
LOSS_SCALE = {"bf16": 1.0, "fp16": 2.0**12}
EXACT = 2e-5
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}
SERIES = {"bf16": EXACT, "fp16": UNIT["fp16"]}
GRADIENT_DRAWS, SERIES_DRAWS = 1.5, 2.0


@dataclass(frozen=True)
class Distances:
    """Largest relative distances between two runs.

    loss, grad_norm: of the AdamW steps. grad, grad_rms: gradients of the first step by L2 norm of a tensor, the worst
    and the root mean square over tensors. parameter: after one SGD step, worst tensor (0 where not compared).
    """

    loss: float
    grad_norm: float
    grad: float
    grad_rms: float
    parameter: float = 0.0


def make_record(dtype: str) -> dict[str, np.ndarray]:
    """One process in `dtype`, named as in golden.npz: `weight/` as rounded, `sgd/` after one SGD step."""
    golden = Golden()
    trial = Trial(golden, ParallelConfig(), 2, dtype, LOSS_SCALE[dtype])
    whole = trial.chunks[0].parameters
    trial.load()
    record = {f"weight/{name}": tensor.asnumpy().astype(np.float32) for name, tensor in whole.tensors.items()}
    trial.take_sgd_step()
    for name, tensor in whole.tensors.items():
        record |= {f"sgd/{name}": tensor.asnumpy().astype(np.float32),
                   f"grad/{name}": tensor.main_grad.asnumpy() * trial.grad_scale}
    losses, norms = trial.adamw(STEPS[dtype])
    return record | {"adamw_losses": np.array(losses), "adamw_grad_norms": np.array(norms), "ids": golden["ids"],
                     "labels": golden["labels"], "shape": golden["shape"]}


def noise(one: Golden) -> Distances:
    """How far one process in half precision lies from fp32."""
    golden = Golden()
    errors = {key: distance(one[key], golden[key].astype(np.float64)) / np.linalg.norm(golden[key])
              for key in golden.names("grad")}
    return _distances(errors, one["adamw_losses"], one["adamw_grad_norms"], golden)


def measure(row: Row, one: Golden, order: int = 1) -> dict:
    """What this rank sees, JSON-ready: `Distances` from `one` process in the same dtype and from `fp32`, and the series
    of `losses` and `grad_norms`. `order` as for Trial.
    """
    golden = Golden()
    trial = Trial(golden, row.parallel, row.micro_batch, row.dtype, LOSS_SCALE[row.dtype], order=order)
    optimizer = trial.take_sgd_step()
    parameter = 0.0
    for parameters in (chunk.parameters for chunk in trial.chunks):
        for name in parameters.specs:
            expected = trial.local("sgd", parameters, name, one)
            parameter = max(parameter, distance(parameters[name].asnumpy(), expected) / np.linalg.norm(expected))
    from_one, from_golden = (trial.gradient_errors(optimizer, record) for record in (one, golden))
    losses, norms = trial.adamw(STEPS[row.dtype])
    return {"one": asdict(_distances(from_one, losses, norms, one, parameter)),
            "fp32": asdict(_distances(from_golden, losses, norms, golden)), "losses": losses, "grad_norms": norms}


def limits(row: Row, one: Golden) -> dict[str, dict[str, float]]:
    """The largest distances that are right for a row: `{"one" or "fp32": {field: limit}}`."""
    unit, of_noise = UNIT[row.dtype], noise(one)
    draws = Distances(SERIES_DRAWS * of_noise.loss, SERIES_DRAWS * of_noise.grad_norm,
                      GRADIENT_DRAWS * of_noise.grad, GRADIENT_DRAWS * of_noise.grad_rms, unit)
    exact = Distances(SERIES[row.dtype], SERIES[row.dtype], EXACT, EXACT, EXACT)
    return {"one": asdict(draws if rounds(row) else exact), "fp32": asdict(draws)}


def excess(row: Row, seen: list[dict], plain: dict, allowed: dict[str, dict[str, float]]) -> dict[str, float]:
    """Per distance, the worst of all ranks of `row` over its limit; up to 1 is right. `plain`: what rank 0 of the row's
    baseline saw.
    """
    ratios = {f"{field} from {reference}": max(rank[reference][field] for rank in seen) / limit
              for reference, fields in allowed.items() for field, limit in fields.items()}
    for series in ("losses", "grad_norms"):
        expected = np.array(plain[series])
        ratios[f"{series} from baseline"] = max(relative(rank[series], expected) for rank in seen) / SERIES[row.dtype]
    return ratios


def rounds(row: Row) -> bool:
    """Whether ranks cut what one process computes in one kernel."""
    parallel = row.parallel
    ring = parallel.context_parallel_size > 1 and parallel.context_parallel_algo == RING
    return parallel.tensor_model_parallel_size > 1 or ring


def replicas(row: Row) -> int:
    """Data-parallel replicas of a row that rounds; 1 of others, which differ from one process in sums of fp32 only."""
    return row.parallel.data_parallel_size(row.world) if rounds(row) else 1


def baseline(row: Row, rows: list[Row]) -> Row:
    """The first of `rows` that rounds where `row` does."""
    def place(other: Row) -> tuple:
        parallel = other.parallel
        return other.dtype, parallel.tensor_model_parallel_size, parallel.context_parallel_size, rounds(other)
    return next(other for other in rows if place(other) == place(row))


def _distances(grad_errors: dict[str, float], losses, norms, record: Golden, parameter: float = 0.0) -> Distances:
    errors = np.array(list(grad_errors.values()))
    return Distances(relative(losses, record["adamw_losses"][:len(losses)]),
                     relative(norms, record["adamw_grad_norms"][:len(norms)]), float(errors.max()),
                     float(np.sqrt(np.square(errors).mean())), parameter)
