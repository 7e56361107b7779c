"""The parity table that runs by default: every valid pair of two parallel options' values is in one of its rows.

Mistakes in parallel code show in one option or in two together, so that a few dozen rows find what thousands of
combinations would: Cohen et al., "The AETG System", 1997, whose greedy choice makes the table here, with an eye
to cost. Rows have two and four ranks. In pairs a size counts as 1 or more; of each size and what goes with it, a row
has four ranks in one group, where the next rank is not the previous one. Combinations of three sizes need eight
ranks: three rows of the long table.
"""

from functools import cache
from itertools import combinations, product

from mindspeed_llm.config.parallel import ULYSSES, ulysses_divides
from tests.distributed.rows import ROWS, Row, combine

FACTORS = {
    "tp": (1, 2, 4),
    "cp": (1, 2, 4),
    "pp": (1, 2, 4),
    "dp": (1, 2, 4),
    "sp": (False, True),
    "ring": (None, "ring", "ulysses"),
    "split": ("even", "uneven", "virtual"),
    "sums": ("plain", "zero", "overlap", "overlap_zero"),
    "recompute": (None, "selective", "block", "uniform"),
    "record": ("golden", "tied", "post_norm", "packed", "lengths", "deep", "noop"),
    "micro": (1, 2, 4),
}
SIZES = {"tp": "sp", "cp": "ring", "pp": "split", "dp": "sums"}  # and the option that changes what the group does
WORLDS = (2, 4)
EIGHT_RANKS = ("tp2_cp2_pp2_sp", "cp2_pp2_dp2_virtual_zero_tied", "tp2_pp2_dp2_zero_sp")
HEADS, GROUPS, ROWS_OF_BATCH, LENGTHS = 4, 2, 4, (16, 8, 12, 4)  # of the golden model and of the record `lengths`
LAYERS = {"deep": 8, "noop": 8}
NOOP = (2, 3, 6)  # of the record `noop`
UNEVEN = {(2, 4): (3, 1), (2, 8): (5, 3), (4, 8): (1, 3, 2, 2)}  # (stages, layers) -> layers per stage
SUMS = {"plain": {}, "zero": {"zero": True}, "overlap": {"overlap_grad_reduce": True},
        "overlap_zero": {"zero": True, "overlap_grad_reduce": True, "overlap_param_gather": True}}
RECOMPUTE = {None: {}, "selective": {"recompute_granularity": "selective"},
             "block": {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
             "uniform": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}}

Choice = dict[str, object]
Pair = tuple[tuple[str, object], tuple[str, object]]


def valid(choice: Choice) -> bool:
    """Whether the options of a choice have a meaning together, and the recorded model and batch allow them."""
    tp, cp, pp, dp = (choice[size] for size in SIZES)
    ulysses, layers = choice["ring"] == "ulysses", LAYERS.get(choice["record"], 4)
    return (tp * cp * pp * dp in WORLDS
            and (tp > 1 or not choice["sp"])
            and (cp > 1) == (choice["ring"] is not None)
            and (dp * cp > 1 or choice["sums"] == "plain")
            and ROWS_OF_BATCH // dp % choice["micro"] == 0
            and (not ulysses or ulysses_divides(HEADS // tp, max(1, GROUPS // tp), cp))
            and _can_split(choice["split"], pp, layers)
            and (choice["record"] != "lengths"
                 or choice["micro"] == 1 and all(length % (cp if ulysses else 2 * cp if cp > 1 else 1) == 0
                                                 for length in LENGTHS)))


def covered(choice: Choice) -> set[Pair]:
    """What a choice covers: every two of its values, a size being more than 1 or not, and four ranks in one group."""
    shown = {factor: value > 1 if factor in SIZES else value for factor, value in choice.items()}
    fours = {((size, 4), (kind, choice[kind])) for size, kind in SIZES.items() if choice[size] == 4}
    return set(combinations(shown.items(), 2)) | fours


def row(choice: Choice) -> Row:
    """The row of a choice, named after what differs from one plain process."""
    tp, cp, pp, dp, split, record = (choice[key] for key in ("tp", "cp", "pp", "dp", "split", "record"))
    options = SUMS[choice["sums"]] | RECOMPUTE[choice["recompute"]]
    if choice["ring"] == "ulysses":
        options["context_parallel_algo"] = ULYSSES
    if split == "virtual":
        options["num_layers_per_virtual_pipeline_stage"] = 1
    if split == "uneven":
        options["layers"] = UNEVEN[pp, LAYERS.get(record, 4)]
    if record == "noop":
        options["noop_layers"] = NOOP
    words = [f"{size}{choice[size]}" for size in SIZES if choice[size] > 1]
    words += ["sp"] * choice["sp"] + [value for value in (choice["ring"], choice["recompute"]) if value]
    words += [value for value, plain in ((split, "even"), (choice["sums"], "plain"), (record, "golden"))
              if value != plain]
    name = "_".join([*words, f"micro{choice['micro']}"])
    return combine(name, tp * cp * pp * dp, choice["micro"], record, tp=tp, cp=cp, pp=pp, sp=choice["sp"], **options)


@cache
def choices() -> list[Choice]:
    """Every valid choice."""
    found = [dict(zip(FACTORS, values)) for values in product(*FACTORS.values())
             if values[0] * values[1] * values[2] * values[3] in WORLDS]
    return [choice for choice in found if valid(choice)]


@cache
def covering() -> list[Choice]:
    """Choices that have every valid pair: again and again one that has many of those still missing and costs little."""
    bits: dict[Pair, int] = {}
    masks = [sum(1 << bits.setdefault(pair, len(bits)) for pair in covered(choice)) for choice in choices()]
    weights = [(50 + _cost(choice)) ** 0.3 for choice in choices()]  # three rows more, a quarter less time for all
    taken, missing = [], (1 << len(bits)) - 1
    while missing:
        best = max(range(len(masks)), key=lambda number: (masks[number] & missing).bit_count() / weights[number])
        taken.append(choices()[best])
        missing &= ~masks[best]
    return taken


def _cost(choice: Choice) -> float:
    """About the time that a row takes: calls of operators on all ranks of a replica, which there are `dp` times."""
    layers = LAYERS.get(choice["record"], 4) - len(NOOP) * (choice["record"] == "noop")
    per_layer = choice["tp"] * choice["cp"] * (1 + choice["cp"] * (choice["ring"] == "ring"))
    passes = 3 if choice["recompute"] in (None, "selective") else 4
    return layers * per_layer * passes * ROWS_OF_BATCH / choice["micro"] + choice["pp"] * choice["dp"]


def _can_split(split: str, pp: int, layers: int) -> bool:
    if split == "virtual":
        return pp > 1 and layers // pp > 1
    return split == "even" or (pp, layers) in UNEVEN


PAIRWISE = [row(choice) for choice in covering()] + [row for row in ROWS if row.name in EIGHT_RANKS]
