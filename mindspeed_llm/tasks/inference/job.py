"""What `inference.py` does: the tasks of `--task` in turn, over the prompts of `--prompt` or `--prompt-file`.

Rank 0 prints, for every task but chat and every prompt, a block of this form (stdout)::

    =============== Greedy Search ===============
    You:
    {prompt}

    MindSpeed-LLM:
    {answer}
    =============================================
    elapsed: 1.23 s | new tokens: 45 | tokens/s: 36.6 | ended by: stop

The titles are `Greedy Search`, `Do Sample`, `Beam Search` and `Beam Search with sampling`. With a single prompt the
answer appears as it is generated (beam search excepted: its answer is known at the end). Several prompts run
together, up to TOGETHER at a time; the numbers then are those of all of them, printed once after the last block.
`ended by` is `stop` (the model's stop token), `length` (--max-new-tokens) or `positions` (the longest sequence that
the model takes). A beam search has `score` there, the mean log-probability of the answer's tokens.

With `--output` rank 0 also writes a JSON line for every task but chat and every prompt: `task`, `prompt`, `text`,
`ids`, `log_probs` (of each id, see `decoding.Answer` and `beam_search.Hypothesis`), `finish_reason` (as `ended by`),
and `score` of a beam search.

`chat` samples when --temperature, --top-k or --top-p is given, and takes the likeliest token otherwise. Data-parallel
replicas (more ranks than TP x PP) repeat the same work.
"""

import sys
import time
from collections.abc import Sequence

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.generation.beam_search import Hypothesis, beam_search
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import Answer, generate
from mindspeed_llm.generation.generator import PromptLengthError
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.tasks.inference.chat import Conversation, chat
from mindspeed_llm.tasks.inference.files import AnswerFile, check_output, read_prompts, read_tools
from mindspeed_llm.tasks.inference.loading import Loaded, load, report_once
from mindspeed_llm.tasks.inference.prompting import Prompter
from mindspeed_llm.tasks.inference.terminal import Inbox, Speaker

DEFAULT_PROMPTS = ("What is the capital of France?", "Explain in one sentence why the sky is blue.",
                   "请用一句话介绍北京。")

TOGETHER = 32  # prompts whose caches are in memory at a time

_TITLES = {"greedy": "Greedy Search", "do_sample": "Do Sample", "beam_search": "Beam Search",
           "beam_search_with_sampling": "Beam Search with sampling"}
_SAMPLED = ("do_sample", "beam_search_with_sampling")
_RULE = "=" * 15


def run(configs: Configs) -> None:
    """Load the model and run every task. Raises UserError or FileNotFoundError with what to put right."""
    config = configs.inference
    if config.task == ("serve",):
        from mindspeed_llm.tasks.inference.serving.server import run as serve   # its libraries, only where they are used

        serve(configs)
        return
    # before the model: a wrong file should not cost the time of loading
    texts = read_prompts(config.prompt_file) if config.prompt_file else config.prompts or DEFAULT_PROMPTS
    tools = read_tools(config.tools) if config.tools else ""
    if config.output:
        check_output(config.output)
    loaded = load(configs)
    if loaded.state.dp.size > 1:
        report_once(loaded.state, f"{loaded.state.dp.size} data-parallel replicas repeat the same work: TP x PP ranks "
                                  "would do")
    job = Job(loaded, texts, tools)
    for task in config.task:
        if task == "chat":
            job.chat()
        elif task in ("beam_search", "beam_search_with_sampling"):
            job.beam_search(task)
        else:
            job.generate(task)
    barrier()


class Job:
    """A loaded model and the prompts of one command line. Raises UserError for a prompt that is too long."""

    def __init__(self, loaded: Loaded, texts: Sequence[str], tools: str = "") -> None:
        self._config = loaded.configs.inference
        self._explicit, self._seed = loaded.configs.explicit, loaded.configs.train.seed
        self._speaks = loaded.is_rank_0
        self._tokenizer, self._world = loaded.tokenizer, loaded.state.world
        self._prompter = Prompter.of(loaded.configs, loaded.tokenizer, self._config.no_chat_template,
                                     self._config.hf_chat_template, self._config.system_prompt, tools)
        self._generator = loaded.generator()
        self._texts = texts
        self._prompts = [self._prompter.prompt(text) for text in texts]
        for number, prompt in enumerate(self._prompts, start=1):
            try:
                self._generator.check_length(prompt)
            except PromptLengthError as problem:
                raise PromptLengthError(f"prompt {number}: {problem}") from None
        self._file = AnswerFile(self._config.output) if self._config.output and self._speaks else None

    def generate(self, task: str) -> None:
        """Greedy search or sampling for all prompts, TOGETHER at a time."""
        started, single = time.time(), len(self._prompts) == 1
        speaker = Speaker(self._tokenizer, sys.stdout) if single and self._speaks else None
        if single:
            self._open_block(task, self._texts[0])
        on_token = None if speaker is None else lambda _, token: speaker.push(token)
        answers: list[Answer] = []
        for first in range(0, len(self._prompts), TOGETHER):
            group = slice(first, first + TOGETHER)
            answers += generate(self._generator, self._prompts[group], self._how(task), on_token, first)
            for text, answer in zip(self._texts[group], answers[group], strict=True):
                if not single:
                    self._open_block(task, text)
                    self._print(self._prompter.text(answer.ids))
                elif speaker is not None:
                    speaker.finish()
                self._close_block(task)
            self._record(task, self._texts[group], answers[group])
        self._print(_summary(answers, time.time() - started))

    def beam_search(self, task: str) -> None:
        """Beam search, with sampling or not, prompt after prompt."""
        for number, (text, prompt) in enumerate(zip(self._texts, self._prompts, strict=True)):
            started = time.time()
            best = beam_search(self._generator, prompt, self._how(task), number)[0]
            self._open_block(task, text)
            self._print(self._prompter.text(best.ids))
            self._close_block(task)
            self._print(f"elapsed: {time.time() - started:.2f} s | new tokens: {len(best.ids)} | "
                        f"score: {best.score:.4f}")
            self._record(task, [text], [best])

    def chat(self) -> None:
        """A conversation over rank 0's standard input."""
        reshaped = self._explicit & {"temperature", "top_k", "top_p"}
        conversation = Conversation(self._generator, self._prompter, self._how("do_sample" if reshaped else "greedy"),
                                    self._config.history_turns)
        chat(conversation, Inbox(self._world), self._speaks)

    def _how(self, task: str) -> GenerationConfig:
        config = self._config
        return GenerationConfig(config.max_new_tokens, frozenset(self._tokenizer.stop_ids), task in _SAMPLED,
                                config.temperature, config.top_k, config.top_p, self._seed, config.num_beams,
                                config.repetition_penalty, log_probs=bool(config.output))

    def _record(self, task: str, texts: Sequence[str], answers: Sequence[Answer | Hypothesis]) -> None:
        if self._file is not None:
            self._file.add([{"task": task, "prompt": text, "text": self._prompter.text(answer.ids), "ids": answer.ids,
                             "log_probs": answer.log_probs, "finish_reason": answer.reason}
                            | ({"score": answer.score} if isinstance(answer, Hypothesis) else {})
                            for text, answer in zip(texts, answers, strict=True)])

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
