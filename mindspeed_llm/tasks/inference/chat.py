"""A conversation on rank 0's terminal: the model sees what was said before, and only new tokens are computed."""

import sys
from collections.abc import Sequence

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import continue_from
from mindspeed_llm.generation.generator import Generator, PromptLengthError
from mindspeed_llm.generation.sampling import sampler
from mindspeed_llm.tasks.inference.prompting import Prompter
from mindspeed_llm.tasks.inference.terminal import Inbox, Speaker

EXIT, CLEAR = ("/exit", "exit", "quit", "q"), ("/clear", "clear", "new")
HELP = (f"Commands: {', '.join(CLEAR)} forgets the conversation; {', '.join(EXIT)} ends it (so does the end of the "
        "input); /help.")


class Conversation:
    """What was said, and a cache of the tokens that the model has been through.

    history_turns: earlier questions, with their answers, that the model is shown at most.
    """

    def __init__(self, generator: Generator, prompter: Prompter, config: GenerationConfig,
                 history_turns: int | None = None) -> None:
        self._generator, self.prompter, self._history = generator, prompter, history_turns
        self._config, self._sample = config, sampler(config)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.turns: list[str] = []
        self._cache, self._cached = self._generator.new_cache(), []

    def ask(self, question: str, speaker: Speaker | None = None) -> str:
        """The answer to the next question, shown on `speaker` as it arrives.

        When the conversation no longer fits the model, its oldest turns are left out. Raises PromptLengthError,
        leaving the conversation as it was, when the question alone is too long.
        """
        turns, prompt = self._fit([*self.turns, question])
        same = _common_prefix(self._cached, prompt[:-1])
        self._cache.truncate(same)
        logits = self._generator.extend([self._cache], [prompt[same:]])
        on_token = None if speaker is None else lambda _, token: speaker.push(token)
        (answer,) = continue_from(self._generator, [self._cache], [prompt], logits, self._sample, self._config,
                                  on_token)
        if speaker is not None:
            speaker.finish()
        self._cached = [*prompt, *answer.ids][:self._cache.length]
        text = self.prompter.text(answer.ids)
        self.turns = [*turns, text]
        return text

    def _fit(self, turns: list[str]) -> tuple[list[str], list[int]]:
        if self._history is not None:
            turns = turns[-(2 * self._history + 1):]
        while True:
            prompt = self.prompter.conversation(turns)
            if len(prompt) < self._generator.max_length or len(turns) == 1:
                break
            turns = turns[2:]
        self._generator.check_length(prompt)
        return turns, prompt


def chat(conversation: Conversation, inbox: Inbox, speaks: bool) -> None:
    """Talk until a word of EXIT or the end of the input. All ranks run this; the one that `speaks` writes to stdout."""

    def show(text: str, end: str = "\n") -> None:
        if speaks:
            sys.stdout.write(text + end)
            sys.stdout.flush()

    show(HELP)
    while True:
        show("You: ", end="")
        line = inbox.read()
        if line is None or line.strip() in EXIT:
            show("", end="\n" if line is None else "")
            return
        question = line.strip()
        if question in CLEAR:
            conversation.clear()
            show("(forgotten)")
        elif question == "/help":
            show(HELP)
        elif question:
            show("MindSpeed-LLM: ", end="")
            try:
                conversation.ask(question, Speaker(conversation.prompter.tokenizer, sys.stdout) if speaks else None)
            except PromptLengthError as problem:
                show(f"({problem})")


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first entries are the same."""
    for index, (a, b) in enumerate(zip(left, right)):
        if a != b:
            return index
    return min(len(left), len(right))
