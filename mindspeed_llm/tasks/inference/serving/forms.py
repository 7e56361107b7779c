"""The objects of the OpenAI API that answers are put into: whole ones and the chunks of a stream."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.generation.engine import TokenEvent
from mindspeed_llm.tasks.inference.serving.texts import CallDelta, Delta

_LEAST_LOG_PROB = -9999.0   # stands for minus infinity, which JSON has not


@dataclass
class Usage:
    """Numbers of tokens of one HTTP request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def body(self) -> dict[str, Any]:
        """As the API has it."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": self.cached_tokens}}


@dataclass
class _Choice:
    """All that is known of one answer."""

    content: str = ""
    thoughts: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    log_probs: list[dict] = field(default_factory=list)
    reason: str | None = None


class Form(ABC):
    """What the forms of both endpoints have in common. `log_probs`: whether the tokens' are asked for."""

    kind = ""

    def __init__(self, name: str, model: str, tokenizer: Tokenizer, count: int, *, log_probs: bool) -> None:
        self._head = {"id": name, "created": int(time.time()), "model": model}
        self._tokenizer, self._log_probs = tokenizer, log_probs
        self._choices = [_Choice() for _ in range(count)]

    def add(self, index: int, delta: Delta) -> None:
        """More of an answer."""
        choice = self._choices[index]
        choice.content += delta.content
        choice.thoughts += delta.thoughts
        for call in delta.calls:
            if call.id is not None:
                choice.calls.append(CallDelta(call.index, call.arguments, call.id, call.name))
            else:
                choice.calls[call.index].arguments += call.arguments
        choice.log_probs += self._entries(delta)

    def end(self, index: int, reason: str) -> None:
        """An answer is complete, for the `reason` that the API has."""
        self._choices[index].reason = reason

    def whole(self, usage: Usage) -> dict[str, Any]:
        """All answers as one object."""
        return {**self._head, "object": self.kind, "usage": usage.body,
                "choices": [{"index": index, **self._content(choice), "logprobs": self._gathered(choice.log_probs),
                             "finish_reason": choice.reason} for index, choice in enumerate(self._choices)]}

    def first_chunks(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    def chunk(self, index: int, delta: Delta, reason: str | None = None) -> dict[str, Any]:
        """A piece of an answer, the last one with the reason of its end."""
        return self._chunk([{"index": index, **self._piece(delta), "logprobs": self._gathered(self._entries(delta)),
                             "finish_reason": reason}])

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """What `stream_options.include_usage` asks for, the last chunk of a stream."""
        return {**self._chunk([]), "usage": usage.body}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.kind, "choices": choices}

    @abstractmethod
    def _content(self, choice: _Choice) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def _piece(self, delta: Delta) -> dict[str, Any]:
        """What is new of an answer."""

    @abstractmethod
    def _entry(self, event: TokenEvent, offset: int) -> dict[str, Any]:
        """The log-probabilities of one token."""

    @abstractmethod
    def _gathered(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Those of several tokens; None if they are not asked for."""

    def _entries(self, delta: Delta) -> list[dict[str, Any]]:
        if not self._log_probs:
            return []
        return [self._entry(event, offset) for event, offset in zip(delta.tokens, delta.offsets, strict=True)]

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special=False)


class ChatForm(Form):
    """`chat.completion` and `chat.completion.chunk`."""

    kind = "chat.completion"

    def first_chunks(self) -> list[dict[str, Any]]:
        """Who speaks."""
        return [self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                              "finish_reason": None}]) for index in range(len(self._choices))]

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return super()._chunk(choices) | {"object": self.kind + ".chunk"}

    def _content(self, choice: _Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.thoughts:
            message["reasoning_content"] = choice.thoughts
        if choice.calls:
            message["content"] = choice.content or None
            message["tool_calls"] = [{"id": call.id, "type": "function",
                                      "function": {"name": call.name, "arguments": call.arguments}}
                                     for call in choice.calls]
        return {"message": message}

    def _piece(self, delta: Delta) -> dict[str, Any]:
        piece: dict[str, Any] = {}
        if delta.content:
            piece["content"] = delta.content
        if delta.thoughts:
            piece["reasoning_content"] = delta.thoughts
        if delta.calls:
            piece["tool_calls"] = [_call_piece(call) for call in delta.calls]
        return {"delta": piece}

    def _entry(self, event: TokenEvent, _offset: int) -> dict[str, Any]:
        return {**self._spelled(event.token, event.log_prob),
                "top_logprobs": [self._spelled(token, log_prob) for token, log_prob in event.top]}

    def _spelled(self, token: int, log_prob: float) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": max(log_prob, _LEAST_LOG_PROB),
                "bytes": list(self._tokenizer.token_bytes(token, skip_special=False))}

    def _gathered(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": list(entries), "refusal": None} if self._log_probs else None


class CompletionForm(Form):
    """`text_completion`, whole and in chunks."""

    kind = "text_completion"

    def _content(self, choice: _Choice) -> dict[str, Any]:
        return {"text": choice.content}

    def _piece(self, delta: Delta) -> dict[str, Any]:
        return {"text": delta.content}

    def _entry(self, event: TokenEvent, offset: int) -> dict[str, Any]:
        top = {self._text(token): max(log_prob, _LEAST_LOG_PROB) for token, log_prob in event.top}
        return {"tokens": self._text(event.token), "token_logprobs": max(event.log_prob, _LEAST_LOG_PROB),
                "top_logprobs": top, "text_offset": offset}

    def _gathered(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        if not self._log_probs:
            return None
        return {name: [entry[name] for entry in entries]
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}


def _call_piece(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, "id": call.id, "type": "function",
            "function": {"name": call.name, "arguments": call.arguments}}
