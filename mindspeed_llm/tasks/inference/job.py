"""What `inference.py` does: the tasks of `--task` in turn, over the prompts of `--prompt`.

Rank 0 prints, for every task but chat and every prompt, a block of this form (stdout)::

    =============== Greedy Search ===============
    You:
    {prompt}

    MindSpeed-LLM:
    {answer}
    =============================================
    elapsed: 1.23 s | new tokens: 45 | tokens/s: 36.6 | ended by: stop

The titles are `Greedy Search`, `Do Sample` and `Beam Search`. With a single prompt the answer appears as it is
generated (beam search excepted: its answer is known at the end). Several prompts run together; the numbers then are
those of all of them, printed once after the last block. `ended by` is `stop` (the model's stop token), `length`
(--max-new-tokens) or `positions` (the longest sequence that the model takes). A beam search has `score` there, the mean
log-probability of the answer's tokens.

`chat` samples when --temperature, --top-k or --top-p is given, and takes the likeliest token otherwise. Data-parallel
replicas (more ranks than TP x PP) repeat the same work.
"""

import sys
import time

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.generation.beam_search import beam_search
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import Answer, generate
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.tasks.inference.chat import Conversation, chat
from mindspeed_llm.tasks.inference.loading import Loaded, load, report_once
from mindspeed_llm.tasks.inference.prompting import Prompter
from mindspeed_llm.tasks.inference.terminal import Inbox, Speaker

DEFAULT_PROMPTS = ("What is the capital of France?", "Explain in one sentence why the sky is blue.",
                   "请用一句话介绍北京。")

_TITLES = {"greedy": "Greedy Search", "do_sample": "Do Sample", "beam_search": "Beam Search"}
_RULE = "=" * 15


def run(configs: Configs) -> None:
    """Load the model and run every task. Raises UserError or FileNotFoundError with what to put right."""
    loaded = load(configs)
    if loaded.state.dp.size > 1:
        report_once(loaded.state, f"{loaded.state.dp.size} data-parallel replicas repeat the same work: TP x PP ranks "
                                  "would do")
    job = Job(loaded)
    for task in configs.inference.task:
        if task == "chat":
            job.chat()
        elif task == "beam_search":
            job.beam_search()
        else:
            job.generate(task)
    barrier()


class Job:
    """A loaded model and the prompts of one command line. Raises UserError for a prompt that is too long."""

    def __init__(self, loaded: Loaded) -> None:
        self._config = loaded.configs.inference
        self._explicit, self._seed = loaded.configs.explicit, loaded.configs.train.seed
        self._speaks = loaded.is_rank_0
        self._tokenizer, self._world = loaded.tokenizer, loaded.state.world
        self._prompter = Prompter.of(loaded.configs, loaded.tokenizer, self._config.no_chat_template,
                                     self._config.system_prompt)
        self._generator = loaded.generator()
        self._texts = self._config.prompts or DEFAULT_PROMPTS
        self._prompts = [self._prompter.prompt(text) for text in self._texts]
        for prompt in self._prompts:
            self._generator.check_length(prompt)

    def generate(self, task: str) -> None:
        """Greedy search or sampling for all prompts together."""
        started, single = time.time(), len(self._prompts) == 1
        speaker = Speaker(self._tokenizer, sys.stdout) if single and self._speaks else None
        if single:
            self._open_block(task, self._texts[0])
        on_token = None if speaker is None else lambda _, token: speaker.push(token)
        answers = generate(self._generator, self._prompts, self._how(task), on_token)
        if speaker is not None:
            speaker.finish()
        if not single:
            for text, answer in zip(self._texts, answers, strict=True):
                self._open_block(task, text)
                self._print(self._prompter.text(answer.ids))
                self._close_block(task)
        else:
            self._close_block(task)
        self._print(_summary(answers, time.time() - started))

    def beam_search(self) -> None:
        """Beam search, prompt after prompt."""
        for text, prompt in zip(self._texts, self._prompts, strict=True):
            started = time.time()
            best = beam_search(self._generator, prompt, self._how("beam_search"))[0]
            self._open_block("beam_search", text)
            self._print(self._prompter.text(best.ids))
            self._close_block("beam_search")
            self._print(f"elapsed: {time.time() - started:.2f} s | new tokens: {len(best.ids)} | "
                        f"score: {best.score:.4f}")

    def chat(self) -> None:
        """A conversation over rank 0's standard input."""
        reshaped = self._explicit & {"temperature", "top_k", "top_p"}
        conversation = Conversation(self._generator, self._prompter, self._how("do_sample" if reshaped else "greedy"))
        chat(conversation, Inbox(self._world), self._speaks)

    def _how(self, task: str) -> GenerationConfig:
        config = self._config
        return GenerationConfig(config.max_new_tokens, frozenset(self._tokenizer.stop_ids), task == "do_sample",
                                config.temperature, config.top_k, config.top_p, self._seed, config.num_beams,
                                config.repetition_penalty)

    def _open_block(self, task: str, prompt: str) -> None:
        self._print(f"{_RULE} {_TITLES[task]} {_RULE}\nYou:\n{prompt}\n\nMindSpeed-LLM:")

    def _close_block(self, task: str) -> None:
        self._print("=" * (2 * len(_RULE) + 2 + len(_TITLES[task])))

    def _print(self, text: str) -> None:
        if self._speaks:
            print(text, flush=True)


def _summary(answers: list[Answer], seconds: float) -> str:
    tokens = sum(len(answer.ids) for answer in answers)
    reasons = ", ".join(dict.fromkeys(answer.reason for answer in answers))
    return f"elapsed: {seconds:.2f} s | new tokens: {tokens} | tokens/s: {tokens / seconds:.1f} | ended by: {reasons}"
