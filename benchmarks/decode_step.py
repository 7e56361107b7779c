"""Speed of generation with a KV cache against Hugging Face's GlmForCausalLM on PyTorch, same weights and prompts, in one run.

    python benchmarks/decode_step.py --peer-python path/to/venv/bin/python --dtype fp32 --batch 8

The peer's environment is that of train_step.py. Two worker processes take turns, ours, theirs, ours, ...: each turn goes
back to the end of the prompts and decodes --tokens greedily for every sequence; medians and their ratio are printed. Every
prompt has --seq tokens, because the peer would need padding for others. --isa limits both sides to an instruction set, as in
train_step.py.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from train_step import BENCH, ROOT, alternate, compared, peer_model, read_inputs, side_options, step_options


def our_generator(data, options):
    """A Generator over these weights."""
    sys.path.insert(0, str(ROOT))
    from mindspeed_llm import kernels
    from mindspeed_llm.checkpoint.dtypes import cast
    from mindspeed_llm.config.model import ModelConfig
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.core import parallel_state
    from mindspeed_llm.core.gpt_model import GPTModel
    from mindspeed_llm.generation.generator import Generator
    from mindspeed_llm.runtime import device
    device.setup()
    kernels.setup(options.dtype)
    model, parallel = ModelConfig(**BENCH), ParallelConfig()
    state = parallel_state.build(model, parallel)
    chunk = GPTModel(model, parallel, state, device.dtype(options.dtype), trainable=False)
    for name in chunk.parameters.specs:
        chunk.parameters.load(name, cast(data[name], "fp32", options.dtype))
    return Generator([chunk], BENCH["padded_vocab_size"], BENCH["max_position_embeddings"])


def ours(data, options):
    """Returns the function that decodes: greedy ids `(tokens, batch)`."""
    generator = our_generator(data, options)
    from mindspeed_llm.generation.sampling import greedy
    caches, start = generator.prefill(data["ids"].tolist())

    def decode():
        for cache in caches:
            cache.truncate(options.seq)
        logits, chosen = start, []
        for _ in range(options.tokens):
            chosen.append(greedy(logits, range(options.batch)))
            logits = generator.decode(caches, chosen[-1])
        return np.array(chosen)
    return decode


def peer(data, options):
    """The same with PyTorch."""
    import torch
    from transformers import DynamicCache
    torch.set_num_threads(options.threads)
    model = peer_model(data, options.dtype).eval()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        start = model(input_ids=torch.from_numpy(data["ids"]), past_key_values=cache, logits_to_keep=1).logits[:, -1]

    @torch.inference_mode()
    def decode():
        if cache.get_seq_length() > options.seq:
            cache.crop(options.seq - cache.get_seq_length())  # negative: so many tokens are taken off
        logits, chosen = start, []
        for _ in range(options.tokens):
            chosen.append(logits.argmax(-1))
            logits = model(input_ids=chosen[-1][:, None], past_key_values=cache, logits_to_keep=1).logits[:, -1]
        return torch.stack(chosen).numpy()
    return decode


def work(options) -> None:
    """A worker: one turn per line on stdin, its seconds and ids as JSON on stdout."""
    decode = {"ours": ours, "peer": peer}[options.worker](read_inputs(options.data), options)
    for _ in sys.stdin:
        started = time.perf_counter()
        ids = decode()
        print(json.dumps({"seconds": time.perf_counter() - started, "ids": ids.tolist()}), flush=True)


def main() -> None:
    parser = step_options(__doc__, steps=8)
    parser.add_argument("--tokens", type=int, default=16, help="tokens that a turn decodes for each sequence")
    options = side_options(parser, work)
    results = alternate(Path(__file__), options)
    medians, speed = compared(results)
    for name, median in medians.items():
        print(f"{name}: median {median / options.tokens * 1000:.2f} ms a step, "
              f"{options.batch * options.tokens / median:.0f} tokens/s")
    same = np.mean(np.array(results["ours"][-1]["ids"]) == np.array(results["peer"][-1]["ids"]))
    print(f"{options.dtype} {options.batch} x {options.seq}{f' {options.isa}' if options.isa else ''}: {speed}, "
          f"{100 * same:.0f}% of the ids are the same")


if __name__ == "__main__":
    main()
