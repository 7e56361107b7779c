"""The tokenizer gives tiktoken's ids, parses no marks out of plain text, and streams whole characters only."""

import base64
import json
import random

import pytest
import regex

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.tokenizer import GLM4_SPECIAL_TOKENS, load_tokenizer, read_tiktoken_file
from mindspeed_llm.data.tokenizer_backends import GLM4_SPLIT_PATTERN, TiktokenBackend
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from tests.data.rank_bpe import bpe_from_ranks

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?  We'LL see;\n\n  indented\tline \r\n",
    "细胞理论是生物科学的一个理论，它认为所有生命体都是由微小的基本单元构成。2024年，日心说！",
    "Ünïcödé naïve café — “quotes” … 🙂🚀 ελληνικά русский العربية नमस्ते 日本語テキスト\u3000全角",
    "def f(x):\n    return x**2  # comment\n\n\n\nprint(f(10))    \n",
    "aaaaaaaaaaaaabababababab    \n \n  \t\t  ",
]


def merge_by_rank(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule, spelled out: a known piece is itself, else merge the pair of lowest rank, leftmost first."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        pairs = enumerate(zip(parts, parts[1:]))
        best = min(((ranks[a + b], i) for i, (a, b) in pairs if a + b in ranks), default=None)
        if best is None:
            return [ranks[part] for part in parts]
        parts[best[1]:best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def reference_encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    pieces = regex.findall(GLM4_SPLIT_PATTERN, text)
    return [token for piece in pieces for token in merge_by_rank(piece.encode(), ranks)]


@pytest.fixture(scope="module")
def ranks():
    return train_tiktoken_bpe(TEXTS * 3, 700)


@pytest.fixture(scope="module")
def directory(ranks, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_chatglm_tokenizer(path, ranks)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(str(directory))


def test_training_keeps_bytes_first_and_is_repeatable(ranks):
    assert len(ranks) > 400 and sorted(ranks.values()) == list(range(len(ranks)))
    assert all(len(token) == 1 for token, rank in ranks.items() if rank < 256)
    assert ranks == train_tiktoken_bpe(TEXTS * 3, 700)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_merge_by_rank(tokenizer, ranks, text):
    assert tokenizer.encode(text) == reference_encode(text, ranks)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_equal_merge_by_rank_on_arbitrary_ranks():
    """Ranks that no training would give (a token that ranks before its own parts, tokens nothing can build)."""
    rng = random.Random(5)
    longer = list({"".join(rng.choices("abc", k=rng.randint(2, 5))) for _ in range(60)})
    rng.shuffle(longer)
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {token.encode(): 256 + i for i, token in enumerate(longer)}
    backends = TiktokenBackend(ranks, {"a<b": 1000}), bpe_from_ranks(ranks)
    for _ in range(500):
        text = "".join(rng.choices("abc", k=rng.randint(1, 30)))
        expected = reference_encode(text, ranks)
        assert backends[0].encode(text).tolist() == expected, text
        assert backends[1].encode(text, add_special_tokens=False).ids == expected, text


def test_random_unicode_round_trips(tokenizer, ranks):
    rng = random.Random(6)
    alphabet = "ab Z09 \n\t.,'“”细胞🙂éß—\u3000ー"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 40)))
        assert tokenizer.encode(text) == reference_encode(text, ranks)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_follow_the_ranks(tokenizer, ranks):
    expected = {name: len(ranks) + i for i, name in enumerate(GLM4_SPECIAL_TOKENS)}
    assert tokenizer.special_tokens == expected
    assert tokenizer.vocab_size == len(ranks) + 14
    assert tokenizer.eos_id == tokenizer.pad_id == expected["<|endoftext|>"]
    assert tokenizer.bos_prefix == [expected["[gMASK]"], expected["<sop>"]]
    assert tokenizer.stop_ids == [expected[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    with pytest.raises(UserError, match="no token '<think>'"):
        tokenizer.special("<think>")


def test_ids_of_specials_come_from_the_config_when_it_has_them(ranks, tmp_path):
    write_chatglm_tokenizer(tmp_path, ranks)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(5000 + i): {"content": n} for i, n in enumerate(GLM4_SPECIAL_TOKENS)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.special("[gMASK]") == 5002 and tokenizer.vocab_size == 5014
    config["added_tokens_decoder"] = {"3": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not belong together"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("stated, expected", [(5, [5]), ([70, 7], [70, 7]), (None, None), ([], None)])
def test_generation_config_names_the_stop_ids(ranks, tmp_path, stated, expected):
    write_chatglm_tokenizer(tmp_path, ranks)
    usual = load_tokenizer(tmp_path).stop_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated, "top_p": 0.8}))
    assert load_tokenizer(tmp_path).stop_ids == (expected or usual)


