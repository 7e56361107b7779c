"""Ranks and their groups: built once, passed explicitly.

Global ranks are laid out with the tensor-parallel rank fastest, then context, data and pipeline, as in Megatron-LM, so
that tensor-parallel neighbours are on one node.
"""

from dataclasses import dataclass

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.validation import check_parallel
from mindspeed_llm.runtime import collectives
from mindspeed_llm.runtime.collectives import Group


@dataclass(frozen=True)
class ParallelState:
    """This rank's groups.

    tp, cp, dp, pp: one axis each. dp_cp: ranks that hold the same parameters. model: ranks that together hold one
    replica of the model (tp x pp). embedding: first and last stage, for tied embeddings. kv_replica: tensor-parallel
    ranks with the same K/V rows, of which there are several when TP exceeds the number of query groups.
    """

    world: Group
    tp: Group
    cp: Group
    dp: Group
    pp: Group
    dp_cp: Group
    model: Group
    embedding: Group
    kv_replica: Group
    sequence_parallel: bool

    @property
    def is_first_stage(self) -> bool:
        """True on pipeline ranks that hold the embedding."""
        return self.pp.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """True on pipeline ranks that hold the output layer."""
        return self.pp.rank == self.pp.size - 1


def rank_coordinates(rank: int, parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """Place of a global rank on the axes tp, cp, dp, pp."""
    sizes = _sizes(parallel, world_size)
    place = {}
    for axis, size in sizes.items():
        rank, place[axis] = divmod(rank, size)
    return place


def build(model: ModelConfig, parallel: ParallelConfig) -> ParallelState:
    """Make this rank's groups from the ranks that `msrun` started. Raises UserError if the sizes do not fit."""
    world = collectives.init()
    check_parallel(parallel, model)
    sizes = _sizes(parallel, world.size)
    place = rank_coordinates(world.rank, parallel, world.size)
    strides, stride = {}, 1
    for axis, size in sizes.items():
        strides[axis] = stride
        stride *= size

    def members(*axes: str) -> tuple[int, ...]:
        """Global ranks that differ from this one on `axes` only."""
        ranks = [world.rank - sum(place[axis] * strides[axis] for axis in axes)]
        for axis in axes:
            ranks = [rank + step * strides[axis] for step in range(sizes[axis]) for rank in ranks]
        return tuple(sorted(ranks))

    def group(kind: str, ranks: tuple[int, ...]) -> Group:
        return collectives.new_group(f"{kind}_{'_'.join(map(str, ranks))}", ranks)

    tp, pp = group("tp", members("tp")), group("pp", members("pp"))
    ends = (pp.ranks[0], pp.ranks[-1]) if pp.size > 1 else (world.rank,)
    replicas = model.local_heads(tp.size).replicas
    first = tp.rank // replicas * replicas
    return ParallelState(
        world=world, tp=tp, pp=pp, cp=group("cp", members("cp")), dp=group("dp", members("dp")),
        dp_cp=group("dp_cp", members("dp", "cp")), model=group("model", members("tp", "pp")),
        embedding=group("embedding", ends) if world.rank in ends else Group("embedding", (world.rank,), 0),
        kv_replica=group("kv_replica", tp.ranks[first:first + replicas]),
        sequence_parallel=parallel.sequence_parallel and tp.size > 1,
    )


def _sizes(parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """Axes in rank order, fastest first."""
    return {"tp": parallel.tensor_model_parallel_size, "cp": parallel.context_parallel_size,
            "dp": parallel.data_parallel_size(world_size), "pp": parallel.pipeline_model_parallel_size}
