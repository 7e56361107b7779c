"""The engines under `Tokenizer`: text to ids and ids to bytes, without any notion of special tokens in text.

Byte-pair encoding: Sennrich et al. 2016 (arXiv:1508.07909), over bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiktoken
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from mindspeed_llm.config.errors import UserError

GLM4_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_to_char_table() -> list[str]:
    """The printable stand-in that byte-level BPE files use for each of the 256 bytes (the GPT-2 convention)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + shift)
    return [table[byte] for byte in range(256)]


BYTE_TO_CHAR = _byte_to_char_table()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}


def glm4_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """GLM4's split pattern, then bytes as printable characters."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GLM4_SPLIT_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


class TiktokenBackend:
    """`tiktoken` over the ranks of a file. It releases the GIL while it encodes.

    Args:
        ranks: token -> id.
        special_tokens: name -> id. In text the names are text; but without them tiktoken, which looks for special
            tokens all the same, finds an empty one at every place and takes twice the time.

    Attributes:
        size: highest id + 1.
        byte_level: the bytes of all tokens of a text, joined, are the text's.
    """

    byte_level = True

    def __init__(self, ranks: dict[bytes, int], special_tokens: dict[str, int]):
        self._encoding = tiktoken.Encoding("ranks", pat_str=GLM4_SPLIT_PATTERN, mergeable_ranks=ranks,
                                           special_tokens=special_tokens)
        self._ranks = ranks
        self._tokens = sorted(ranks, key=ranks.__getitem__)
        self.size = len(ranks)

    def encode(self, text: str) -> np.ndarray:
        """uint32 ids."""
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode(_repaired(text))
        except ValueError:
            # its regular expressions give up on some 100,000 spaces in a row: the same split by the `regex` library
            return np.array(self._encoding._encode_only_native_bpe(text), np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """uint32 ids of each text."""
        return [self.encode(text) for text in texts]

    def token_id(self, name: str) -> int | None:
        """Id of the token that is this text, or None."""
        return self._ranks.get(name.encode())

    def token_bytes(self, token_id: int) -> bytes | None:
        """What an id stands for; None outside the vocabulary."""
        return self._tokens[token_id] if 0 <= token_id < self.size else None


class HfBackend:
    """A `tokenizer.json` of the `tokenizers` library.

    Args:
        file: the file.
        description: its content.

    Attributes:
        size, byte_level: as in `TiktokenBackend`.
        special_tokens: name -> id.

    Raises:
        UserError: the library cannot load it.
    """

    def __init__(self, file: Path, description: dict):
        try:
            self._tokenizer = HfTokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise UserError(f"{file} is not a tokenizer that can be loaded: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # the names of special tokens are text like any other
        self.special_tokens = {token.content: token_id for token_id, token
                               in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        decoder = description.get("decoder") or {}
        self.byte_level = "ByteLevel" in {decoder.get("type")} | {part.get("type")
                                                                  for part in decoder.get("decoders", [])}

    def encode(self, text: str) -> np.ndarray:
        """uint32 ids."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """uint32 ids of each text."""
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            if not all(isinstance(text, str) for text in texts):
                raise
            encodings = self._tokenizer.encode_batch_fast([_repaired(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def token_id(self, name: str) -> int | None:
        """Id of the token that is this text, or None."""
        return self._tokenizer.token_to_id(name)

    def token_bytes(self, token_id: int) -> bytes | None:
        """What an id of a byte-level vocabulary stands for; None outside the vocabulary."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return None
        try:
            return bytes(CHAR_TO_BYTE[char] for char in token)
        except KeyError:  # an added token that is stored as plain text
            return token.encode()

    def decode(self, ids: list[int], skip_special: bool) -> str:
        """Text of ids, by the file's own decoder."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special)


def _repaired(text: str) -> str:
    """JSON can hold lone surrogates ("\\ud83d" without its other half), which are not text: those become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
