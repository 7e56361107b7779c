"""Which part of every whole-model tensor a rank holds: the one description that layers, initialisation and checkpoints
share.

A tensor of the whole model ("global tensor") is cut along one axis into *segments*, half-open index ranges in the order
in which a rank's tensor holds them. One range is not enough: a tensor-parallel shard of `linear_fc1` is its part of the
gate rows, then its part of the up rows; with more ranks than query groups, a shard of `linear_qkv` is some of its
group's query rows, then all of the group's K and V rows, which other ranks hold too.

Row order of the global tensors is Megatron's: `linear_qkv` is grouped per query group `[q ... q k v]`, `linear_fc1` is
`[gate; up]` over the whole width.
"""

import math
from collections.abc import Callable, Set
from dataclasses import dataclass

from mindspeed_llm.config.model import ModelConfig

Segments = tuple[tuple[int, int], ...]

BUCKET_ELEMENTS = 40_000_000  # from which a bucket is full: what is reduced and gathered at once beyond the buffers
UNDER_WAY = 2  # buckets that travel at once when nothing is computed meanwhile: their results lie beside the buffers
# Tokens whose logits exist at once. Enough that a product costs more than reading the output layer's weight and gradient
# for it; with half of GLM4's vocabulary on a rank, a chunk's logits in bf16 are 620 MB.
LOGITS_ROWS = 4096


@dataclass(frozen=True)
class TensorSpec:
    """One parameter of the whole model.

    `layer` is its global layer number, or None for embedding, final norm and output layer. `axis` is the axis that
    tensor parallelism cuts (None: every rank holds all of it). `decay` says whether weight decay applies.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    axis: int | None
    decay: bool
    init: str  # "normal" | "scaled_normal" | "zeros" | "ones"
    _cut: Callable[[int, int], Segments] | None = None

    def segments(self, rank: int, size: int) -> Segments:
        """Ranges along `axis` (axis 0 for an uncut tensor) that tensor-parallel `rank` of `size` holds, in its
        order.
        """
        if self._cut is None or size == 1:
            return ((0, self.shape[self.axis or 0]),)
        return self._cut(rank, size)

    def local_shape(self, rank: int, size: int) -> tuple[int, ...]:
        """Shape of the tensor that `rank` of `size` holds."""
        axis = self.axis or 0
        length = sum(stop - start for start, stop in self.segments(rank, size))
        return self.shape[:axis] + (length,) + self.shape[axis + 1:]


def _even(length: int) -> Callable[[int, int], Segments]:
    def cut(rank: int, size: int) -> Segments:
        part = length // size
        return ((rank * part, (rank + 1) * part),)
    return cut


def _gate_up(ffn: int) -> Callable[[int, int], Segments]:
    def cut(rank: int, size: int) -> Segments:
        part = ffn // size
        start, stop = rank * part, (rank + 1) * part
        return ((start, stop), (ffn + start, ffn + stop))
    return cut


def _qkv(model: ModelConfig) -> Callable[[int, int], Segments]:
    groups, heads, dim = model.num_query_groups, model.heads_per_group, model.kv_channels
    group_rows = (heads + 2) * dim

    def cut(rank: int, size: int) -> Segments:
        if size <= groups:
            part = groups // size * group_rows
            return ((rank * part, (rank + 1) * part),)
        ranks_per_group = size // groups
        group, member = divmod(rank, ranks_per_group)
        first = group * group_rows
        q_rows = heads * dim // ranks_per_group
        kv = (first + heads * dim, first + group_rows)
        return ((first + member * q_rows, first + (member + 1) * q_rows), kv)
    return cut


def qkv_replicas(model: ModelConfig, size: int) -> int:
    """How many tensor-parallel ranks hold the same K/V rows of `linear_qkv` (1 unless TP exceeds the query groups)."""
    return max(1, size // model.num_query_groups)


def layer_specs(model: ModelConfig, layer: int) -> list[TensorSpec]:
    """The parameters of global layer number `layer`, in forward order."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    q_width = model.num_attention_heads * model.kv_channels
    qkv_rows = q_width + 2 * model.num_query_groups * model.kv_channels
    prefix = f"decoder.layers.{layer}."

    def norm(name: str) -> TensorSpec:
        return TensorSpec(f"{prefix}{name}.weight", (hidden,), layer, None, False, "ones")

    specs = [
        norm("input_layernorm"),
        TensorSpec(prefix + "self_attention.linear_qkv.weight", (qkv_rows, hidden), layer, 0, True, "normal",
                   _qkv(model)),
    ]
    if model.add_qkv_bias:
        specs.append(TensorSpec(prefix + "self_attention.linear_qkv.bias", (qkv_rows,), layer, 0, False, "zeros",
                                _qkv(model)))
    specs.append(TensorSpec(prefix + "self_attention.linear_proj.weight", (hidden, q_width), layer, 1, True,
                            "scaled_normal", _even(q_width)))
    if model.post_norm:
        specs.append(norm("post_self_attn_layernorm"))
    specs += [
        norm("pre_mlp_layernorm"),
        TensorSpec(prefix + "mlp.linear_fc1.weight", (2 * ffn, hidden), layer, 0, True, "normal", _gate_up(ffn)),
        TensorSpec(prefix + "mlp.linear_fc2.weight", (hidden, ffn), layer, 1, True, "scaled_normal", _even(ffn)),
    ]
    if model.post_norm:
        specs.append(norm("post_mlp_layernorm"))
    return specs


def embedding_spec(model: ModelConfig) -> TensorSpec:
    """The word embedding, cut over the vocabulary."""
    vocab = model.padded_vocab_size
    return TensorSpec("embedding.word_embeddings.weight", (vocab, model.hidden_size), None, 0, True, "normal",
                      _even(vocab))


def final_norm_spec(model: ModelConfig) -> TensorSpec:
    """The norm before the output layer."""
    return TensorSpec("decoder.final_layernorm.weight", (model.hidden_size,), None, None, False, "ones")


def output_spec(model: ModelConfig) -> TensorSpec:
    """The output layer, cut over the vocabulary (absent when tied to the embedding)."""
    vocab = model.padded_vocab_size
    return TensorSpec("output_layer.weight", (vocab, model.hidden_size), None, 0, True, "normal", _even(vocab))


def chunk_specs(model: ModelConfig, layers: tuple[int, ...], *, first: bool, last: bool) -> list[TensorSpec]:
    """Parameters of a model chunk: its layers, plus the embedding if `first`, final norm and output layer if `last`.

    A tied output layer makes the last chunk hold the embedding's tensor too.
    """
    specs = [embedding_spec(model)] if first else []
    for layer in layers:
        specs += layer_specs(model, layer)
    if last:
        specs.append(final_norm_spec(model))
        if model.untie_embeddings_and_output_weights:
            specs.append(output_spec(model))
        elif not first:
            specs.append(embedding_spec(model))
    return specs


def model_specs(model: ModelConfig, noop_layers: tuple[int, ...] = ()) -> list[TensorSpec]:
    """Every parameter of the whole model, in forward order."""
    layers = tuple(i for i in range(model.num_layers) if i not in noop_layers)
    return chunk_specs(model, layers, first=True, last=True)


def bucket_contents(specs: list[TensorSpec], rank: int, size: int, late: Set[str],
                    full: int = BUCKET_ELEMENTS) -> list[tuple[list[TensorSpec], bool]]:
    """The parameters of every bucket, and whether they are the late ones: early ones in forward order, cut where `full`
    elements are reached; then the `late` ones, if there are any.
    """
    contents: list[tuple[list[TensorSpec], bool]] = []
    filled = full
    for spec in specs:
        if spec.name in late:
            continue
        if filled >= full:
            contents.append(([], False))
            filled = 0
        contents[-1][0].append(spec)
        filled += math.prod(spec.local_shape(rank, size))
    last = [spec for spec in specs if spec.name in late]
    return [*contents, (last, True)] if last else contents
