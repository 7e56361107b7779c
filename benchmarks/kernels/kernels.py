"""Every CPU kernel against the machine's limits and against PyTorch, in one run.

    python benchmarks/kernels/kernels.py --peer-python path/to/venv/bin/python --seq 512

The peer's environment needs torch; without --peer-python only our side runs. The two sides take turns, `--rounds`
times; medians are printed. Limits: a copy of 256 MB by all threads (GB/s of reads and writes), and the product of
2048 x 2048 matrices. Sizes are those of benchmarks/train_step.py: hidden 1024, ffn 3424, 8 heads x 128, 2 groups,
vocabulary 8192.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
HIDDEN, FFN, HEADS, GROUPS, DIM, VOCAB, FLAT = 1024, 3424, 8, 2, 128, 8192, 10_000_000


def work(seq: int, size: int) -> dict:
    """What each kernel must do at least: {name: (floating point operations, bytes moved)}."""
    half = 4 * seq * seq / 2 * DIM * HEADS
    table = {"square product": (2 * 2048 ** 3, 0), "attention fwd": (half, 0), "attention bwd": (2.5 * half, 0)}
    for name, outputs in (("qkv", (HEADS + 2 * GROUPS) * DIM), ("fc1", 2 * FFN)):
        for direction in ("fwd", "dgrad", "wgrad"):
            table[f"linear {name} {direction}"] = (2 * seq * HIDDEN * outputs, 0)
    moved = {"rms_norm fwd": 2 * HIDDEN, "rms_norm bwd": 3 * HIDDEN, "swiglu fwd": 3 * FFN, "swiglu bwd": 5 * FFN,
             "add": 3 * HIDDEN, "cross entropy fwd": VOCAB, "cross entropy bwd": 2 * VOCAB}
    table.update({name: (0, values * seq * size) for name, values in moved.items()})
    table["adamw"] = (0, FLAT * (28 if size == 4 else 30))
    return table


def ours(seq: int, dtype: str) -> dict:
    """{name: function} on our CPU backend."""
    sys.path.insert(0, str(ROOT))
    import mindspore as ms
    from mindspore import Tensor

    from mindspeed_llm.kernels import cpu
    from mindspeed_llm.runtime import device
    device.setup()
    reason = cpu.load()
    if reason is not None:
        raise SystemExit(f"error: {reason}")
    rng, kind = np.random.default_rng(0), device.dtype(dtype)

    def normal(*shape, dtype=kind):
        return Tensor(rng.standard_normal(shape, np.float32)).astype(dtype)

    def zeros(*shape):
        return Tensor.from_numpy(np.zeros(shape, np.float32))

    left, right, x, row = normal(2048, 2048), normal(2048, 2048), normal(seq, 1, HIDDEN), normal(HIDDEN)
    run = {"square product": lambda: cpu.linear_fwd(left, right)}
    for name, outputs in (("qkv", (HEADS + 2 * GROUPS) * DIM), ("fc1", 2 * FFN)):
        w, g, d = normal(outputs, HIDDEN), normal(seq, 1, outputs), zeros(outputs, HIDDEN)
        run[f"linear {name} fwd"] = lambda w=w: cpu.linear_fwd(x, w)
        run[f"linear {name} dgrad"] = lambda w=w, g=g: cpu.linear_dgrad(g, w)
        run[f"linear {name} wgrad"] = lambda g=g, d=d: cpu.linear_wgrad(g, x, d)
    q, grad, k, v = (normal(seq, 1, n, DIM) for n in (HEADS, HEADS, GROUPS, GROUPS))
    out, lse = cpu.attention_fwd(q, k, v, DIM ** -0.5, 0, 0)
    run["attention fwd"] = lambda: cpu.attention_fwd(q, k, v, DIM ** -0.5, 0, 0)
    run["attention bwd"] = lambda: cpu.attention_bwd(grad, q, k, v, out, lse, DIM ** -0.5, 0, 0)
    _, rstd = cpu.rms_norm_fwd(x, row, 1e-5)
    d_row = zeros(HIDDEN)
    run["rms_norm fwd"] = lambda: cpu.rms_norm_fwd(x, row, 1e-5)
    run["rms_norm bwd"] = lambda: cpu.rms_norm_bwd(x, x, row, rstd, d_row)
    h, g_h = normal(seq, 1, 2 * FFN), normal(seq, 1, FFN)
    run["swiglu fwd"], run["swiglu bwd"] = lambda: cpu.swiglu_fwd(h), lambda: cpu.swiglu_bwd(g_h, h)
    run["add"] = lambda: cpu.add(x, x)
    logits, labels = normal(seq, VOCAB), Tensor(rng.integers(0, VOCAB, seq).astype(np.int32))
    per_row = normal(seq, dtype=ms.float32)
    run["cross entropy fwd"] = lambda: cpu.cross_entropy_stats(logits, labels, 0)
    run["cross entropy bwd"] = lambda: cpu.cross_entropy_grad(logits, labels, 0, per_row, per_row)
    flat = [zeros(FLAT) for _ in range(4)]
    param = flat[0] if dtype == "fp32" else flat[0].astype(kind)
    run["adamw"] = lambda: cpu.adamw(param, *flat, lr=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=2,
                                     grad_scale=1.0)
    return run


def theirs(seq: int, dtype: str) -> dict:
    """{name: function} on PyTorch: the operators that GlmForCausalLM runs for the same work."""
    import torch
    import torch.nn.functional as F
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))

    def normal(*shape, grad=False):
        return torch.randn(*shape, dtype=kind, requires_grad=grad)

    def backward(make, *leaves):
        """Backward alone, on a graph that is kept."""
        output = make()
        g = torch.ones_like(output)
        return lambda: torch.autograd.grad(output, leaves, g, retain_graph=True)

    left, right, x = normal(2048, 2048), normal(2048, 2048), normal(seq, HIDDEN)
    run = {"square product": lambda: F.linear(left, right)}
    for name, outputs in (("qkv", (HEADS + 2 * GROUPS) * DIM), ("fc1", 2 * FFN)):
        w, g, d = normal(outputs, HIDDEN), normal(seq, outputs), torch.zeros(outputs, HIDDEN, dtype=kind)
        run[f"linear {name} fwd"] = lambda w=w: F.linear(x, w)
        run[f"linear {name} dgrad"] = lambda w=w, g=g: g @ w
        run[f"linear {name} wgrad"] = lambda g=g, d=d: d.add_(g.T @ x)  # product, then accumulation into .grad
    q, k, v = (normal(1, n, seq, DIM, grad=True) for n in (HEADS, GROUPS, GROUPS))

    def attention():
        repeat = HEADS // GROUPS  # as transformers does for SDPA on CPU
        keys, values = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True)

    def no_grad(make):
        def call():
            with torch.no_grad():
                return make()
        return call

    run["attention fwd"], run["attention bwd"] = no_grad(attention), backward(attention, q, k, v)
    leaf, row = normal(seq, HIDDEN, grad=True), normal(HIDDEN, grad=True)

    def rms_norm():
        h = leaf.to(torch.float32)
        return row * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)).to(kind)

    run["rms_norm fwd"], run["rms_norm bwd"] = no_grad(rms_norm), backward(rms_norm, leaf, row)
    h = normal(seq, 2 * FFN, grad=True)

    def swiglu():
        gate, up = h.chunk(2, -1)
        return up * F.silu(gate)

    run["swiglu fwd"], run["swiglu bwd"] = no_grad(swiglu), backward(swiglu, h)
    run["add"] = lambda: x + x
    logits, labels = normal(seq, VOCAB, grad=True), torch.randint(0, VOCAB, (seq,))

    def cross_entropy():
        return F.cross_entropy(logits.float(), labels)

    run["cross entropy fwd"], run["cross entropy bwd"] = no_grad(cross_entropy), backward(cross_entropy, logits)
    parameter = torch.zeros(FLAT, dtype=kind, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, fused=True)
    run["adamw"] = optimizer.step
    return run


def worker(options) -> None:
    """Measures each kernel once more per line read from standard input; one JSON line of seconds each."""
    run = (ours if options.worker == "ours" else theirs)(options.seq, options.dtype)
    for function in run.values():
        function()
    print("ready", flush=True)
    for _ in sys.stdin:
        times = {}
        for name, function in run.items():
            samples, end = [], time.perf_counter() + 0.15
            while len(samples) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                function()
                samples.append(time.perf_counter() - start)
            times[name] = statistics.median(samples)
        print(json.dumps(times), flush=True)


def copy_bandwidth(threads: int) -> float:
    """Bytes per second read and written by a copy of 256 MB, all threads at it."""
    source, target = np.ones(2 ** 26, np.float32), np.zeros(2 ** 26, np.float32)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads)))
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), parts))
            best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def start(python: str, side: str, options) -> subprocess.Popen:
    command = [python, __file__, "--worker", side, "--seq", str(options.seq), "--dtype", options.dtype]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while (line := process.stdout.readline()) != "ready\n":
        if not line:
            raise SystemExit(f"error: the {side} side did not start")
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    sides = {"ours": start(sys.executable, "ours", options)}
    if options.peer_python:
        sides["theirs"] = start(options.peer_python, "theirs", options)
    results = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, process in sides.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            results[side].append(json.loads(process.stdout.readline()))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    table = work(options.seq, 4 if options.dtype == "fp32" else 2)
    median = {side: {name: statistics.median(r[name] for r in rounds) for name in table}
              for side, rounds in results.items()}
    limit = copy_bandwidth(len(os.sched_getaffinity(0)))
    peak = table["square product"][0] / median["ours"]["square product"]
    print(f"{options.dtype}, {options.seq} tokens; copy {limit / 1e9:.1f} GB/s, product {peak / 1e9:.0f} GFLOP/s")
    print(f"{'kernel':20} {'ms':>9} {'rate':>14} {'of limit':>9} {'PyTorch ms':>11} {'ratio':>6}")
    for name, (flops, moved) in table.items():
        mine = median["ours"][name]
        rate, unit, share = (flops / mine / 1e9, "GFLOP/s", flops / mine / peak) if flops else (
            moved / mine / 1e9, "GB/s", moved / mine / limit)
        peer = median["theirs"][name] if "theirs" in median else None
        print(f"{name:20} {mine * 1e3:9.3f} {rate:7.1f} {unit:7} {share:8.0%}"
              + (f" {peer * 1e3:11.3f} {peer / mine:6.2f}" if peer else ""))


if __name__ == "__main__":
    main()
