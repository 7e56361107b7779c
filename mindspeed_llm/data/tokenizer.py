"""Tokenizers loaded from their data files alone: no code from a checkpoint directory is ever executed.

Two layouts are read:

* ChatGLM (glm-4-9b, glm-4-9b-chat): `tokenizer.model` is a tiktoken file, one `base64(token) rank` per line, and the
  special tokens follow the ranks;
* native Hugging Face (glm-4-9b-hf, GLM-4-9B-0414, any other fast tokenizer): `tokenizer.json`.

Byte-pair encoding: Sennrich et al. 2016 (arXiv:1508.07909), over bytes, merges chosen by the lowest rank of the merged
token as in tiktoken.
"""

import base64
import binascii
import codecs
import json
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mindspeed_llm import families
from mindspeed_llm.config.errors import UserError

GLM4_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GLM4_SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)
GLM4_PREFIX = ("[gMASK]", "<sop>")
TOKENIZER_KINDS = ("PretrainedFromHF",)


def _byte_to_char_table() -> list[str]:
    """The printable stand-in that byte-level BPE files use for each of the 256 bytes (the GPT-2 convention)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + shift)
    return [table[byte] for byte in range(256)]


BYTE_TO_CHAR = _byte_to_char_table()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}


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

    def __init__(self, backend: Backend, special_tokens: dict[str, int], *, eos: str, pad: str | None,
                 bos_prefix: tuple[str, ...], byte_level: bool):
        self._backend = backend
        self._byte_level = byte_level
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
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(max(vocab.values(), default=-1), highest_special) + 1

    def special(self, name: str) -> int:
        """Id of a special token by its text, e.g. `special("<|user|>")`.

        Raises:
            UserError: this tokenizer has no such token.
        """
        if name in self.special_tokens:
            return self.special_tokens[name]
        token_id = self._backend.token_to_id(name)
        if token_id is None:
            raise UserError(
                f"the tokenizer has no token {name!r}; its special tokens are: "
                f"{' '.join(self.special_tokens) or '(none)'}. Use the tokenizer of the model that the prompt type "
                "is for."
            )
        return token_id

    def add_stop(self, name: str) -> None:
        """Let generation end at one more token, too. Raises UserError for a text that is no single token."""
        token_id = self.special_tokens.get(name, self._backend.token_to_id(name))
        ids = [token_id] if token_id is not None else self.encode(name)
        if len(ids) != 1:
            raise UserError(f"--add-eos-token {name} is no token of this tokenizer, but {len(ids)}: give the text of one")
        if ids[0] not in self.stop_ids:
            self.stop_ids = [*self.stop_ids, ids[0]]

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Ids of `text`, after `bos_prefix` with `add_special`.

        The text of special tokens (`<|user|>` ...) is text: a document or a user's message that contains it must not be
        able to forge a turn.
        """
        prefix = self.bos_prefix if add_special else []
        try:
            return prefix + self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not isinstance(text, str):
                raise
            # JSON can hold lone surrogates ("\ud83d" without its other half), which are not text: replace those only
            repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return prefix + self._backend.encode(repaired, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of `ids`. Broken UTF-8 and ids outside the vocabulary become U+FFFD.

        Args:
            skip_special: leave special tokens out; otherwise their names appear in the text.
        """
        if self._byte_level:
            return b"".join(self.token_bytes(token_id, skip_special) for token_id in ids).decode("utf-8", "replace")
        return self._backend.decode([int(token_id) for token_id in ids], skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int, skip_special: bool = True) -> bytes:
        """The bytes that one id stands for (not necessarily whole characters)."""
        token_id = int(token_id)
        if token_id in self._special_names:
            return b"" if skip_special else self._special_names[token_id].encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return "\ufffd".encode()
        try:
            return bytes(CHAR_TO_BYTE[char] for char in token)
        except KeyError:  # an added token that is stored as plain text
            return token.encode()

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
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if tokenizer._byte_level else None
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


def bpe_from_ranks(ranks: dict[bytes, int]) -> Backend:
    """A `tokenizers` byte-level BPE with GLM4's split pattern that gives tiktoken's ids for the same ranks.

    tiktoken merges, again and again, the adjacent pair whose *concatenation* has the lowest rank (leftmost first). The
    backend wants a list of pairs by priority: every way to cut a token into two tokens, by the rank of the whole. Cuts
    that are not the token's own last merge step are harmless: for such a pair to stand side by side, the bytes of the
    token must have been merged by themselves down to exactly that pair, and this sequence of steps is unique.
    """
    chars = {token: "".join(BYTE_TO_CHAR[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((chars[left], chars[right]))
    vocab = {chars[token]: rank for token, rank in ranks.items()}
    # a piece that is a token as a whole is looked up, not merged, in tiktoken: ignore_merges
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = glm4_pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def glm4_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """GLM4's split pattern, then bytes as printable characters."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GLM4_SPLIT_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


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
    return Tokenizer(bpe_from_ranks(ranks), specials, eos="<|endoftext|>",
                     pad=_token_text(config.get("pad_token")) or "<|endoftext|>", bos_prefix=GLM4_PREFIX,
                     byte_level=True)


def _load_hf_json(file: Path, config: dict) -> Tokenizer:
    description = _read_json(file)
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the backend raises bare Exception for whatever is wrong with the file
        raise UserError(f"{file} is not a tokenizer that can be loaded: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # special tokens in text are parsed by Tokenizer.encode, on request only
    specials = {token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items()
                if token.special}
    extra = _read_json(file.parent / "special_tokens_map.json", optional=True)
    named = {name: _token_text(config.get(name) or extra.get(name)) for name in ("eos_token", "pad_token", "bos_token")}
    if all(name in specials for name in (*GLM4_PREFIX, "<|endoftext|>")):
        # the chat repositories may declare <|user|> here, where their chat turns end; documents end with <|endoftext|>
        eos, prefix = "<|endoftext|>", GLM4_PREFIX
    else:
        eos, prefix = named["eos_token"], (named["bos_token"],) if named["bos_token"] else ()
    if eos is None:
        raise UserError(f"{file.parent / 'tokenizer_config.json'} names no eos_token: add it")
    decoder = description.get("decoder") or {}
    kinds = {decoder.get("type")} | {part.get("type") for part in decoder.get("decoders", [])}
    return Tokenizer(backend, specials, eos=eos, pad=named["pad_token"], bos_prefix=prefix,
                     byte_level="ByteLevel" in kinds)


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
