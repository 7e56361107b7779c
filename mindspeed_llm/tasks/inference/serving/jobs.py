"""From the body of an HTTP request to requests of the engine, and from the engine's events to an answer."""

import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from mindspeed_llm.data.templates import Message, Template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.engine import EndEvent, Request, TokenEvent
from mindspeed_llm.tasks.inference.serving.errors import ApiError, stopping
from mindspeed_llm.tasks.inference.serving.forms import ChatForm, CompletionForm, Form, Usage
from mindspeed_llm.tasks.inference.serving.hub import Event, EventStream, Hub
from mindspeed_llm.tasks.inference.serving.protocol import MAX_CHOICES, ChatBody, CompletionBody, ToolChoice
from mindspeed_llm.tasks.inference.serving.texts import AnswerReader, ChatParts, Delta, PlainParts

_REASONS = {"stop": "stop", "length": "length", "positions": "length"}
_TURN_MARK = "<|assistant|>"


class Job:
    """One HTTP request under way: what is asked of the engine, what is known of the answers."""

    def __init__(self, name: str, requests: Sequence[Request], readers: Sequence[AnswerReader], form: Form,
                 prompts: int) -> None:
        self.name, self.requests, self._form = name, requests, form
        self._readers = {request.name: (index, reader) for index, (request, reader) in
                         enumerate(zip(requests, readers, strict=True))}
        self._choices_each = len(requests) // prompts
        self.usage = Usage(prompt_tokens=sum(len(request.prompt) for request in requests[::self._choices_each]))
        self.reasons: list[str] = []
        self.first_token_at: float | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens of all answers so far; `usage` has those of answers that have ended."""
        return sum(reader.tokens for _, reader in self._readers.values())

    def _take(self, event: Event, hub: Hub) -> tuple[int, Delta, str | None]:
        """What an event says: of which answer, what is new, and why it ends if it does."""
        index, reader = self._readers[event.name]
        if isinstance(event, TokenEvent):
            self.first_token_at = self.first_token_at or time.monotonic()
            before = reader.stopped
            delta, reason = reader.push(event), None
            if reader.stopped and not before:
                hub.engine.cancel(event.name)
        else:
            delta, reason = reader.finish(), self._reason(event, reader)
            self.reasons.append(reason)
            self.usage.completion_tokens += reader.tokens
            if index % self._choices_each == 0:
                self.usage.cached_tokens += event.cached_tokens
        self._form.add(index, delta)
        if reason is not None:
            self._form.end(index, reason)
        return index, delta, reason

    def _reason(self, event: EndEvent, reader: AnswerReader) -> str:
        if event.reason == "cancelled" and not reader.stopped:
            self.reasons.append("cancelled")
            raise stopping()
        reason = "stop" if reader.stopped else _REASONS[event.reason]
        return "tool_calls" if reason == "stop" and reader.calls else reason

    async def whole(self, stream: EventStream, hub: Hub) -> dict[str, Any]:
        """All answers, when they are complete. Raises ApiError when the server ends before."""
        async for event in stream:
            self._take(event, hub)
        return self._form.whole(self.usage)

    async def chunks(self, stream: EventStream, hub: Hub, *, usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The answers as they come. Raises ApiError when the server ends before they are complete."""
        for chunk in self._form.first_chunks():
            yield chunk
        async for event in stream:
            index, delta, reason = self._take(event, hub)
            if delta or reason is not None:
                yield self._form.chunk(index, delta, reason)
        if usage:
            yield self._form.usage_chunk(self.usage)


