"""GLM-4's tokenizer as a `tokenizer.json`: what the native Hugging Face repositories ship beside the same ranks."""

from tokenizers import Tokenizer, decoders, models

from mindspeed_llm.data.tokenizer_backends import BYTE_TO_CHAR, glm4_pre_tokenizer


def bpe_from_ranks(ranks: dict[bytes, int]) -> Tokenizer:
    """A byte-level BPE of the `tokenizers` library that gives tiktoken's ids for the same ranks.

    tiktoken merges, again and again, the adjacent pair whose *concatenation* has the lowest rank (leftmost first). The
    library wants a list of pairs by priority: every way to cut a token into two tokens, by the rank of the whole. Cuts
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
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = glm4_pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend
