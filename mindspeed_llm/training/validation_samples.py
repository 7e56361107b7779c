"""What the model says as it is now: continuations of validation prompts (`--eval-generate`)."""

import json
from dataclasses import dataclass

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.training.batches import Batches

NEW_TOKENS = 64
_SHOWN = 200  # last characters of a prompt that the log shows


@dataclass(frozen=True)
class ValidationSample:
    """A prompt and its continuation, as text."""

    prompt: str
    continuation: str

    def line(self, number: int, iteration: int) -> str:
        """The log line; texts are JSON strings, so that each stays on one line."""
        prompt = self.prompt if len(self.prompt) <= _SHOWN else f"...{self.prompt[-_SHOWN:]}"
        prompt, answer = (json.dumps(text, ensure_ascii=False) for text in (prompt, self.continuation))
        return f" validation sample {number} at iteration {iteration} | prompt: {prompt} | continuation: {answer} |"

    def text(self) -> str:
        """Markdown for TensorBoard, in which both are code blocks."""
        return "\n\n".join(f"**{title}**\n\n{_code_block(text)}" for title, text in
                           (("prompt", self.prompt), ("continuation", self.continuation)))


class ValidationSamples:
    """Greedy continuations of the same validation prompts at every validation.

    The live weights are used as they lie, under any parallel sizes; nothing that training goes on with is touched.
    Every data-parallel replica does the same work, so that none waits for another in a collective.
    """

    def __init__(self, configs: Configs, chunks: list[GPTModel], batches: Batches) -> None:
        data, longest = configs.data, configs.model.max_position_embeddings
        self._tokenizer = load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type)
        self._generator = Generator(chunks, self._tokenizer.vocab_size, longest)
        self._prompts = batches.prompts(configs.train.eval_generate, below=longest)
        if not self._prompts:
            raise UserError(f"--eval-generate ({configs.train.eval_generate}): no validation sample begins with a "
                            f"prompt of 1 to {longest - 1} tokens: leave the flag out")
        self._config = GenerationConfig(NEW_TOKENS, frozenset(self._tokenizer.stop_ids))

    def generate(self) -> list[ValidationSample]:
        """The samples, on every rank. Collective among the ranks of a model replica."""
        answers = generate(self._generator, self._prompts, self._config)
        return [ValidationSample(self._tokenizer.decode(prompt, skip_special=False), self._tokenizer.decode(answer.ids))
                for prompt, answer in zip(self._prompts, answers, strict=True)]


def _code_block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
