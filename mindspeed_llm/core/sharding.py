"""Which part of every whole-model tensor a rank holds, and what ranks that hold the same must do with its gradient.

A tensor of the whole model ("global tensor") is cut along one dimension into *segments*, half-open index ranges in the
order in which a rank's tensor holds them. One range is not enough: a tensor-parallel shard of `linear_fc1` is its part of
the gate rows, then its part of the up rows; with more ranks than query groups, a shard of `linear_qkv` is some of its
group's query rows, then all of the group's K and V rows, which other ranks hold too.

Row order of the global tensors is Megatron's: `linear_qkv` is grouped per query group `[q ... q k v]`, `linear_fc1` is
`[gate; up]` over the whole width.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mindspeed_llm.config.model import ModelConfig

Segments = tuple[tuple[int, int], ...]
Cut = Callable[[int, int], Segments]
"""`(rank, size) -> segments` of tensor-parallel `rank` of `size`."""

BUCKET_ELEMENTS = 40_000_000  # from which a bucket is full: what is reduced and gathered at once beyond the buffers
OPTIMIZER_STATES = ("master", "exp_avg", "exp_avg_sq")  # what the optimizer keeps of every trainable parameter
UNDER_WAY = 2  # buckets that travel at once when nothing is computed meanwhile: their results lie beside the buffers
# Tokens whose logits exist at once. Enough that a product costs more than reading the output layer's weight and gradient
# for it; with half of GLM4's vocabulary on a rank, a chunk's logits in bf16 are 620 MB.
LOGITS_ROWS = 4096


@dataclass(frozen=True)
class Shared:
    """What of a rank's tensor all ranks of a group hold alike: its last `rows` rows, or all of it (None).

    group: a field of ParallelState: tp, kv_replica, embedding (first and last pipeline stage). Each rank's gradient is a
    part of the whole one, to be summed over the group; with `by_sequence` only where the ranks share the sequence
    (sequence parallelism), and whole on each of them otherwise.
    """

    group: str
    rows: int | None = None
    by_sequence: bool = False

    @property
    def across_stages(self) -> bool:
        """Whether the group's ranks hold different parameters besides, so that their buffers are laid out differently."""
        return self.group == "embedding"


@dataclass(frozen=True)
class TensorSpec:
    """One parameter of the whole model.

    `layer` is its global layer number, or None for embedding, final norm and output layer. `partition_dim` is the
    dimension that tensor parallelism cuts, with `cut` (None: every rank holds all of it). `decay` says whether weight
    decay applies, `shared` what a rank has in common with others. Of a parameter that is not `trainable` there is neither
    gradient nor optimizer state. `adapter`: it is not of the model but of a low-rank adapter.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    partition_dim: int | None
    decay: bool
    init: str  # "normal" | "scaled_normal" | "fan_in" | "zeros" | "ones"
    cut: Cut | None = None
    shared: Shared | None = None
    trainable: bool = True
    adapter: bool = False

    @property
    def late(self) -> bool:
        """Whether its gradient is reduced when backward has ended, in the last bucket: that of a tied embedding waits for
        another stage; norms, whose gradients are whole earlier but small, are kept with it.
        """
        return self.shared is not None and self.shared.rows is None

    def segments(self, rank: int, size: int) -> Segments:
        """Ranges along `partition_dim` (dimension 0 for an uncut tensor) that tensor-parallel `rank` of `size` holds, in
        its order.
        """
        if self.cut is None or size == 1:
            return ((0, self.shape[self.partition_dim or 0]),)
        return self.cut(rank, size)

    def local_shape(self, rank: int, size: int) -> tuple[int, ...]:
        """Shape of the tensor that `rank` of `size` holds."""
        dim = self.partition_dim or 0
        length = sum(stop - start for start, stop in self.segments(rank, size))
        return self.shape[:dim] + (length,) + self.shape[dim + 1:]

    def local_numel(self, rank: int, size: int) -> int:
        """Elements of the tensor that `rank` of `size` holds."""
        return math.prod(self.local_shape(rank, size))


def even(length: int) -> Cut:
    """Equal parts."""
    def cut(rank: int, size: int) -> Segments:
        part = length // size
        return ((rank * part, (rank + 1) * part),)
    return cut


def gate_up(ffn: int) -> Cut:
    """Equal parts of the gate rows and of the up rows."""
    def cut(rank: int, size: int) -> Segments:
        part = ffn // size
        start, stop = rank * part, (rank + 1) * part
        return ((start, stop), (ffn + start, ffn + stop))
    return cut


def query_groups(model: ModelConfig) -> Cut:
    """Whole query groups `[q ... q k v]`, or equal parts of a group's queries with all of its K and V."""
    heads, dim = model.heads_per_group, model.kv_channels
    group_rows = (heads + 2) * dim

    def cut(rank: int, size: int) -> Segments:
        local = model.local_heads(size)
        if local.replicas == 1:
            part = local.groups * group_rows
            return ((rank * part, (rank + 1) * part),)
        group, member = divmod(rank, local.replicas)
        first, q_rows = group * group_rows, local.queries * dim
        return ((first + member * q_rows, first + (member + 1) * q_rows), (first + heads * dim, first + group_rows))
    return cut


def bucket_contents(specs: Iterable[TensorSpec], rank: int, size: int,
                    full: int = BUCKET_ELEMENTS) -> list[list[TensorSpec]]:
    """The parameters of every bucket: trainable ones in forward order, cut where `full` elements are reached; then all
    late ones in one; then those that are not trainable, cut like the first.
    """
    early, late, frozen = [], [], []
    for spec in specs:
        (frozen if not spec.trainable else late if spec.late else early).append(spec)
    return [*_filled(early, rank, size, full), *([late] if late else []), *_filled(frozen, rank, size, full)]


def _filled(specs: list[TensorSpec], rank: int, size: int, full: int) -> list[list[TensorSpec]]:
    parts: list[list[TensorSpec]] = []
    filled = full
    for spec in specs:
        if filled >= full:
            parts.append([])
            filled = 0
        parts[-1].append(spec)
        filled += spec.local_numel(rank, size)
    return parts
