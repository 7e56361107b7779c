"""How a Hugging Face layout is described: names as data, and rules that say which HF rows make an mcore tensor.

Every mcore tensor is a list of row ranges of HF tensors (`Piece`), in mcore's row order, so one description serves both
directions and any tensor-parallel cut of either side.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mindspeed_llm.checkpoint.dtypes import StoredTensor
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.sharding import TensorSpec
from mindspeed_llm.core.structure import model_specs


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the HF tensor `name`; None stands for zero rows (padding of the vocabulary)."""

    name: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Whole:
    """The HF tensor as it is."""

    name: str


@dataclass(frozen=True)
class Vocab:
    """The HF tensor, padded at the end with zero rows where mcore's vocabulary is larger."""

    name: str


@dataclass(frozen=True)
class FusedQkv:
    """One HF tensor whose rows are all q, then all k, then all v."""

    name: str


@dataclass(frozen=True)
class SplitQkv:
    """HF tensors for q, k and v. `halves`: of a head's rotated dimensions, pair i is (i, i + half of them) there, not
    (2i, 2i + 1) as here.
    """

    q: str
    k: str
    v: str
    halves: bool = False


@dataclass(frozen=True)
class HeadVector:
    """An HF vector over a head's dimensions, whose rotated pairs are halves apart."""

    name: str


@dataclass(frozen=True)
class Stacked:
    """HF tensors of equally many rows, one after the other."""

    names: tuple[str, ...]


Rule = Whole | Vocab | FusedQkv | SplitQkv | HeadVector | Stacked


@dataclass(frozen=True)
class HfLayout:
    """One way in which Hugging Face repositories store models of a family.

    `flag`: value of --model-type-hf. `top` and `layer` map mcore names (below `decoder.layers.{i}.` for `layer`) to
    rules; names in `layer` rules follow `layer_prefix`. `ignored` matches HF tensors that are no parameters; `buffers`
    makes those of them that an export should hold, from the model and a dtype tag. `matches` recognises a config.json,
    `read_config` turns it (and its path, for messages) into a ModelConfig, `updates` gives the entries of a config.json
    that must change for a model whose overridable fields differ.
    """

    flag: str
    description: str
    layer_prefix: str
    top: Mapping[str, Rule]
    layer: Mapping[str, Rule]
    ignored: re.Pattern
    buffers: Mapping[str, Callable[[ModelConfig, str], StoredTensor]]
    matches: Callable[[dict], bool]
    read_config: Callable[[dict, str], ModelConfig]
    updates: Callable[[dict, ModelConfig], dict]


@dataclass(frozen=True)
class Mapped:
    """An mcore tensor and the HF rows that it is made of."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]


def mapped_tensors(layout: HfLayout, model: ModelConfig, noop_layers: tuple[int, ...],
                   hf_vocab: int) -> Iterator[Mapped]:
    """Every tensor of the mcore `model` with its HF pieces, in forward order.

    No-op layers hold nothing, so HF's layer i is mcore's i-th layer that is not a no-op. `hf_vocab` is HF's row count
    of the embedding.
    """
    hf_layers = {layer: i for i, layer in enumerate(i for i in range(model.num_layers) if i not in noop_layers)}
    for spec in model_specs(model, noop_layers):
        if spec.layer is None:
            rule, prefix = layout.top[spec.name], ""
        else:
            rule = layout.layer[spec.name.removeprefix(f"decoder.layers.{spec.layer}.")]
            prefix = layout.layer_prefix.format(layer=hf_layers[spec.layer])
        yield Mapped(spec, tuple(_pieces(rule, prefix, spec, model, hf_vocab)))


def hf_shapes(mapped: list[Mapped]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the HF tensors that `mapped` is made of, in forward order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in mapped:
        for piece in tensor.pieces:
            if piece.name is not None:
                rows = max(piece.stop, shapes.get(piece.name, (0,))[0])
                shapes[piece.name] = (rows,) + tensor.spec.shape[1:]
    return shapes


def _pieces(rule: Rule, prefix: str, spec: TensorSpec, model: ModelConfig, hf_vocab: int) -> Iterator[Piece]:
    rows = spec.shape[0]
    if isinstance(rule, Whole):
        yield Piece(prefix + rule.name, 0, rows)
    elif isinstance(rule, Stacked):
        for name in rule.names:
            yield Piece(prefix + name, 0, rows // len(rule.names))
    elif isinstance(rule, HeadVector):
        yield from _head(prefix + rule.name, 0, model, halves=True)
    elif isinstance(rule, Vocab):
        yield Piece(prefix + rule.name, 0, hf_vocab)
        if rows > hf_vocab:
            yield Piece(None, 0, rows - hf_vocab)
    else:
        dim, heads, groups = model.kv_channels, model.heads_per_group, model.num_query_groups
        if isinstance(rule, FusedQkv):
            first_k = groups * heads * dim
            (q, k, v), k_base, v_base, halves = (rule.name,) * 3, first_k, first_k + groups * dim, False
        else:
            (q, k, v), k_base, v_base, halves = (rule.q, rule.k, rule.v), 0, 0, rule.halves
        for group in range(groups):
            for head in range(group * heads, (group + 1) * heads):
                yield from _head(prefix + q, head * dim, model, halves)
            yield from _head(prefix + k, k_base + group * dim, model, halves)
            yield Piece(prefix + v, v_base + group * dim, v_base + (group + 1) * dim)


def _head(name: str, first: int, model: ModelConfig, halves: bool) -> Iterator[Piece]:
    """The rows of a head of q or k, with its pairs as rotation here wants them."""
    half = model.rotary_dim // 2 if halves else 0
    for row in range(first, first + half):
        yield Piece(name, row, row + 1)
        yield Piece(name, row + half, row + half + 1)
    if 2 * half < model.kv_channels:
        yield Piece(name, first + 2 * half, first + model.kv_channels)
