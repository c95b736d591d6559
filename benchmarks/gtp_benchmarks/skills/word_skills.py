"""Skills about words and their letters. Every answer is exact and bare."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gtp_benchmarks.skills.lexicon import ANTONYMS, CATEGORIES, NAMES, PLURALS, WORDS
from gtp_benchmarks.skills.question import Question, Skill, near_numbers

ORDINALS = ("first", "second", "third", "fourth", "fifth")


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _three_other_orders(words: Sequence[str], right: Sequence[str], rng: Random) -> tuple[str, ...]:
    wrong: list[str] = []
    while len(wrong) < 3:
        order = _listed(rng.sample(words, len(words)))
        if order != _listed(right) and order not in wrong:
            wrong.append(order)
    return tuple(wrong)


def _sorting(rng: Random) -> Question:
    words = rng.sample(WORDS, rng.choice((3, 4)))
    right = sorted(words)
    wrong = _three_other_orders(words, right, rng)
    return Question("sort", {"words": _listed(words)}, tuple(right), _listed(right), wrong)


SORTING = Skill(
    "sorting",
    _sorting,
    {
        "sort": (
            "Sort these words alphabetically: {words}",
            "Put the words {words} in alphabetical order.",
            "Arrange from A to Z: {words}",
            "Alphabetise this list: {words}",
            "In which order do {words} stand in a dictionary?",
            "Order the following words by the alphabet. {words}",
            "List: {words}. Sorted list:",
            "A librarian files {words} by their names. Give the order.",
            "Rewrite {words} so that the words go from A to Z.",
            "Which comes first, next and last in the alphabet? {words}",
            "sorted({words}) =",
        ),
    },
)


def _letter_count(rng: Random) -> Question:
    words = rng.sample(WORDS, 2)
    text = " ".join(words)
    letter = rng.choice(sorted(set(text) - {" "}))
    answer = text.count(letter)
    slots = {"text": text, "letter": letter}
    near = [answer - 1, answer + 1, answer + 2, answer + 3]
    return Question("count", slots, (*sorted(words), letter), str(answer), near_numbers(answer, near, rng))


LETTER_COUNT = Skill(
    "letter_count",
    _letter_count,
    {
        "count": (
            'How many times does the letter {letter} occur in "{text}"?',
            'Count the letter {letter} in "{text}".',
            'How many {letter}\'s are there in "{text}"?',
            'Number of {letter} in "{text}":',
            'In "{text}", how often do you see the letter {letter}?',
            'Tell me how many letters of "{text}" are {letter}.',
            'I write "{text}" and circle every {letter}. How many circles do I draw?',
            '"{text}".count("{letter}") =',
            'Look at the words "{text}". How frequent is the letter {letter}?',
            'If each {letter} in "{text}" costs a dollar, how many dollars is that?',
        ),
    },
)


def _last_letters(rng: Random) -> Question:
    names = rng.sample(NAMES, 3)
    answer = "".join(n[-1] for n in names)
    others = [
        "".join(n[0] for n in names).lower(),
        answer[::-1],
        answer[1:] + answer[0],
        answer[0] + answer[2] + answer[1],
    ]
    while len({*others, answer} - {answer}) < 3:
        others.append("".join(rng.choice("aeknorsy") for _ in range(3)))
    wrong = [o for o in dict.fromkeys(others) if o != answer]
    return Question("last", {"words": _listed(names)}, tuple(names), answer, tuple(rng.sample(wrong, 3)))


LAST_LETTERS = Skill(
    "last_letters",
    _last_letters,
    {
        "last": (
            "Take the last letter of each name and join them: {words}",
            "Concatenate the final letters of {words}.",
            "What do the last letters of {words} spell?",
            "Join the last letter of every word in this list: {words}",
            "Names: {words}. Last letters together:",
            "Write down the ending letters of {words} as one string.",
            "Read off the last letters in {words} and put them side by side.",
            "If you keep only the final letter of {words}, what is left?",
            "Last-letter puzzle: {words}",
            "Form a string from the last letters of the names {words}.",
        ),
    },
)


def _reversal(rng: Random) -> Question:
    words = rng.sample(WORDS, rng.choice((3, 4)))
    right = words[::-1]
    wrong = _three_other_orders(words, right, rng)
    return Question("reverse", {"words": _listed(words)}, tuple(words), _listed(right), wrong)


REVERSAL = Skill(
    "reversal",
    _reversal,
    {
        "reverse": (
            "Reverse the order of these words: {words}",
            "Write the list {words} backwards, word by word.",
            "Give {words} in the opposite order.",
            "Turn this list around: {words}",
            "List: {words}. Reversed list:",
            "Start with the last word and end with the first: {words}",
            "I stacked {words} in this order. Unstack them from the top.",
            "What is {words} read from right to left, word by word?",
            "Flip the order of the items {words}.",
            "reversed({words}) =",
        ),
    },
)


def _plural(rng: Random) -> Question:
    (one, ones, bad_one), (two, twos, bad_two) = rng.sample(PLURALS, 2)
    options = [f"{p} and {q}" for p in (ones, *bad_one) for q in (twos, *bad_two)]
    wrong = rng.sample(options[1:], 3)
    return Question("pair", {"a": one, "b": two}, (one, two), options[0], tuple(wrong))


PLURAL = Skill(
    "plural",
    _plural,
    {
        "pair": (
            "Write the plurals of {a} and {b}.",
            "What are the plural forms of {a} and {b}?",
            'Make plural: "{a} and {b}"',
            "One {a} and one {b}; two ...",
            "Turn {a} and {b} into plurals.",
            "Give the plural of {a}, then the plural of {b}.",
            "If there is more than one {a} and more than one {b}, what do we call them?",
            "Singular: {a} and {b}. Plural:",
            "I saw a {a} and a {b} yesterday, and today many. Today I saw many ...",
            "How do you say {a} and {b} for several of each?",
        ),
    },
)


def _antonym(rng: Random) -> Question:
    pair = rng.choice(ANTONYMS)
    word, answer = pair if rng.random() < 0.5 else pair[::-1]
    # Each option from another pair, so that exactly one is the opposite of the word.
    wrong = [rng.choice(p) for p in rng.sample([p for p in ANTONYMS if p is not pair], 3)]
    options = rng.sample([answer, *wrong], 4)
    slots = {"word": word, "options": _listed(options)}
    return Question("choose", slots, (word, *sorted(options)), answer, tuple(wrong))


ANTONYM = Skill(
    "antonym",
    _antonym,
    {
        "choose": (
            "Which word is the opposite of {word}: {options}?",
            "Find the antonym of {word} among {options}.",
            "{word} is the contrary of one of these: {options}. Which one?",
            "Choose the word that means the opposite of {word}. Options: {options}",
            "Not {word}, but ... ({options})",
            'Opposite of "{word}"? Pick from {options}.',
            "Out of {options}, which is most unlike {word} in meaning?",
            "Antonym quiz. Word: {word}. Options: {options}",
            "Complete the pair of opposites: {word} and ... ({options})",
            "If something is the reverse of {word}, which word fits: {options}?",
        ),
    },
)


def _odd_one_out(rng: Random) -> Question:
    kind, other = rng.sample(sorted(CATEGORIES), 2)
    inside = rng.sample(CATEGORIES[kind], 3)
    outside = rng.choice([w for w in CATEGORIES[other] if w not in CATEGORIES[kind]])
    items = rng.sample([*inside, outside], 4)
    return Question("odd", {"items": _listed(items)}, tuple(sorted(items)), outside, tuple(inside))


ODD_ONE_OUT = Skill(
    "odd_one_out",
    _odd_one_out,
    {
        "odd": (
            "Which word does not belong: {items}?",
            "Find the odd one out: {items}",
            "Three of these go together and one does not. Which one? {items}",
            "Pick the word that is different from the rest: {items}",
            "{items}. Which is the outsider?",
            "One of {items} is of another kind. Name it.",
            "Remove the word that does not fit: {items}",
            "Among {items}, which one is not like the others?",
            "Odd one out? {items}",
            "Someone mixed up the list {items}. Which word should not be there?",
        ),
    },
)


def _category(rng: Random) -> Question:
    kinds = rng.sample(sorted(CATEGORIES), 4)
    kind = kinds[0]
    word = rng.choice([w for w in CATEGORIES[kind] if not any(w in CATEGORIES[k] for k in kinds[1:])])
    options = rng.sample(kinds, 4)
    slots = {"word": word, "options": _listed(options)}
    return Question("kind", slots, (word, *sorted(options)), kind, tuple(kinds[1:]))


CATEGORY = Skill(
    "category",
    _category,
    {
        "kind": (
            "What kind of thing is {word}? Options: {options}",
            "Classify {word} as one of {options}.",
            "To which group does {word} belong: {options}?",
            "{word}: {options}?",
            "Choose the right label for {word} from {options}.",
            "Sort {word} into one of these boxes: {options}.",
            "In a museum with the rooms {options}, where would you show {word}?",
            'Which category fits "{word}"? Pick from {options}.',
            "Labels: {options}. Word: {word}. Label of the word:",
            "Is {word} an example of {options}? Name the one that fits.",
        ),
    },
)


def _longest_word(rng: Random) -> Question:
    words = rng.sample(WORDS, 4)
    while len(sorted(words, key=len)[-2]) == max(map(len, words)):
        words = rng.sample(WORDS, 4)
    answer = max(words, key=len)
    wrong = tuple(w for w in words if w != answer)
    return Question("longest", {"words": _listed(words)}, tuple(sorted(words)), answer, wrong)


LONGEST_WORD = Skill(
    "longest_word",
    _longest_word,
    {
        "longest": (
            "Which word is the longest: {words}?",
            "Find the word with the most letters: {words}",
            "Of {words}, which one has the greatest length?",
            "Pick the longest of these words: {words}",
            "Which of {words} takes up the most space on a page?",
            "max({words}, by length) =",
            "Count the letters of {words}. Which word wins?",
            "Name the word in {words} that has more letters than the others.",
            "Words: {words}. Longest:",
            "I pay per letter. Which of {words} costs the most?",
        ),
    },
)


def _position(rng: Random) -> Question:
    words = rng.sample(WORDS, 5)
    place = rng.randrange(5)
    slots = {"words": _listed(words), "nth": ORDINALS[place]}
    wrong = rng.sample([w for w in words if w != words[place]], 3)
    return Question("nth", slots, (ORDINALS[place], *words), words[place], tuple(wrong))


POSITION = Skill(
    "position",
    _position,
    {
        "nth": (
            "What is the {nth} word in this list: {words}?",
            "Name the {nth} item of {words}.",
            "In the list {words}, which word comes {nth}?",
            "List: {words}. The {nth} entry is",
            "Give me the {nth} of these words: {words}",
            "Five runners called {words} finish in this order. Who comes {nth}?",
            "Read out the word in {nth} place: {words}",
            "Look at {words} and pick the {nth} one.",
            "Which of {words} stands in {nth} position, from the left?",
            "The shelf holds {words}, from left to right. What is {nth}?",
        ),
    },
)


def _contains(rng: Random) -> Question:
    word = rng.choice(WORDS)
    inside = sorted(set(word))
    if rng.random() < 0.5:
        letter, answer = rng.choice(inside), "yes"
    else:
        letter, answer = rng.choice([c for c in "abcdefghiklmnoprstuvwy" if c not in word]), "no"
    wrong = ("no",) if answer == "yes" else ("yes",)
    return Question("has", {"word": word, "letter": letter}, (word, letter), answer, wrong)


CONTAINS = Skill(
    "contains",
    _contains,
    {
        "has": (
            'Does the word "{word}" contain the letter {letter}? yes or no',
            'Is there a {letter} in "{word}"? (yes/no)',
            'True to its spelling, does {word} have the letter "{letter}"? Say yes or no.',
            'Yes or no: "{letter}" is one of the letters of "{word}".',
            "Can you find the letter {letter} in {word}? Answer yes or no.",
            "Spell {word}. Do you use the letter {letter}? yes or no",
            'Does anyone who writes "{word}" need a {letter}? yes or no',
            "Letter: {letter}. Word: {word}. Is the letter in the word (yes or no)?",
            '"{letter}" in "{word}"? yes or no',
            "Check {word} for the letter {letter}: yes if it is there, no if not.",
        ),
    },
)

WORD_SKILLS = (
    SORTING,
    LETTER_COUNT,
    LAST_LETTERS,
    REVERSAL,
    PLURAL,
    ANTONYM,
    ODD_ONE_OUT,
    CATEGORY,
    LONGEST_WORD,
    POSITION,
    CONTAINS,
)
