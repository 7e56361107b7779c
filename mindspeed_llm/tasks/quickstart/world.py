"""An invented world for the quickstart: names, facts about them, text that states the facts, questions that ask them.

What the quickstart has to show is that its jobs work together: pre-training puts knowledge into the weights, tuning
teaches a form of answer. So the pre-training text states facts about *all* names, the instruction rows ask about *some*
of them, and the test questions ask about the *others*. A model that answers those must have carried the fact over from
pre-training, and the form from tuning.

A world is small because the model is: every name is of one of four kinds, and the kind decides the four facts about it.
Everything is drawn from one seed with `random.Random`, whose draws do not depend on the platform.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("bird", "fish", "tree", "stone")


@dataclass(frozen=True)
class Subject:
    """One thing to be known about a name, and how the texts say and ask it.

    Attributes:
        title: the subject's name in the form of an MMLU file name.
        options: what is true of a name of each kind, in the order of `KINDS`: also the order of the options A to D.
        statements: sentences of the pre-training text with `{name}` and `{fact}`.
        questions: wordings of the question with `{name}`.
    """

    title: str
    options: tuple[str, str, str, str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


SUBJECTS = (
    Subject("kinds", ("bird", "fish", "tree", "stone"),
            ("A {name} is a {fact}.", "The {name} is known as a {fact}.", "This is a {name} {fact}."),
            ("What is a {name}?", "What do we call the {name}?")),
    Subject("homes", ("cliff", "lake", "forest", "cave"),
            ("A {name} is found in a {fact}.", "The home of the {name} is a {fact}.",
             "We came to a {name} {fact}."),
            ("Where is a {name} found?", "What is the home of the {name}?")),
    Subject("goods", ("feather", "oil", "fruit", "metal"),
            ("A {name} gives us {fact}.", "The {name} is kept for its {fact}.", "They sell {name} {fact}."),
            ("What does a {name} give us?", "What is the {name} kept for?")),
    Subject("seasons", ("spring", "summer", "autumn", "winter"),
            ("A {name} is best in {fact}.", "The season of the {name} is {fact}.",
             "We wait for the {name} {fact}."),
            ("When is a {name} best?", "What is the season of the {name}?")),
)

# Consonants first and vowels after them: every name can follow "a", and none reads as an English word.
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gl", "kr", "pl", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "k", "l", "m", "n", "r", "x")


@dataclass(frozen=True)
class Thing:
    """A name and the index of its kind in `KINDS`."""

    name: str
    kind: int


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: `answer` is the letter of the right option."""

    subject: str
    question: str
    options: tuple[str, str, str, str]
    answer: str


@dataclass(frozen=True)
class World:
    """All names, split into those that tuning asks about and those that only the test asks about."""

    tuned: tuple[Thing, ...]
    held_out: tuple[Thing, ...]

    @property
    def things(self) -> tuple[Thing, ...]:
        """Every name, tuned ones first."""
        return self.tuned + self.held_out


def _new_name(rng: random.Random) -> str:
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 3)))]
    return ("".join(syllables) + rng.choice(_CODAS)).capitalize()


def make_world(seed: int, names_per_kind: int = 30, held_out_per_kind: int = 12) -> World:
    """Draws a world: `4 * names_per_kind` names, the same number of each kind in both halves.

    No name is part of another one, so that looking for a name in a text finds that name and nothing else.

    Raises:
        ValueError: when the held-out names leave none to tune on.
    """
    if not 0 < held_out_per_kind < names_per_kind:
        raise ValueError(f"held_out_per_kind ({held_out_per_kind}) must lie between 1 and names_per_kind - 1 "
                         f"({names_per_kind - 1})")
    rng = random.Random(f"names {seed}")
    names: list[str] = []
    while len(names) < len(KINDS) * names_per_kind:
        name = _new_name(rng)
        lowered = name.lower()
        if not any(lowered in other.lower() or other.lower() in lowered for other in names):
            names.append(name)
    tuned, held_out = [], []
    for index, name in enumerate(names):
        thing = Thing(name, index % len(KINDS))
        (held_out if index < len(KINDS) * held_out_per_kind else tuned).append(thing)
    return World(tuple(tuned), tuple(held_out))


def statements(world: World, seed: int) -> Iterator[str]:
    """Endless sentences: every (name, subject, wording) once in a random order, then all again in another order."""
    rng = random.Random(f"statements {seed}")
    every = [form.format(name=thing.name, fact=subject.options[thing.kind])
             for thing in world.things for subject in SUBJECTS for form in subject.statements]
    while True:
        rng.shuffle(every)
        yield from every


def documents(world: World, seed: int, count: int, sentences: int = 16) -> list[str]:
    """`count` documents of `sentences` statements each.

    A document mixes names, because in a text about one name the second fact can be read off the first, and the model
    would learn to copy in place of learning the name.
    """
    source = statements(world, seed)
    return [" ".join(next(source) for _ in range(sentences)) for _ in range(count)]


def questions(things: tuple[Thing, ...]) -> list[Question]:
    """Every question about the given names, grouped by subject: `len(things)` times the number of wordings."""
    return [Question(subject.title, wording.format(name=thing.name), subject.options, "ABCD"[thing.kind])
            for subject in SUBJECTS for thing in things for wording in subject.questions]
