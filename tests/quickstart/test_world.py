from collections import Counter
from itertools import islice

import pytest

from mindspeed_llm.tasks.quickstart.world import KINDS, SUBJECTS, documents, make_world, questions, statements


def test_same_seed_same_world_and_texts():
    assert make_world(3) == make_world(3)
    assert make_world(3) != make_world(4)
    world = make_world(3)
    assert documents(world, 3, 5) == documents(world, 3, 5)
    assert documents(world, 3, 5) != documents(world, 4, 5)


def test_first_names_are_as_recorded():
    """A change of the generator changes every published number of the quickstart: it must not happen unnoticed."""
    assert [thing.name for thing in make_world(1).things[:3]] == ["Bagum", "Luglom", "Netrikem"]


def test_sizes_and_balance():
    world = make_world(1, names_per_kind=30, held_out_per_kind=12)
    assert (len(world.things), len(world.held_out)) == (120, 48)
    assert set(Counter(thing.kind for thing in world.held_out).values()) == {12}
    assert set(Counter(thing.kind for thing in world.tuned).values()) == {18}


@pytest.mark.parametrize("seed", range(5))
def test_no_name_is_part_of_another(seed):
    names = [thing.name.lower() for thing in make_world(seed).things]
    assert len(set(names)) == len(names)
    assert not [(a, b) for a in names for b in names if a != b and a in b]


@pytest.mark.parametrize("held_out", [0, 30, 31])
def test_split_must_leave_both_halves(held_out):
    with pytest.raises(ValueError, match=f"held_out_per_kind \\({held_out}\\)"):
        make_world(1, names_per_kind=30, held_out_per_kind=held_out)


def test_every_statement_once_a_round():
    world = make_world(1)
    per_round = len(world.things) * sum(len(subject.statements) for subject in SUBJECTS)
    source = statements(world, 1)
    first, second = list(islice(source, per_round)), list(islice(source, per_round))
    assert len(set(first)) == per_round
    assert set(first) == set(second) and first != second


def test_statements_say_the_facts_of_the_kind():
    world = make_world(1)
    kinds = {thing.name: thing.kind for thing in world.things}
    for sentence in islice(statements(world, 1), 500):
        words = sentence.rstrip(".").split()
        name = next(word for word in words if word in kinds)
        assert words[-1] in {subject.options[kinds[name]] for subject in SUBJECTS}


def test_questions_have_the_right_answers_in_balance():
    world = make_world(1)
    items = questions(world.held_out)
    assert len(items) == 48 * sum(len(subject.questions) for subject in SUBJECTS) >= 300
    kinds = {thing.name: thing.kind for thing in world.held_out}
    for item in items:
        name = next(name for name in kinds if name in item.question)
        assert "ABCD".index(item.answer) == kinds[name]
    assert set(Counter(item.answer for item in items).values()) == {len(items) // len(KINDS)}
