"""Which sequences should share the computation of what they begin with."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Sequences (their numbers) whose first `length` tokens are the same and are computed once."""

    length: int
    members: tuple[int, ...]


def shared_prefixes(sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[Group]:
    """Groups of all sequences such that few tokens are computed, common beginnings counted once.

    A beginning may have at most `limits[i]` tokens of sequence i (what must be computed for each alone comes after it).
    The sequences form a prefix tree (Morrison, "PATRICIA", 1968); at each of its forks, from the leaves up, the cheaper
    way is taken: one group with all tokens up to the fork in common, or the groups of its branches, each computed from
    its first token on.
    """
    order = sorted(range(len(sequences)), key=lambda number: tuple(sequences[number]))
    neighbours = [min(_common(sequences[a], sequences[b]), limits[a], limits[b]) for a, b in zip(order, order[1:])]
    # A stack of open forks replaces recursion: chains of sequences that begin one another make the tree deep.
    open_forks: list[tuple[int, list[tuple[int, list[Group]]]]] = []
    found: tuple[int, list[Group]] | None = None
    for place, number in enumerate(order):
        depth_after = neighbours[place] if place < len(neighbours) else -1
        found = (len(sequences[number]), [Group(0, (number,))])
        while open_forks and open_forks[-1][0] > depth_after:
            depth, branches = open_forks.pop()
            found = _cheaper(depth, [*branches, found], sequences)
        if depth_after < 0:
            break
        if open_forks and open_forks[-1][0] == depth_after:
            open_forks[-1][1].append(found)
        else:
            open_forks.append((depth_after, [found]))
    return found[1] if found else []


def _cheaper(depth: int, branches: list[tuple[int, list[Group]]],
             sequences: Sequence[Sequence[int]]) -> tuple[int, list[Group]]:
    """(tokens to compute, groups) of a fork at `depth`: together or branch by branch."""
    members = tuple(number for _, groups in branches for group in groups for number in group.members)
    together = depth + sum(len(sequences[number]) - depth for number in members)
    apart = sum(cost for cost, _ in branches)
    if depth and together <= apart:
        return together, [Group(depth, members)]
    return apart, [group for _, groups in branches for group in groups]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(a, b)):
        if left != right:
            return place
    return min(len(a), len(b))
