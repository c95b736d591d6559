"""Skills about truth and order. Every answer is exact and bare."""

from __future__ import annotations

from random import Random

from gtp_benchmarks.skills.lexicon import NAMES
from gtp_benchmarks.skills.question import Question, Skill


def _expression(rng: Random, depth: int) -> tuple[str, bool]:
    """Return a random Boolean expression with explicit brackets, and its value."""
    if depth == 0:
        value = rng.random() < 0.5
        return str(value), value
    if rng.random() < 0.3:
        text, value = _expression(rng, depth - 1)
        return f"not {text}" if " " not in text else f"not ({text})", not value
    (left, a), (right, b) = (_expression(rng, rng.randrange(depth)) for _ in range(2))
    left, right = (f"({t})" if " " in t else t for t in (left, right))
    return (f"{left} and {right}", a and b) if rng.random() < 0.5 else (f"{left} or {right}", a or b)


def _boolean(rng: Random) -> Question:
    # Draw for a wanted value: the two answers are equally common.
    wanted = rng.random() < 0.5
    text, value = _expression(rng, rng.choice((2, 3)))
    while value is not wanted or " " not in text:
        text, value = _expression(rng, rng.choice((2, 3)))
    return Question("evaluate", {"expression": text}, (text,), str(value), (str(not value),))


BOOLEAN = Skill(
    "boolean",
    _boolean,
    {
        "evaluate": (
            "What is the value of {expression}?",
            "Evaluate: {expression}",
            "{expression} is",
            "Is this expression True or False? {expression}",
            "Work out the Boolean expression {expression}.",
            "print({expression})",
            "Simplify {expression} to True or False.",
            "In logic, {expression} gives",
            "A circuit computes {expression}. What does it output, True or False?",
            "Decide whether {expression} holds. Say True or False.",
            "Truth value of {expression}:",
        ),
    },
)

# (more, less, most, least)
SCALES = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("richer", "poorer", "richest", "poorest"),
    ("stronger", "weaker", "strongest", "weakest"),
)


def _ranking(rng: Random) -> Question:
    people = rng.sample(NAMES, 3)  # from most to least
    scale = rng.randrange(len(SCALES))
    more, less, most, least = SCALES[scale]
    facts = []
    for above, below in ((0, 1), (1, 2)):
        if rng.random() < 0.5:
            facts.append(f"{people[above]} is {more} than {people[below]}.")
        else:
            facts.append(f"{people[below]} is {less} than {people[above]}.")
    rng.shuffle(facts)
    top = rng.random() < 0.5
    answer = people[0] if top else people[2]
    superlative = most if top else least
    return Question(
        "who",
        {"facts": " ".join(facts), "superlative": superlative},
        (superlative, *people),
        answer,
        tuple(p for p in people if p != answer),
    )


RANKING = Skill(
    "ranking",
    _ranking,
    {
        "who": (
            "{facts} Who is the {superlative}?",
            "Read this and say who is {superlative}. {facts}",
            "Facts: {facts} Question: which of them is the {superlative}?",
            "{facts} Name the {superlative} of the three.",
            "Given that {facts} Then the {superlative} is",
            "Three friends compare themselves. {facts} Which friend is {superlative}?",
            "Find the {superlative} person. {facts}",
            "{facts} The {superlative} of all is",
            "Use the clues to find the {superlative} one. {facts}",
            "Who would you call the {superlative}? {facts}",
        ),
    },
)

LOGIC_SKILLS = (BOOLEAN, RANKING)
