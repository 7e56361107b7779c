"""How answers are generated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate; the names are those of Hugging Face's GenerationConfig.

    max_new_tokens: longest answer. stop_ids: a token of these ends an answer and is not part of it. do_sample: draw the
    next token instead of taking the likeliest; `temperature` divides the logits, `top_k` (0: all) and then `top_p`
    (1.0: all) cut off unlikely tokens (top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
    num_beams: of a beam search. repetition_penalty: logits (in a beam search log-probabilities) of tokens that a
    sequence already has, its prompt included, are divided by it where positive and multiplied where negative, before
    all else (Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019).
    log_probs: keep the log-probability of each token of an answer (beam search does so anyway). top_log_probs: an
    engine also tells so many of the likeliest tokens at each place.
    """

    max_new_tokens: int = 128
    stop_ids: frozenset[int] = frozenset()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    log_probs: bool = False
    top_log_probs: int = 0
