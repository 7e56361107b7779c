"""A checkpoint as a model of lm-evaluation-harness (Gao et al., "A framework for few-shot language model evaluation").

    lm_eval --model mindspeed_llm --model_args load=./model_weights/glm4_mcore/,tokenizer=./model_from_hf/glm4_hf/ \
        --tasks mindspeed_llm/tasks/evaluation/lm_eval.yaml,hellaswag

The harness (0.4.13) looks models up in a table of its own and asks other packages for none, but it loads the functions
that the file of a task names before: `lm_eval.yaml` beside this module names the model, which enters it. So does the
import of this module, for programs that use the harness as a library, and

    python -m mindspeed_llm.tasks.evaluation.harness run --model mindspeed_llm ...

is `lm_eval run ...` with one more model, for several ranks. Install the harness with `pip install '.[harness]'`.

Model arguments: load (checkpoint directory), tokenizer (its directory; by default that of the checkpoint), dtype (fp32,
bf16, fp16), max_length (tokens), prompt_type (chat template, for --apply_chat_template), add_bos_token (default true:
`[gMASK]<sop>` begins each text, without which GLM4 does badly; `--model hf` does the same as long as its own
add_bos_token is not given). --batch_size is sequences in a forward pass. Under `msrun` the ranks share the work as they
do in evaluation.py, with tensor_model_parallel_size and pipeline_model_parallel_size as further model arguments; rank 0
reports.
"""

import contextlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import UserError, run_main

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as problem:
    raise UserError(f"lm-evaluation-harness is not installed ({problem}): pip install '.[harness]'") from None

MAX_NEW_TOKENS = 256  # as the harness has it where a task says nothing


