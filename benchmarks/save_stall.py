"""How long a training step waits for a save: `--async-save` against a plain copy of the same memory, taking turns.

    python benchmarks/save_stall.py [--layers 4] [--hidden 1024] [--repeats 5]

One process with a GLM of random weights and its AdamW state. "async" is what `Saver.save` takes before training goes
on, "copy" the time of `numpy.copyto` for the same arrays into memory that was used before, "sync" a save that training
waits for. Every background write is finished before the next measurement.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from mindspeed_llm.config.command_line import parse  # noqa: E402
from mindspeed_llm.core.gpt_model import GPTModel  # noqa: E402
from mindspeed_llm.core.optimizer.optimizer import Optimizer  # noqa: E402
from mindspeed_llm.runtime import device  # noqa: E402
from mindspeed_llm.session import join_job, start_session  # noqa: E402
from mindspeed_llm.training.checkpointing import Progress  # noqa: E402
from mindspeed_llm.training.loss_scale import LossScale  # noqa: E402
from mindspeed_llm.training.saving import Saver  # noqa: E402


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Build the model, take turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        heads = arguments.hidden // 128
        configs = parse("pretrain", [
            "--num-layers", str(arguments.layers), "--hidden-size", str(arguments.hidden), "--ffn-hidden-size",
            str(arguments.hidden * 107 // 32), "--num-attention-heads", str(heads), "--group-query-attention",
            "--num-query-groups", "2", "--kv-channels", "128", "--padded-vocab-size", "8192", "--seq-length", "512",
            "--max-position-embeddings", "512", "--micro-batch-size", "1", "--global-batch-size", "1", "--train-iters",
            "1", "--data-path", "none", "--save", folder, "--async-save"])
        join_job(configs.train, configs.parallel)
        session = start_session(configs.model, configs.parallel, configs.train.params_dtype, [])
        chunk = GPTModel(configs.model, configs.parallel, session.state, device.dtype(configs.train.params_dtype))
        chunk.parameters.initialize(configs.model, 1)
        optimizer = Optimizer([chunk], configs.optimizer, session.state, False)
        scale = LossScale(configs.train.params_dtype, configs.optimizer.initial_loss_scale)
        background = Saver(configs, optimizer, scale, session.state, session.params_dtype)
        at_once = Saver(dataclasses.replace(configs, checkpoint=dataclasses.replace(configs.checkpoint, async_save=False)),
                        optimizer, scale, session.state, session.params_dtype)
        arrays = [parameter.asnumpy() for parameter in chunk.parameters.tensors.values()]
        arrays += [array.asnumpy() for state in optimizer.chunk_states for name, parts in state.states.items()
                   for array in parts if name != "master"]
        targets = [array.copy() for array in arrays]
        times: dict[str, list[float]] = {"async": [], "copy": [], "sync": []}
        for number in range(1, arguments.repeats + 1):
            times["async"].append(timed(lambda: background.save(Progress(2 * number))))
            background.finish()
            times["copy"].append(timed(lambda: [np.copyto(*pair) for pair in zip(targets, arrays)]))
            times["sync"].append(timed(lambda: at_once.save(Progress(2 * number + 1))))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{sum(array.nbytes for array in arrays) / 1e6:.0f} MB, medians of {arguments.repeats}: async "
          f"{1e3 * medians['async']:.1f} ms, copy {1e3 * medians['copy']:.1f} ms, sync {1e3 * medians['sync']:.1f} ms; "
          f"async / copy {medians['async'] / medians['copy']:.2f}")


if __name__ == "__main__":
    main()