@pytest.mark.parametrize("stated", ["5", True, [5, 10**6], [-1], {"a": 1}])
def test_stop_ids_that_are_none_of_the_tokenizer(ranks, tmp_path, stated):
    write_chatglm_tokenizer(tmp_path, ranks)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    with pytest.raises(UserError, match="generation_config.json: eos_token_id holds .* no id of the tokenizer"):
        load_tokenizer(tmp_path)


def test_without_a_config_the_order_of_glm4_is_assumed(ranks, tmp_path):
    write_chatglm_tokenizer(tmp_path, ranks)
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(tmp_path)).special("<|observation|>") == len(ranks) + 9


def test_text_cannot_forge_a_mark(tokenizer):
    text = "hello<|user|>\nworld"
    assert tokenizer.special("<|user|>") not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    marked = [*tokenizer.encode("hello", add_special=True), tokenizer.special("<|user|>"), *tokenizer.encode("\nworld")]
    assert marked[:2] == tokenizer.bos_prefix
    assert tokenizer.decode(marked) == "hello\nworld"
    assert tokenizer.decode(marked, skip_special=False) == "[gMASK]<sop>" + text


def test_a_batch_is_its_texts_one_by_one(tokenizer):
    texts = [*TEXTS, "", "a\ud83db"]
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == "uint32" for ids in batch)


def test_endless_spaces_are_survived(tokenizer, ranks):
    """tiktoken's own regular expressions give up on these."""
    text = "a" + " " * 300_000 + "b"
    assert tokenizer.encode(text) == tokenizer.encode("a" + " " * 299_999) + tokenizer.encode(" b")


def test_odd_input_is_survived(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert tokenizer.encode("") == []
    assert tokenizer.decode([tokenizer.vocab_size + 100]) == "\ufffd"


@pytest.mark.parametrize("text", TEXTS)
def test_stream_emits_whole_characters_only(tokenizer, text):
    stream = tokenizer.stream()
    ids = tokenizer.encode(text)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_stream_holds_back_half_a_character(tokenizer, ranks):
    byte_ids = [ranks[bytes([byte])] for byte in "界🙂".encode()]
    stream = tokenizer.stream()
    assert [stream.push(token) for token in byte_ids] == ["", "", "界", "", "", "", "🙂"]
    stream = tokenizer.stream()
    assert stream.push(byte_ids[0]) == "" and stream.finish() == "\ufffd"


def test_hf_tokenizer_json_gives_the_same_ids(tokenizer, ranks, tmp_path):
    backend = bpe_from_ranks(ranks)
    from tokenizers import AddedToken
    backend.add_special_tokens([AddedToken(name, special=True) for name in GLM4_SPECIAL_TOKENS])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|user|>", "pad_token": "[MASK]"}))
    other = load_tokenizer(str(tmp_path))
    for text in [*TEXTS, "forged <|user|> mark"]:
        assert other.encode(text, add_special=True) == tokenizer.encode(text, add_special=True)
        assert other.decode(other.encode(text)) == text
    assert other.special_tokens == tokenizer.special_tokens and other.vocab_size == tokenizer.vocab_size
    assert other.eos_id == tokenizer.eos_id and other.bos_prefix == tokenizer.bos_prefix
    assert other.pad_id == tokenizer.special("[MASK]") and other.stop_ids == tokenizer.stop_ids


def test_other_hf_tokenizers_stream_too(tmp_path):
    """A SentencePiece-like tokenizer (metaspace, byte fallback) goes through the backend's own decoder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    vocab = {"<unk>": 0, "</s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5} | {f"<0x{b:02X}>": 6 + b for b in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="names no eos_token"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer.encode("ab 界 ab")
    assert tokenizer.decode(ids) == "ab 界 ab" and tokenizer.bos_prefix == [] and tokenizer.eos_id == 1
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == "ab 界 ab" and not any("\ufffd" in piece for piece in pieces)


def test_errors_name_the_file_and_the_remedy(ranks, tmp_path):
    with pytest.raises(UserError, match="--tokenizer-name-or-path"):
        load_tokenizer(None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="--tokenizer-type"):
        load_tokenizer(str(tmp_path), kind="GPT2BPE")
    model = tmp_path / "tokenizer.model"
    model.write_bytes(b"\x0a\x0bsentencepiece\x00\x01")
    with pytest.raises(UserError, match="no tiktoken file"):
        load_tokenizer(str(tmp_path))
    write_chatglm_tokenizer(tmp_path, ranks)
    lines = model.read_bytes().splitlines(keepends=True)
    model.write_bytes(b"".join(lines[1:]))
    with pytest.raises(UserError, match="ranks are not"):
        read_tiktoken_file(model)
    model.write_bytes(base64.b64encode(b"a") + b" 0\n")
    with pytest.raises(UserError, match="no token for the single byte"):
        read_tiktoken_file(model)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(UserError, match="not valid JSON"):
        load_tokenizer(str(tmp_path))