@register_model("mindspeed_llm")
class HarnessModel(TemplateLM):
    """See the module."""

    def __init__(self, load: str, tokenizer: str | None = None, dtype: str = "fp32", batch_size: int | str = 1,
                 max_length: int | None = None, prompt_type: str | None = None, add_bos_token: bool = True,
                 tensor_model_parallel_size: int = 1, pipeline_model_parallel_size: int = 1, **others: Any) -> None:
        super().__init__()
        from mindspeed_llm.tasks.evaluation.language_model import ParallelLanguageModel
        from mindspeed_llm.tasks.inference.loading import load as load_model

        # what the harness passes of its own accord
        unknown = sorted(others.keys() - {"device", "max_batch_size"})
        if unknown or dtype not in ("fp32", "bf16", "fp16"):
            raise UserError(f"--model_args {unknown[0] if unknown else f'dtype={dtype}'} is not known: load, "
                            "tokenizer, dtype (fp32, bf16, fp16), max_length, prompt_type, add_bos_token, "
                            "tensor_model_parallel_size and pipeline_model_parallel_size are")
        if not str(batch_size).isdigit():
            raise UserError(f"--batch_size ({batch_size}) must be a number")
        argv = ["--load", load, "--tokenizer-name-or-path", tokenizer or load,
                "--tensor-model-parallel-size", str(tensor_model_parallel_size),
                "--pipeline-model-parallel-size", str(pipeline_model_parallel_size)]
        argv += ["--seq-length", str(max_length)] if max_length else []
        argv += ["--prompt-type", prompt_type] if prompt_type else []
        argv += [] if dtype == "fp32" else [f"--{dtype}"]
        self._loaded = load_model(parse("inference", argv))
        self._add_bos = add_bos_token
        self._own = self._loaded.tokenizer
        self._marks = re.compile(f"({'|'.join(map(re.escape, self._own.special_tokens))})")
        self._model = ParallelLanguageModel(self._loaded.generator(), int(batch_size))

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, with which the harness begins a text that has no context."""
        return self._own.eos_id

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self._loaded.max_length

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells cached requests apart."""
        return self._loaded.configs.data.tokenizer_name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The name of the template: the harness records it, and texts come from `apply_chat_template`."""
        return self._template().name if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text with its marks, which `tok_encode` reads as special tokens."""
        from mindspeed_llm.data.templates import Message

        system = "".join(turn["content"] for turn in chat_history if turn["role"] == "system")
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history if turn["role"] != "system"]
        if not add_generation_prompt:
            raise UserError("an answer that is begun for the model has no place in the chat templates of this project: "
                            "use a task without one, or no --apply_chat_template")
        ids = self._template().encode_prompt(self._own, turns, system)
        return self._own.decode(ids[len(self._own.bos_prefix):], skip_special=False)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, after the model's prefix unless `add_special_tokens` or `add_bos_token` is False.

        Marks such as `<|user|>` are special tokens here: prompts of a chat template come as text.
        """
        bos = self._add_bos if add_special_tokens is None else add_special_tokens
        ids = list(self._own.bos_prefix) if bos else []
        for part in self._marks.split(string):
            ids += [self._own.special_tokens[part]] if part in self._own.special_tokens else self._own.encode(part)
        return ids

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]],
                              disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each continuation. Too long a context loses its beginning."""
        from mindspeed_llm.tasks.evaluation.language_model import Request

        together: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, (_, context, continuation) in enumerate(requests):
            room = max(1, self.max_length + 1 - len(continuation))
            together[tuple(context[-room:])][tuple(continuation[-self.max_length:])].append(place)
        asked = [Request(context, list(continuations)) for context, continuations in together.items()]
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for continuations, found in zip(together.values(), self._model.log_likelihoods(asked), strict=True):
            for places, log_prob, greedy in zip(continuations.values(), found.log_probs, found.greedy, strict=True):
                for place in places:
                    results[place] = (float(log_prob), bool(greedy))
        for (key, _, _), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of `max_length` as the harness cuts them."""
        windows = [(number, (None, *utils.make_disjoint_window(window)))
                   for number, request in enumerate(requests)
                   for window in utils.get_rolling_token_windows(
                       token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                       max_seq_len=self.max_length, context_len=1)]
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens([window for _, window in windows])
        for (number, _), (log_prob, _) in zip(windows, found, strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest text after each context, up to a text of `until` or a stop token."""
        from mindspeed_llm.tasks.evaluation.runner import cut_at

        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[_how(request.args[1])].append(place)
        results = [""] * len(requests)
        for (until, count), places in alike.items():
            prompts = [self.tok_encode(requests[place].args[0])[-max(1, self.max_length - count):] for place in places]
            ended = self._ended(until)
            answers = self._model.generate(prompts, count, frozenset(self._own.stop_ids), ended)
            for place, ids in zip(places, answers, strict=True):
                results[place] = cut_at(self._own.decode(ids), until)[0]
                self.cache_hook.add_partial("generate_until", requests[place].args, results[place])
        return results

    def _ended(self, until: Sequence[str]) -> Any:
        from mindspeed_llm.tasks.evaluation.runner import cut_at

        return lambda ids: cut_at(self._own.decode(ids), until)[1]

    def _template(self) -> Any:
        from mindspeed_llm.tasks.inference.prompting import Prompter

        return Prompter.of(self._loaded.configs, self._own, no_chat_template=False).template


def _how(arguments: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """(texts that end an answer, its longest length) of a request. Raises UserError for sampling."""
    if arguments.get("do_sample") or arguments.get("temperature") not in (None, 0, 0.0):
        raise UserError(f"the task samples (temperature {arguments.get('temperature')}): only the likeliest text is "
                        "generated here; --gen_kwargs do_sample=False,temperature=0 takes it")
    until = arguments.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until), int(arguments.get("max_gen_toks", MAX_NEW_TOKENS))


def main() -> None:
    """The harness's own command line, with this model in its table. Ranks other than 0 say and write nothing."""
    from lm_eval.__main__ import cli_evaluate

    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK_ID", "0") != "0":
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            for flag in ("--output_path", "-o"):
                if flag in sys.argv:
                    place = sys.argv.index(flag)
                    del sys.argv[place:place + 2]
        cli_evaluate()


if __name__ == "__main__":
    run_main(main)
