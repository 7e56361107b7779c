"""The default parity table has every pair of option values that go together, and four ranks in each kind of group."""

from itertools import combinations, product

from tests.distributed.covering import EIGHT_RANKS, FACTORS, PAIRWISE, SIZES, WORLDS, covered, covering, row, valid

MORE, ONE = True, False  # a size, as pairs count it
# The pairs that no run can have. Everything else must be in a row: a rule of `valid` that is too strict shows here.
IMPOSSIBLE = {
    (("tp", ONE), ("sp", True)),
    (("cp", ONE), ("ring", "ring")), (("cp", ONE), ("ring", "ulysses")), (("cp", MORE), ("ring", None)),
    (("pp", ONE), ("split", "uneven")), (("pp", ONE), ("split", "virtual")),
    (("dp", MORE), ("micro", 4)),  # the batch has four rows
    # the rows of one micro-batch are of one length
    (("record", "lengths"), ("micro", 2)), (("record", "lengths"), ("micro", 4)),
}
FOURS = {(("tp", 4), ("sp", False)), (("tp", 4), ("sp", True)),
         (("cp", 4), ("ring", "ring")), (("cp", 4), ("ring", "ulysses")),
         *((("pp", 4), ("split", split)) for split in FACTORS["split"]),
         *((("dp", 4), ("sums", sums)) for sums in FACTORS["sums"])}


def test_every_possible_pair_is_in_a_row():
    values = {factor: (ONE, MORE) if factor in SIZES else values for factor, values in FACTORS.items()}
    possible = {((first, value), (second, other)) for first, second in combinations(values, 2)
                for value, other in product(values[first], values[second])} - IMPOSSIBLE
    assert set().union(*map(covered, covering())) == possible | FOURS


def test_rows_are_what_their_choices_say():
    for choice in covering():
        made = row(choice)
        parallel = made.parallel
        assert valid(choice) and made.world in WORLDS
        assert made.world // parallel.model_parallel_size == choice["dp"]
        assert (parallel.tensor_model_parallel_size, parallel.context_parallel_size,
                parallel.pipeline_model_parallel_size, parallel.sequence_parallel, made.micro_batch,
                made.record) == tuple(
                    choice[key] for key in ("tp", "cp", "pp", "sp", "micro", "record"))
        assert ("ulysses" in parallel.context_parallel_algo) == (choice["ring"] == "ulysses")
        assert (parallel.num_layer_list is not None, parallel.num_layers_per_virtual_pipeline_stage is not None) == (
            choice["split"] == "uneven", choice["split"] == "virtual")
        assert (parallel.use_distributed_optimizer, parallel.overlap_grad_reduce) == (
            "zero" in choice["sums"], "overlap" in choice["sums"])
        assert (parallel.recompute_method or parallel.recompute_granularity) == choice["recompute"]


def test_eight_ranks_are_there_and_names_differ():
    assert {row.name for row in PAIRWISE if row.world == 8} == set(EIGHT_RANKS) and len(EIGHT_RANKS) == 3
    assert len({row.name for row in PAIRWISE}) == len(PAIRWISE) < 45
