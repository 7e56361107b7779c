"""Run by test_ascend_dry_run.py on simulated Ascend, in a process for one rank of RANK_SIZE: python cases.py OUT NAME...

Writes {name: "" or what went wrong} to OUT; exit status 1 if anything did. On a real NPU too (docs/ascend.md). Every case goes through the code that a real NPU would run; what is computed is
zero everywhere. Cases of several ranks run in one process: a rank may be in any number of layouts, one after the other.
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint
from one_iteration import FullLength, read_nothing

from mindspeed_llm import kernels, training
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.tensor_parallel import cross_entropy
from mindspeed_llm.generation.generator import Generator, Pass
from mindspeed_llm.generation.kv_cache import SharedPrefix
from mindspeed_llm.runtime import autograd, collectives, device
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.training import batches
from mindspeed_llm.training.batches import MicroBatch

TINY = ("--num-layers 4 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 8 --group-query-attention "
        "--num-query-groups 2 --kv-channels 16 --add-qkv-bias --swiglu --padded-vocab-size 128 --seq-length 64 "
        "--max-position-embeddings 64 --untie-embeddings-and-output-weights --micro-batch-size 1 --global-batch-size 8 "
        "--train-iters 1 --lr 1e-4 --eval-iters 0 --data-path unread")
SP, ZERO = "--sequence-parallel", "--use-distributed-optimizer"
OVERLAP = f"{ZERO} --overlap-grad-reduce --overlap-param-gather"
TP, PP, CP = (f"--{kind}-parallel-size" for kind in ("tensor-model", "pipeline-model", "context"))
FULL = "--recompute-granularity full --recompute-method"
ULYSSES = "--context-parallel-algo ulysses_cp_algo"
ADAPTERS = "--lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 --lora-r 4"
PAIRS = "--stage dpo --is-pairwise-dataset --no-pad-to-seq-lengths --tokenizer-name-or-path unread"

# One iteration each, on 8 ranks; what the sizes leave is data parallel.
LAYOUTS = {
    "dp fp32": "",
    "dp fp16": "--fp16 --initial-loss-scale 4096",
    "dp overlap": f"--bf16 {OVERLAP}",
    "tp2": f"--bf16 {TP} 2",
    "tp2 sp fp32": f"{TP} 2 {SP}",
    "tp4 sp, shared K/V rows": f"--bf16 {TP} 4 {SP} {ZERO}",
    "pp2": f"--bf16 {PP} 2 {ZERO}",
    "pp4 fp16": f"--fp16 {PP} 4",
    "pp2 tied": f"--bf16 {PP} 2 --untie-embeddings-and-output-weights=false {OVERLAP}",
    "vpp": f"--bf16 {PP} 2 --num-layers-per-virtual-pipeline-stage 1 {OVERLAP}",
    "cp2 ring": f"--bf16 {CP} 2 --use-cp-send-recv-overlap {ZERO}",
    "cp4 ring": f"--bf16 {CP} 4 {ZERO}",
    "cp2 ring fp32": f"{CP} 2",
    "cp2 ulysses": f"--bf16 {CP} 2 {ULYSSES}",
    "cp4 ulysses": f"--bf16 {CP} 4 {ULYSSES} {ZERO}",
    "dp, packed": "--bf16",
    "cp2 ring, packed": f"--bf16 {CP} 2",
    "cp2 ulysses, packed": f"--bf16 {CP} 2 {ULYSSES}",
    "selective": "--bf16 --recompute-granularity selective",
    "block": f"--bf16 {PP} 2 {FULL} block --recompute-num-layers 1",
    "uniform": f"--bf16 {TP} 2 {SP} {FULL} uniform --recompute-num-layers 2",
    "tp2 sp pp2 cp2": f"--bf16 {TP} 2 {SP} {PP} 2 {CP} 2 {OVERLAP} {FULL} block --recompute-num-layers 1",
    "post norm": f"--bf16 --post-norm {TP} 2 {SP}",
    "norms of q and k": f"--bf16 --qk-layernorm {TP} 2 {SP}",
    "head in chunks": f"--bf16 {TP} 2 {SP} {PP} 2",
    "adapters": f"--bf16 {ADAPTERS} --lora-dropout 0.1 {ZERO}",
    "adapters, tp2 sp pp2": f"--bf16 {ADAPTERS} {TP} 2 {SP} {PP} 2 {FULL} block --recompute-num-layers 1",
    "pairs": f"--bf16 {PAIRS} {TP} 2 {SP} {PP} 2 --ref-model unread {ZERO}",
    "pairs, known reference": f"--bf16 {PAIRS} {CP} 2 --ref-model unread --precompute-ref",
    "pairs, adapters": f"--bf16 {PAIRS} {ADAPTERS} {TP} 2 {SP} {PP} 2 --load unread",
}


class Packed(FullLength):
    """The same with two segments in every sequence."""

    def training_step(self) -> list[MicroBatch]:
        """See `FullLength`."""
        bounds = np.array([0, 20, len(self.micro.tokens)], np.int32)
        return [replace(micro, cu_seqlens=bounds) for micro in super().training_step()]


def layout(name: str) -> None:
    """One iteration of training under `LAYOUTS[name]`."""
    batches.Batches = Packed if name.endswith("packed") else FullLength
    if "pairs" in name:
        read_nothing()
    cross_entropy.LOGITS_ROWS = 24 if name == "head in chunks" else 4096
    flags = [*TINY.split(), *LAYOUTS[name].split()]
    parallel = parse("pretrain", flags).parallel
    # two micro-batches show all that four do but for a pipeline, which is filled, at work, and emptied
    microbatches = 2 * parallel.pipeline_model_parallel_size
    replicas = parallel.data_parallel_size(collectives.launched_ranks())
    training.run(parse("pretrain", [*flags, "--global-batch-size", str(min(8, replicas * microbatches))]))
    ms.runtime.synchronize()


def primitives(dtype: str) -> None:
    """Every kernel, forward and backward, in one dtype."""
    _start(dtype)
    p, wide = kernels.primitives(), ms.float32
    def made(*shape, dtype=device.dtype(dtype)):
        return mint.ones(shape, dtype=dtype)
    x, weight, hidden, main = made(6, 2, 32), made(48, 32), made(6, 2, 48), made(48, 32, dtype=wide)
    for accumulate in (False, True):
        p.linear_wgrad(hidden, x, main, accumulate)
        p.bias_grad(hidden, made(48, dtype=wide), accumulate)
        p.embedding_wgrad(x, _ids(6, 2), 16, main, accumulate)
    assert p.linear_fwd(x, weight, made(48)).shape == hidden.shape
    assert p.linear_dgrad(hidden, weight).shape == x.shape
    assert p.embedding_fwd(weight, _ids(6, 2), 16).shape == x.shape
    norm, norm_main = made(32), made(32, dtype=wide)
    total, normed, rstd = p.add_rms_norm_fwd(x, x, norm, 1e-5)
    assert normed.shape == total.shape == x.shape and rstd.size == 12
    for accumulate, more in ((False, None), (True, x)):
        assert p.rms_norm_bwd(x, total, norm, rstd, norm_main, accumulate, more).dtype == x.dtype
    logits, ids = made(12, 64), _ids(12)
    assert p.cross_entropy_stats(logits, ids, 0).shape == (12, 3)
    p.cross_entropy_grad(logits, ids, 0, made(12, dtype=wide), made(12, dtype=wide))
    q, k = made(8, 2, 4, 16), made(8, 2, 2, 16)
    for q_start, k_start, bounds in ((0, 0, None), (8, 0, None), (0, 0, np.array([0, 3, 8], np.int32)), (0, 8, None)):
        out, lse = p.attention_fwd(q, k, k, 0.25, q_start, k_start, bounds)
        assert out.shape == q.shape and lse.shape == (2, 4, 8)
        grads = p.attention_bwd(out, q, k, k, out, lse, 0.25, q_start, k_start, bounds)
        assert [grad.shape for grad in grads] == [q.shape, k.shape, k.shape]
    flat = [made(10, dtype=wide) for _ in range(4)]
    p.adamw(made(10), *flat, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=1, grad_scale=1.0)


def differentiable(dtype: str) -> None:
    """The API that the model uses, through the tape."""
    _start(dtype)
    def leaf(*shape):
        return autograd.leaf(mint.ones(shape, dtype=device.dtype(dtype)))
    cos = mint.ones((8, 4), dtype=ms.float32)
    qkv, gate = leaf(8 * 2, 2 * 4 * 16), leaf(8, 2, 64)
    q, k, v = kernels.qkv_rope(qkv, cos, cos, 2, 2, 16)
    for bounds in (None, Tensor(np.array([0, 3, 8], np.int32))):
        out = kernels.attention(kernels.rope(q, cos, cos), k, v, 0.25, bounds)
        autograd.backward((out, kernels.swiglu(gate)), (mint.ones_like(out), mint.ones((8, 2, 32), dtype=gate.dtype)))
        assert autograd.grad_of(qkv).shape == qkv.shape and autograd.grad_of(gate).shape == gate.shape
        q, k, v = kernels.qkv_rope(qkv, cos, cos, 2, 2, 16)


def collective_calls() -> None:
    """Every function of `runtime.collectives`, on the world and on a smaller group, in every dtype that is used."""
    device.setup()
    world = collectives.init()
    me = world.rank
    pair = collectives.new_group(f"dry_{me // 2}", (me // 2 * 2, me // 2 * 2 + 1))
    for group in (world, pair):
        n, following, previous = group.size, (group.rank + 1) % group.size, (group.rank - 1) % group.size
        for dtype in (ms.float32, ms.bfloat16, ms.float16, ms.int32):
            tensor = mint.ones((2 * n, 3), dtype=dtype)
            if dtype != ms.int32:
                for op in ("sum", "max"):
                    assert collectives.all_reduce(tensor, group, op).shape == tensor.shape
                assert collectives.reduce_scatter(tensor, group).shape == (2, 3)
                collectives.finish(collectives.start_all_reduce(tensor, group))
                collectives.finish(collectives.start_reduce_scatter(tensor, group))
            assert collectives.all_gather(tensor, group).shape == (2 * n * n, 3)
            collectives.finish(collectives.start_all_gather(tensor, group))
            assert collectives.broadcast(tensor, group, n - 1).shape == tensor.shape
            parts = collectives.all_to_all([tensor] * n, group)
            assert [part.shape for part in parts] == [tensor.shape] * n
            handle = collectives.start_exchange([(tensor, following)], [(tensor.shape, dtype, previous)], group)
            assert [part.shape for part in collectives.finish_exchange(handle)] == [tensor.shape]
    collectives.barrier()


def generation(parallel: ParallelConfig) -> None:
    """Prompts of several lengths at once, a prompt longer than a pass, single tokens, a shared prefix, a fork."""
    configs = parse("pretrain", TINY.split())
    _start("bf16")
    state = parallel_state.build(configs.model, parallel)
    model = GPTModel(configs.model, parallel, state, ms.bfloat16, trainable=False)
    generator = Generator([model], 100, 64)
    caches, shard = generator.prefill([[1, 2, 3], [4], list(range(40))])
    for _ in range(2):
        shard = generator.decode(caches, [5, 6, 7])
    assert [cache.length for cache in caches] == [5, 3, 42]
    if model.last:
        assert shard.top(3)[1].shape == (3, 3)
    twin = caches[2].fork()
    generator.decode([twin], [8])
    twin.truncate(10)
    shared = [SharedPrefix(twin) for _ in range(3)]
    generator.run([Pass(shared, [10] * 3, [[1, 2], [3], [4, 5, 6]], [0, 1, 2])],
                  lambda logits: logits.astype(ms.float32).asnumpy())
    with autograd.no_grad():
        generator.extend([caches[0]], [list(range(20))])


def save_and_load(dtype: str) -> None:
    """A checkpoint is written, read into a new model and optimizer, and training goes on. What is saved are zeros."""
    with tempfile.TemporaryDirectory() as folder:
        for iterations in (1, 2):
            batches.Batches = FullLength
            training.run(parse("pretrain", f"{TINY} --global-batch-size 1 --train-iters {iterations} {dtype} --save {folder} --load {folder} "
                               "--save-interval 1".split()))
            assert Path(folder, "latest_checkpointed_iteration.txt").read_text().strip() == str(iterations)


CASES: dict[str, Callable[[], None]] = {
    **{f"kernels {dtype}": lambda dtype=dtype: primitives(dtype) for dtype in ("fp32", "bf16", "fp16")},
    **{f"tape {dtype}": lambda dtype=dtype: differentiable(dtype) for dtype in ("bf16", "fp16")},
    "collectives": collective_calls,
    "generation": lambda: generation(ParallelConfig()),
    "generation tp2 pp2": lambda: generation(ParallelConfig(tensor_model_parallel_size=2,
                                                            pipeline_model_parallel_size=2)),
    "save and load fp32": lambda: save_and_load(""),
    "save and load bf16": lambda: save_and_load("--bf16"),
    **{f"train {name}": lambda name=name: layout(name) for name in LAYOUTS},
}


def _start(dtype: str) -> None:
    device.setup()
    collectives.init()
    kernels.setup(dtype)


def _ids(*shape: int) -> Tensor:
    return from_numpy(np.arange(np.prod(shape), dtype=np.int32).reshape(shape))


def main() -> None:
    results = {}
    for name in sys.argv[2:]:
        try:
            CASES[name]()
            ms.runtime.synchronize()
            results[name] = ""
        except Exception:   # the next case is to run too
            results[name] = traceback.format_exc()
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
    sys.exit(any(results.values()))


if __name__ == "__main__":
    main()
