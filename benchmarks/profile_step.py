"""Where the time of one training step goes, per kernel, against the machine's limits.

    python benchmarks/profile_step.py --dtype fp32 --seq 512

The step is that of benchmarks/train_step.py. Every primitive of the CPU backend is timed from outside; "other" is what
remains of the step: MindSpore, the tape, Python. Limits: the product of 2048 x 2048 matrices in the step's dtype, and a
sum that reads and writes 256 MB by all threads. Both are measured once after every step, because a shared machine is not
equally fast all the time, and medians are printed. Products and attention are given as a share of the first; the other
kernels move memory, and how much each must move is in benchmarks/kernels/kernels.py. --isa avx2 (or another) shows
the step on another instruction set than the processor's best, --adapters one that trains low-rank adapters only
(benchmarks/lora_step.py).
"""

import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import lora_step  # noqa: E402
import train_step  # noqa: E402

PRODUCTS = ("linear_fwd", "linear_dgrad", "linear_wgrad")


class Clock:
    """Seconds, calls and floating point operations of each wrapped function."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds, self.calls, self.operations = Counter(), Counter(), Counter()

    def wrap(self, name: str, function):
        def timed(*arguments, **keywords):
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            self.seconds[name] += time.perf_counter() - started
            self.calls[name] += 1
            self.operations[name] += operations(name, arguments)
            return result
        return timed


def operations(name: str, arguments) -> float:
    """Multiplications and additions of a product; of causal attention, half of all (query, key) pairs."""
    if name in PRODUCTS:
        left, right = arguments[:2]
        common = left.shape[-1] if name != "linear_wgrad" else left.size // left.shape[-1]
        return 2.0 * (left.size // common) * (right.size // common) * common
    if name.startswith("attention"):
        query = arguments[0]
        return 2.0 * query.size * query.shape[0] * (1 if name == "attention_fwd" else 2.5)
    return 0.0


def limits(dtype: str):
    """What reaches the machine's limits, `{name: (function, its operations or bytes)}`."""
    from mindspore import Tensor

    from mindspeed_llm import kernels
    from mindspeed_llm.kernels import cpu
    from mindspeed_llm.runtime import device
    rng = np.random.default_rng(0)
    square = Tensor(rng.standard_normal((2048, 2048), np.float32)).astype(device.dtype(dtype))
    big = Tensor(np.ones(1 << 25, np.float32))
    product, add = kernels.primitives().linear_fwd, cpu.add
    return {"product": (lambda: product(square, square, None), 2 * 2048 ** 3),
            "sum": (lambda: add(big, big), 2 * big.size * 4)}


def seconds_of(function) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = train_step.step_options(__doc__, steps=6)
    parser.add_argument("--adapters", action="store_true", help="train low-rank adapters, the model is frozen")
    options = parser.parse_args()
    os.environ |= train_step.settings(options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        train_step.write_inputs(path, options.batch, options.seq)
        data = train_step.read_inputs(path)
    stages = train_step.ours(data, options, lora_step.adapters() if options.adapters else None)
    next(stages)
    from mindspeed_llm.kernels import cpu
    limit = limits(options.dtype)
    clock = Clock()
    for name in (*cpu.PRIMITIVES, "attention_fwd", "attention_bwd", "sum_squares", "low_rank_fwd", "low_rank_dgrad"):
        setattr(cpu, name, clock.wrap(name, getattr(cpu, name)))
    step = next(stages)
    found = {name: [] for name in ("step", "other", *limit)}
    for turn in range(options.steps + 2):
        clock.reset()
        spent = {"step": seconds_of(step), **{name: seconds_of(run) for name, (run, _) in limit.items()}}
        spent |= clock.seconds | {"other": spent["step"] - sum(clock.seconds.values())}
        if turn >= 2:  # the first two warm up
            for name, seconds in spent.items():
                found.setdefault(name, []).append(seconds)
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    whole = median.pop("step")
    rate, bandwidth = (limit[name][1] / median.pop(name) / 1e9 for name in ("product", "sum"))
    print(f"{cpu.instruction_set()}, {options.dtype} {options.batch} x {options.seq}: step {whole * 1e3:.1f} ms; "
          f"limits: product {rate:.0f} GFLOP/s, sum {bandwidth:.1f} GB/s")
    print(f"{'kernel':22} {'ms':>8} {'calls':>6} {'share':>6} {'GFLOP/s':>8} {'of limit':>8}")
    for name, spent in sorted(median.items(), key=lambda item: -item[1]):
        done = clock.operations[name] / spent / 1e9
        speed = f"{done:8.0f} {done / rate:8.0%}" if done else ""
        print(f"{name:22} {spent * 1e3:8.2f} {clock.calls[name]:6} {spent / whole:6.1%} {speed}".rstrip())
    print(f"products (linear layers): {sum(median[name] for name in PRODUCTS) / whole:.1%} of the step")


if __name__ == "__main__":
    main()
