"""Making a small tokenizer of the ChatGLM layout: for the quickstart, tests, experiments with one's own text."""

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.tokenizer import GLM4_SPECIAL_TOKENS
from mindspeed_llm.data.tokenizer_backends import CHAR_TO_BYTE, glm4_pre_tokenizer


def train_tiktoken_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Learn byte-pair ranks from `texts` with GLM4's split pattern. Deterministic.

    Args:
        texts: the training text, consumed once.
        vocab_size: number of ranks, at least 256 (the single bytes). The special tokens come on top of them. Fewer
            ranks result when the text does not hold enough different pairs.

    Returns:
        token -> rank, ranks 0..N-1, the 256 single bytes first.
    """
    if vocab_size < 256:
        raise UserError(f"vocab_size is {vocab_size}: at least 256 are needed, one for each byte")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = glm4_pre_tokenizer()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts, trainer=trainer)
    by_id = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    return {bytes(CHAR_TO_BYTE[char] for char in token): rank for rank, (token, _) in enumerate(by_id)}


def write_chatglm_tokenizer(directory: str | Path, ranks: dict[bytes, int]) -> None:
    """Write `tokenizer.model` and `tokenizer_config.json` in the ChatGLM layout; the specials follow the ranks."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda e: e[1])]
    config = {
        "added_tokens_decoder": {
            str(len(ranks) + offset): {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                                       "single_word": False, "special": True}
            for offset, name in enumerate(GLM4_SPECIAL_TOKENS)
        },
        "additional_special_tokens": list(GLM4_SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "tokenizer_class": "ChatGLM4Tokenizer",
    }
    _write_file(directory / "tokenizer.model", b"".join(lines))
    _write_file(directory / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())


def _write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