class Jobs:
    """Makes the jobs of both endpoints. Raises ApiError, or UserError for what a template or the engine refuses.

    `template` is None under --no-chat-template: then messages are lines of one text. `system_prompt` stands in chats
    that have no system message.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | None, model: str, max_length: int,
                 system_prompt: str = "") -> None:
        self._tokenizer, self._template, self._model, self._max_length = tokenizer, template, model, max_length
        self._system = [Message("system", system_prompt)] if system_prompt else []

    def chat(self, body: ChatBody) -> Job:
        """A job of /v1/chat/completions."""
        tools, forced = _wanted_tools(body)
        prompt = self._chat_prompt(body, tools, forced)
        native = self._template is not None and self._template.native_tools
        thinking = self._template is not None and self._template.thinking
        config = self._config(body, body.limit, log_probs=bool(body.logprobs), top=body.top_logprobs or 0)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")

        def reader() -> AnswerReader:
            parts = ChatParts(tuple(tool["name"] for tool in tools), thinking=thinking and forced is None,
                              forced=forced, several_calls=body.parallel_tool_calls is not False)
            return AnswerReader(self._tokenizer, body.stops, parts,
                                self._tokenizer.special(_TURN_MARK) if native else None)
        return self._job("chatcmpl-", ChatForm, [prompt], body.choices, config, reader, bool(body.logprobs))

    def completion(self, body: CompletionBody) -> Job:
        """A job of /v1/completions."""
        prompts = [self._plain_prompt(prompt) for prompt in body.prompts]
        if len(prompts) * body.choices > MAX_CHOICES:
            raise ApiError(400, f"{len(prompts)} prompts with {body.choices} choices each are more than the "
                                f"{MAX_CHOICES} answers that one request may ask for", param="prompt",
                           code="invalid_value")
        wanted = body.logprobs is not None
        config = self._config(body, body.max_tokens, log_probs=wanted, top=body.logprobs or 0)
        return self._job("cmpl-", CompletionForm, prompts, body.choices, config,
                         lambda: AnswerReader(self._tokenizer, body.stops, PlainParts()), wanted)

    def _job(self, kind: str, form: type[Form], prompts: Sequence[Sequence[int]], choices: int,
             config: GenerationConfig, reader: Callable[[], AnswerReader], log_probs: bool) -> Job:
        name = kind + secrets.token_hex(12)
        requests = [Request(f"{name}-{index}", tuple(prompt), replace(config, seed=config.seed + index))
                    for index, prompt in enumerate(prompt for prompt in prompts for _ in range(choices))]
        return Job(name, requests, [reader() for _ in requests],
                   form(name, self._model, self._tokenizer, len(requests), log_probs=log_probs), len(prompts))

    def _chat_prompt(self, body: ChatBody, tools: list[dict], forced: str | None) -> list[int]:
        turns = [turn for message in body.messages for turn in message.turns()]
        if self._template is None:
            if tools:
                raise ApiError(400, "tools need a chat template: the server runs with --no-chat-template",
                               param="tools", code="invalid_value")
            return self._tokenizer.encode("\n".join(turn.content for turn in turns), add_special=True)
        if all(turn.role != "system" for turn in turns):
            turns = self._system + turns
        return self._template.encode_chat(self._tokenizer, turns, json.dumps(tools) if tools else "",
                                          forced + "\n" if forced else "")

    def _plain_prompt(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_special=True)
        highest = max(prompt)
        if highest >= self._tokenizer.vocab_size:
            raise ApiError(400, f"prompt holds the id {highest}: ids of this model are 0 to "
                                f"{self._tokenizer.vocab_size - 1}", param="prompt", code="invalid_value")
        return prompt

    def _config(self, body: ChatBody | CompletionBody, limit: int | None, *, log_probs: bool,
                top: int) -> GenerationConfig:
        temperature = 1.0 if body.temperature is None else body.temperature
        top_p = 1.0 if body.top_p is None else body.top_p
        return GenerationConfig(
            max_new_tokens=limit or self._max_length, stop_ids=frozenset(self._tokenizer.stop_ids),
            do_sample=temperature > 0 and top_p > 0, temperature=temperature or 1.0, top_k=body.top_k or 0,
            top_p=top_p or 1.0,
            seed=random.SystemRandom().getrandbits(63) if body.seed is None else body.seed,
            repetition_penalty=body.repetition_penalty or 1.0, log_probs=log_probs, top_log_probs=top)


def _wanted_tools(body: ChatBody) -> tuple[list[dict[str, Any]], str | None]:
    """Descriptions of the tools that the model may call, and the name of the one that it must.

    A call is forced by writing the tool's name for the model, so it can be forced when there is one to choose.
    """
    tools, choice = [tool.function for tool in body.tools or ()], body.tool_choice
    if choice is None or choice == "auto":
        return tools, None
    if choice == "none":
        return [], None
    names = [choice.function.name] if isinstance(choice, ToolChoice) else [tool["name"] for tool in tools]
    if choice == "required" and len(names) != 1:
        raise ApiError(400, f"tool_choice required needs exactly one tool, there are {len(names)}: name the function "
                            "to call", param="tool_choice", code="invalid_value")
    if names[0] not in {tool["name"] for tool in tools}:
        raise ApiError(400, f"tool_choice names {names[0]}, which is not among the tools", param="tool_choice",
                       code="invalid_value")
    return tools, names[0]
