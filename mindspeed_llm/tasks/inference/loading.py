"""From a command line to a model that can run: device, kernels, groups, weights, tokenizer.

Evaluation uses this too.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from mindspeed_llm.checkpoint import Checkpoint, WeightSource, find_adapters, open_checkpoint
from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.families.hf_checkpoint import HfCheckpoint
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime import device
from mindspeed_llm.session import join_job, start_session
from mindspeed_llm.session.weights import load_weights, loaded_line, resolve


@dataclass(frozen=True)
class Loaded:
    """This rank's stage of a loaded model, with what belongs to it. `configs.model` is the checkpoint's shape."""

    configs: Configs
    state: ParallelState
    model: GPTModel
    tokenizer: Tokenizer

    @property
    def is_rank_0(self) -> bool:
        """True on the rank that talks to the user."""
        return self.state.world.rank == 0

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens: --seq-length where given, else the model's maximum positions."""
        return self.configs.train.seq_length

    def generator(self) -> Generator:
        """The model as a generator."""
        return Generator([self.model], self.tokenizer.vocab_size, self.max_length)


def load(configs: Configs) -> Loaded:
    """Set up this process and load `--load` under the asked parallel sizes; rank 0 prints what was chosen.

    The model's shape and rotary base come from the checkpoint's metadata. Raises UserError or FileNotFoundError when
    there is no checkpoint, when flags or tokenizer contradict it, or when the ranks do not fit.
    """
    join_job(configs.train, configs.parallel)
    checkpoint = require_checkpoint(configs.checkpoint.load, configs.checkpoint.ckpt_step,
                                    configs.parallel.tensor_model_parallel_size)
    adapters = find_adapters(configs.checkpoint.lora_load, checkpoint, f"--load {configs.checkpoint.load}")
    configs = _with_checkpoint(configs, checkpoint, adapters)
    warnings = [found.warning for found in (checkpoint, adapters) if found is not None and found.warning]
    configs = replace(configs, notes=[*configs.notes, *dict.fromkeys(warnings)])
    data, dtype = configs.data, configs.train.params_dtype
    tokenizer = load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type)
    for name in configs.inference.add_eos_token if configs.inference else ():
        tokenizer.add_stop(name)
    if tokenizer.vocab_size > configs.model.padded_vocab_size:
        raise UserError(f"the tokenizer {data.tokenizer_name_or_path} has {tokenizer.vocab_size} ids, but the model of "
                        f"{checkpoint.directory} only {configs.model.padded_vocab_size}: give the model's own "
                        "tokenizer")
    session = start_session(configs.model, configs.parallel, dtype, configs.notes)
    started = time.time()
    model = GPTModel(configs.model, configs.parallel, session.state, device.dtype(dtype), lora=configs.lora,
                     trainable=False)
    load_weights([model], checkpoint, dtype, adapters)
    checkpoint.close()
    session.say(loaded_line(configs.checkpoint.load, checkpoint.iteration, checkpoint.iteration)
             + f" ({time.time() - started:.1f} s)")
    if adapters is not None and adapters is not checkpoint:
        session.say(loaded_line(configs.checkpoint.lora_load, adapters.iteration, adapters.iteration))
        adapters.close()
    return Loaded(configs, session.state, model, tokenizer)


def require_checkpoint(load_dir: str | None, iteration: int | None = None,
                       tensor_parallel_size: int = 1) -> WeightSource:
    """Open the checkpoint of `--load` (`--ckpt-step`), or the Hugging Face directory.

    Raises UserError or FileNotFoundError where there is none.
    """
    if not load_dir:
        raise UserError("--load must be given: the directory of an mcore checkpoint or of a Hugging Face model (random "
                        "weights have nothing to say)")
    if not Path(load_dir).is_dir():
        raise FileNotFoundError(f"--load {load_dir}: no such directory; convert_ckpt.py or pretrain_gpt.py makes one")
    checkpoint = open_checkpoint(load_dir, iteration)
    if checkpoint is not None:
        return checkpoint
    if (Path(load_dir) / "config.json").is_file():
        return HfCheckpoint(load_dir, tensor_parallel_size, "--load")
    raise FileNotFoundError(f"--load {load_dir} holds no checkpoint (no latest_checkpointed_iteration.txt) and no "
                            "Hugging Face model (no config.json): give a directory that convert_ckpt.py or "
                            "pretrain_gpt.py has written, or that of a Hugging Face model")


def report_once(state: ParallelState, text: str) -> None:
    """One line on stderr from rank 0."""
    if state.world.rank == 0:
        print(text, file=sys.stderr, flush=True)


def _with_checkpoint(configs: Configs, checkpoint: WeightSource, adapters: Checkpoint | None) -> Configs:
    # A few tokens a step: cutting them along the sequence has nothing to gain and a step of one token cannot be cut.
    configs = replace(configs, parallel=replace(configs.parallel, sequence_parallel=False))
    return resolve(configs, checkpoint, adapters)
