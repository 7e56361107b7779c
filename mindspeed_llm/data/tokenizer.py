"""Tokenizers loaded from their data files alone: no code from a checkpoint directory is ever executed.

Two layouts are read:

* ChatGLM (glm-4-9b, glm-4-9b-chat): `tokenizer.model` is a tiktoken file, one `base64(token) rank` per line, and the
  special tokens follow the ranks;
* native Hugging Face (glm-4-9b-hf, GLM-4-9B-0414, any other fast tokenizer): `tokenizer.json`.

`tokenizer_backends.py` holds the engine of each.
"""

import base64
import binascii
import codecs
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspeed_llm import families
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.tokenizer_backends import HfBackend, TiktokenBackend

GLM4_SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)
GLM4_PREFIX = ("[gMASK]", "<sop>")
TOKENIZER_KINDS = ("PretrainedFromHF",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


class Tokenizer:
    """Text to ids and back. Built by `load_tokenizer`.

    Attributes:
        vocab_size: highest id + 1, special tokens included (151343 for glm-4-9b; the model pads it further).
        eos_id, pad_id: ids of the end-of-text and padding tokens.
        bos_prefix: the ids that every prompt starts with (`[gMASK]<sop>` for GLM4).
        stop_ids: ids at which generation ends: those of generation_config.json beside the tokenizer, else those of its
            family (`<|endoftext|>`, `<|user|>`, `<|observation|>` for GLM4).
        prompt_type: the template of the model family that has these special tokens, or None.
        special_tokens: name -> id of every special token.
    """

    def __init__(self, backend: TiktokenBackend | HfBackend, special_tokens: dict[str, int], *, eos: str,
                 pad: str | None, bos_prefix: tuple[str, ...]):
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        self._special_names = {token_id: name for name, token_id in self.special_tokens.items()}
        self.eos_id = self.special(eos)
        self.pad_id = self.special(pad) if pad is not None else self.eos_id
        self.bos_prefix = [self.special(name) for name in bos_prefix]
        family = families.of_tokens(self.special_tokens)
        stops = dict.fromkeys((eos, *(family.stop_tokens if family else ())))
        self.stop_ids = [self.special(name) for name in stops]
        self.prompt_type = family.prompt_type if family else None
        highest_special = max(self.special_tokens.values(), default=-1)
        self.vocab_size = max(backend.size, highest_special + 1)

    def special(self, name: str) -> int:
        """Id of a special token by its text, e.g. `special("<|user|>")`.

        Raises:
            UserError: this tokenizer has no such token.
        """
        if name in self.special_tokens:
            return self.special_tokens[name]
        token_id = self._backend.token_id(name)
        if token_id is None:
            raise UserError(
                f"the tokenizer has no token {name!r}; its special tokens are: "
                f"{' '.join(self.special_tokens) or '(none)'}. Use the tokenizer of the model that the prompt type "
                "is for."
            )
        return token_id

    def add_stop(self, name: str) -> None:
        """Let generation end at one more token, too. Raises UserError for a text that is no single token."""
        ids = [self.special_tokens[name]] if name in self.special_tokens else self.encode(name)
        if len(ids) != 1:
            raise UserError(f"--add-eos-token {name} is no token of this tokenizer, but {len(ids)}: give the text of "
                            "one")
        if ids[0] not in self.stop_ids:
            self.stop_ids = [*self.stop_ids, ids[0]]

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Ids of `text`, after `bos_prefix` with `add_special`.

        The text of special tokens (`<|user|>` ...) is text: a document or a user's message that contains it must not be
        able to forge a turn.
        """
        return (self.bos_prefix if add_special else []) + self._backend.encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (uint32) of each text, as `encode` gives them, without a Python object per token."""
        return self._backend.encode_batch(texts)

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of `ids`. Broken UTF-8 and ids outside the vocabulary become U+FFFD.

        Args:
            skip_special: leave special tokens out; otherwise their names appear in the text.
        """
        if self._backend.byte_level:
            return b"".join(self.token_bytes(token_id, skip_special) for token_id in ids).decode("utf-8", "replace")
        return self._backend.decode([int(token_id) for token_id in ids], skip_special)

    def token_bytes(self, token_id: int, skip_special: bool = True) -> bytes:
        """The bytes that one id stands for (not necessarily whole characters)."""
        token_id = int(token_id)
        if token_id in self._special_names:
            return b"" if skip_special else self._special_names[token_id].encode()
        token = self._backend.token_bytes(token_id)
        return "\ufffd".encode() if token is None else token

    def stream(self, skip_special: bool = True) -> "StreamDecoder":
        """A decoder to feed with ids one by one."""
        return StreamDecoder(self, skip_special)


class StreamDecoder:
    """Turns ids into text as they arrive, holding back the bytes of characters that are not complete yet.

    The concatenation of all that `push` and the closing `finish` return equals `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if tokenizer._backend.byte_level else None
        self._ids: list[int] = []
        self._emitted = ""

    def push(self, token_id: int) -> str:
        """The text that became complete with this id, possibly empty."""
        if self._utf8 is not None:
            return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip_special))
        self._ids.append(int(token_id))
        text = self._tokenizer.decode(self._ids, self._skip_special)
        # other tokenizers spell a character in several tokens too: it shows as U+FFFD until its last byte is there
        return "" if text.endswith("\ufffd") else self._emit(text)

    def finish(self) -> str:
        """What is still held back (an incomplete character becomes U+FFFD)."""
        if self._utf8 is not None:
            return self._utf8.decode(b"", final=True)
        return self._emit(self._tokenizer.decode(self._ids, self._skip_special))

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted):]
        self._emitted = text
        return new


def load_tokenizer(path: str | None, kind: str = "PretrainedFromHF") -> Tokenizer:
    """Load a tokenizer from a Hugging Face directory (or from its `tokenizer.json` / `tokenizer.model` itself).

    Args:
        path: the directory. `tokenizer.json` is preferred; the ChatGLM layout's `tokenizer.model` gives the same ids.
        kind: `PretrainedFromHF` (`--tokenizer-type`).

    Raises:
        UserError: no path, unknown kind, or a file that is not what it should be.
        FileNotFoundError: the directory or the tokenizer file in it does not exist.
    """
    if kind not in TOKENIZER_KINDS:
        raise UserError(f"--tokenizer-type {kind} is not known: use {' or '.join(TOKENIZER_KINDS)}")
    if not path:
        raise UserError("no tokenizer: give its directory with --tokenizer-name-or-path")
    location = Path(path)
    if not location.exists():
        raise FileNotFoundError(f"--tokenizer-name-or-path {path}: no such directory (models are not downloaded)")
    directory = location if location.is_dir() else location.parent
    candidates = [location] if location.is_file() else [directory / "tokenizer.json", directory / "tokenizer.model"]
    for file in candidates:
        if file.is_file():
            load = _load_hf_json if file.suffix == ".json" else _load_chatglm
            tokenizer = load(file, _read_json(directory / "tokenizer_config.json", optional=True))
            tokenizer.stop_ids = _stated_stop_ids(directory / "generation_config.json", tokenizer) or tokenizer.stop_ids
            return tokenizer
    raise FileNotFoundError(
        f"{path} holds neither tokenizer.json nor tokenizer.model (a tiktoken file): copy the model's tokenizer files "
        "there"
    )


def _stated_stop_ids(file: Path, tokenizer: Tokenizer) -> list[int]:
    """`eos_token_id` of a generation_config.json, which is one id or a list of them; empty where there is none."""
    stated = _read_json(file, optional=True).get("eos_token_id")
    ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < tokenizer.vocab_size:
            raise UserError(f"{file}: eos_token_id holds {token_id!r}, which is no id of the tokenizer beside it (0 to "
                            f"{tokenizer.vocab_size - 1}): take the file of this model, or remove it")
    return ids


def read_tiktoken_file(file: str | Path) -> dict[bytes, int]:
    """Ranks of a tiktoken file: one `base64(token) rank` per line.

    Raises:
        UserError: not such a file, ranks that are not 0..N-1, or a byte without a token of its own.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{file} line {number} is not `base64 rank`: this is no tiktoken file, or it is damaged. A "
                "SentencePiece tokenizer.model needs a tokenizer.json beside it."
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{file}: the ranks are not 0..{len(ranks) - 1}, each once: the file is damaged or incomplete")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"{file} has no token for the single byte 0x{missing[0]:02x} ({len(missing)} are missing)")
    return ranks


def _load_chatglm(file: Path, config: dict) -> Tokenizer:
    ranks = read_tiktoken_file(file)
    declared = config.get("added_tokens_decoder", {})
    if declared:
        specials = {_token_text(entry): int(token_id) for token_id, entry in declared.items()}
    else:
        specials = {name: len(ranks) + offset for offset, name in enumerate(GLM4_SPECIAL_TOKENS)}
    clashes = [name for name, token_id in specials.items() if token_id < len(ranks)]
    if clashes:
        raise UserError(
            f"{file.parent / 'tokenizer_config.json'}: {clashes[0]} has id {specials[clashes[0]]}, which "
            f"tokenizer.model with its {len(ranks)} ranks uses for text: the two files do not belong together"
        )
    return Tokenizer(TiktokenBackend(ranks, specials), specials, eos="<|endoftext|>",
                     pad=_token_text(config.get("pad_token")) or "<|endoftext|>", bos_prefix=GLM4_PREFIX)


def _load_hf_json(file: Path, config: dict) -> Tokenizer:
    backend = HfBackend(file, _read_json(file))
    specials = backend.special_tokens
    extra = _read_json(file.parent / "special_tokens_map.json", optional=True)
    named = {name: _token_text(config.get(name) or extra.get(name)) for name in ("eos_token", "pad_token", "bos_token")}
    if all(name in specials for name in (*GLM4_PREFIX, "<|endoftext|>")):
        # the chat repositories may declare <|user|> here, where their chat turns end; documents end with <|endoftext|>
        eos, prefix = "<|endoftext|>", GLM4_PREFIX
    else:
        eos, prefix = named["eos_token"], (named["bos_token"],) if named["bos_token"] else ()
    if eos is None:
        raise UserError(f"{file.parent / 'tokenizer_config.json'} names no eos_token: add it")
    return Tokenizer(backend, specials, eos=eos, pad=named["pad_token"], bos_prefix=prefix)


def _token_text(entry: str | dict | None) -> str | None:
    return entry["content"] if isinstance(entry, dict) else entry


def _read_json(file: Path, optional: bool = False) -> dict:
    if optional and not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): the file is damaged or incomplete") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a JSON {type(content).__name__}, an object is wanted")
    return content
