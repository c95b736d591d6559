"""Skills about numbers, dates and units. Every answer is exact and bare."""

from __future__ import annotations

from random import Random

from gtp_benchmarks.skills.lexicon import NAMES, UNITS, WEEKDAYS
from gtp_benchmarks.skills.question import Question, Skill, near_numbers, number_slips

ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def roman(n: int) -> str:
    """Return a number as a Roman numeral."""
    text = ""
    for value, letters in ROMAN:
        while n >= value:
            text, n = text + letters, n - value
    return text


def _arithmetic(rng: Random) -> Question:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    if rng.random() < 0.5:
        form, answer, identity = "plus", a + b, ("plus", str(min(a, b)), str(max(a, b)))
    else:
        a, b = max(a, b) + 1, min(a, b)
        form, answer, identity = "minus", a - b, ("minus", str(a), str(b))
    slots = {"a": str(a), "b": str(b)}
    return Question(form, slots, identity, str(answer), near_numbers(answer, number_slips(answer), rng))


ARITHMETIC = Skill(
    "arithmetic",
    _arithmetic,
    {
        "plus": (
            "What is {a} + {b}?",
            "Calculate {a} plus {b}.",
            "Add {a} and {b}.",
            "{a} + {b} =",
            "Find the sum of {a} and {b}.",
            "How much is {a} and {b} together?",
            "If you put {b} on top of {a}, what number do you get?",
            "A box holds {a} pens and another holds {b}. How many pens are there in all?",
            "Work out {a}+{b}.",
            "Sum: {a}, {b}. Total?",
            "I walked {a} steps and then {b} more. How many steps did I walk?",
        ),
        "minus": (
            "What is {a} - {b}?",
            "Calculate {a} minus {b}.",
            "Subtract {b} from {a}.",
            "{a} - {b} =",
            "Find the difference between {a} and {b}.",
            "Take {b} away from {a}. What is left?",
            "There were {a} birds and {b} flew off. How many stayed?",
            "How much more is {a} than {b}?",
            "Work out {a}-{b}.",
            "I had {a} coins and spent {b}. How many coins do I still have?",
            "By how much does {a} exceed {b}?",
        ),
    },
)


def _multiplication(rng: Random) -> Question:
    a, b = rng.randint(3, 99), rng.randint(3, 19)
    answer = a * b
    mistakes = [answer + a, answer - a, answer + b, answer - b, *number_slips(answer)]
    identity = (str(min(a, b)), str(max(a, b)))
    return Question(
        "times", {"a": str(a), "b": str(b)}, identity, str(answer), near_numbers(answer, mistakes, rng)
    )


MULTIPLICATION = Skill(
    "multiplication",
    _multiplication,
    {
        "times": (
            "What is {a} times {b}?",
            "Multiply {a} by {b}.",
            "{a} x {b} =",
            "Find the product of {a} and {b}.",
            "Calculate {a} * {b}.",
            "There are {b} bags with {a} marbles each. How many marbles are there?",
            "How much is {b} lots of {a}?",
            "A hall has {a} rows of {b} seats. How many seats does it have?",
            "Work out {a} multiplied by {b}.",
            "One ticket costs {a} dollars. What do {b} tickets cost, in dollars?",
            "Product of {a} and {b}?",
        ),
    },
)


def _comparison(rng: Random) -> Question:
    digits = rng.choice((2, 3, 4))
    numbers = rng.sample(range(10 ** (digits - 1), 10**digits), 3)
    form = rng.choice(("largest", "smallest"))
    answer = max(numbers) if form == "largest" else min(numbers)
    a, b, c = (str(n) for n in numbers)
    identity = (form, *sorted((a, b, c)))
    wrong = tuple(str(n) for n in numbers if n != answer)
    return Question(form, {"a": a, "b": b, "c": c}, identity, str(answer), wrong)


COMPARISON = Skill(
    "comparison",
    _comparison,
    {
        "largest": (
            "Which number is the largest: {a}, {b} or {c}?",
            "Pick the biggest of {a}, {b} and {c}.",
            "Of the numbers {a}, {b}, {c}, which one is greatest?",
            "Find the maximum of {a}, {b}, {c}.",
            "max({a}, {b}, {c}) =",
            "Three teams scored {a}, {b} and {c} points. What was the winning score?",
            "Name the highest number in this list: {a}, {b}, {c}.",
            "I have {a}, {b} and {c} written on three cards. Which card shows the most?",
            "Which is more than the other two: {a}, {b}, {c}?",
            "Three towns have {a}, {b} and {c} people. How many live in the biggest town?",
        ),
        "smallest": (
            "Which number is the smallest: {a}, {b} or {c}?",
            "Pick the lowest of {a}, {b} and {c}.",
            "Of the numbers {a}, {b}, {c}, which one is least?",
            "Find the minimum of {a}, {b}, {c}.",
            "min({a}, {b}, {c}) =",
            "Three shops ask {a}, {b} and {c} dollars for a lamp. What is the cheapest price?",
            "Name the lowest number in this list: {a}, {b}, {c}.",
            "I have {a}, {b} and {c} written on three cards. Which card shows the least?",
            "Which is less than the other two: {a}, {b}, {c}?",
            "Three parcels weigh {a}, {b} and {c} grams. How heavy is the lightest, in grams?",
        ),
    },
)


def _sequence(rng: Random) -> Question:
    if rng.random() < 0.75:
        step, start = rng.choice([s for s in range(-12, 13) if abs(s) > 1]), rng.randint(2, 60)
        start += 5 * abs(step) if step < 0 else 0
        terms = [start + i * step for i in range(5)]
    else:
        start, ratio = rng.randint(2, 40), rng.choice((2, 3))
        terms = [start * ratio**i for i in range(5)]
    answer = terms[4]
    shown = ", ".join(str(t) for t in terms[:4])
    mistakes = [
        2 * answer - terms[3],
        answer + 1,
        answer - 1,
        answer + 2,
        answer - 2,
        answer + 10,
        answer - 10,
    ]
    return Question("next", {"terms": shown}, (shown,), str(answer), near_numbers(answer, mistakes, rng))


SEQUENCE = Skill(
    "sequence",
    _sequence,
    {
        "next": (
            "What number comes next: {terms}?",
            "Continue the sequence {terms}, ...",
            "Find the next term of {terms}.",
            "{terms}, ?",
            "Complete the pattern: {terms}, __",
            "A series goes {terms}. Which number follows?",
            "Look at {terms}. What is the fifth number?",
            "The numbers {terms} follow a rule. Apply it once more.",
            "Every hour a counter shows {terms}. What does it show next?",
            "Give the number after {terms}.",
            "Which value belongs at the end of {terms}?",
        ),
    },
)


def _roman_numerals(rng: Random) -> Question:
    n = rng.randint(4, 1999)
    near = [n + d for d in (-50, -10, -5, -4, -2, -1, 1, 2, 4, 5, 10, 40, 50) if n + d > 0]
    rng.shuffle(near)
    if rng.random() < 0.5:
        identity = ("to_roman", str(n))
        # Numerals that begin one another (X, XI) would be an unfair choice.
        wrong: list[str] = []
        for numeral in map(roman, near):
            if not any(numeral.startswith(r) or r.startswith(numeral) for r in (roman(n), *wrong)):
                wrong.append(numeral)
        return Question("to_roman", {"n": str(n)}, identity, roman(n), tuple(wrong[:3]))
    identity = ("from_roman", str(n))
    return Question("from_roman", {"r": roman(n)}, identity, str(n), near_numbers(n, near, rng))


ROMAN_NUMERALS = Skill(
    "roman_numerals",
    _roman_numerals,
    {
        "to_roman": (
            "Write {n} as a Roman numeral.",
            "What is {n} in Roman numerals?",
            "Convert {n} to Roman numerals.",
            "How did the Romans write {n}?",
            "{n} in Roman form:",
            "Which Roman numeral stands for {n}?",
            "Give the Roman numeral for the number {n}.",
            "A monument must show the number {n} in Roman numerals. What is carved on it?",
            "Turn the number {n} into a Roman numeral.",
            "Chapter {n} of the book has a Roman number. Which one?",
        ),
        "from_roman": (
            "What number is {r}?",
            "Convert the Roman numeral {r} to a number.",
            "Which number does {r} stand for?",
            "Read the Roman numeral {r}.",
            "{r} in ordinary digits:",
            "Write {r} in Arabic digits.",
            "What is the value of the Roman numeral {r}?",
            "An old clock tower carries the number {r}. What number is that?",
            "Turn the Roman numeral {r} into digits.",
            "The page is numbered {r}. Which page is it?",
        ),
    },
)


def _unit_conversion(rng: Random) -> Question:
    large, small, factor = rng.choice(UNITS)
    n = rng.randint(2, 60)
    if rng.random() < 0.5:
        answer, form, shown = n * factor, "down", n
    else:
        answer, form, shown = n, "up", n * factor
    mistakes = [answer + d for d in (-2, -1, 1, 2)] + [answer + factor, answer - factor]
    return Question(
        form,
        {"n": str(shown), "large": large, "small": small},
        (form, large, small, str(n)),
        str(answer),
        near_numbers(answer, mistakes, rng),
    )


UNIT_CONVERSION = Skill(
    "unit_conversion",
    _unit_conversion,
    {
        "down": (
            "How many {small} are {n} {large}?",
            "Convert {n} {large} to {small}.",
            "{n} {large} = ? {small}",
            "Express {n} {large} in {small}.",
            "I have {n} {large}. What is that in {small}?",
            "What do {n} {large} amount to in {small}?",
            "Change {n} {large} into {small}.",
            "A label says {n} {large}, but I need {small}. Which number do I write?",
            "Give the number of {small} in {n} {large}.",
            "If you measure {n} {large} in {small}, what number do you get?",
        ),
        "up": (
            "How many {large} are {n} {small}?",
            "Convert {n} {small} to {large}.",
            "{n} {small} = ? {large}",
            "Express {n} {small} in {large}.",
            "I have {n} {small}. What is that in {large}?",
            "What do {n} {small} amount to in {large}?",
            "Change {n} {small} into {large}.",
            "A label says {n} {small}, but I need {large}. Which number do I write?",
            "Give the number of {large} in {n} {small}.",
            "If you measure {n} {small} in {large}, what number do you get?",
        ),
    },
)


def _weekday(rng: Random) -> Question:
    day, n, form = rng.randrange(7), rng.randint(2, 120), rng.choice(("after", "before"))
    answer = (day + n) % 7 if form == "after" else (day - n) % 7
    wrong = rng.sample([d for d in WEEKDAYS if d != WEEKDAYS[answer]], 3)
    slots = {"day": WEEKDAYS[day], "n": str(n)}
    return Question(form, slots, (form, str(day), str(n)), WEEKDAYS[answer], tuple(wrong))


WEEKDAY = Skill(
    "weekday",
    _weekday,
    {
        "after": (
            "Today is {day}. What day will it be in {n} days?",
            "If it is {day} now, which weekday comes {n} days later?",
            "Which day of the week is {n} days after {day}?",
            "{day} plus {n} days is which day?",
            "A parcel sent on {day} arrives {n} days later. On which weekday?",
            "Count {n} days on from {day}. Where do you land?",
            "My holiday begins {n} days from now and today is {day}. On what day does it begin?",
            "Starting on {day}, name the weekday after {n} days.",
            "It is {day}. Tell me the day of the week {n} days ahead.",
            "A course starts on {day} and ends {n} days afterwards. Which weekday is that?",
        ),
        "before": (
            "Today is {day}. What day was it {n} days ago?",
            "If it is {day} now, which weekday was {n} days earlier?",
            "Which day of the week is {n} days before {day}?",
            "{day} minus {n} days is which day?",
            "A letter that came on {day} was posted {n} days before. On which weekday?",
            "Count {n} days back from {day}. Where do you land?",
            "I moved here {n} days ago and today is {day}. On what day did I move?",
            "Going back from {day}, name the weekday {n} days earlier.",
            "It is {day}. Tell me the day of the week {n} days in the past.",
            "A trip ended on {day} and had begun {n} days earlier. Which weekday was that?",
        ),
    },
)


def _clock(rng: Random) -> Question:
    start, minutes = 5 * rng.randrange(12 * 12, 24 * 12 - 36), 5 * rng.randint(1, 35)

    def show(t: int) -> str:
        return f"{t // 60 % 24:02d}:{t % 60:02d}"

    end = start + minutes
    wrong = rng.sample([show(end + d) for d in (-60, -30, -15, -10, -5, 5, 10, 15, 30, 60)], 3)
    slots = {"time": show(start), "n": str(minutes)}
    return Question("later", slots, (show(start), str(minutes)), show(end), tuple(wrong))


CLOCK = Skill(
    "clock",
    _clock,
    {
        "later": (
            "It is {time}. What time is it {n} minutes later?",
            "A film starts at {time} and lasts {n} minutes. When does it end?",
            "Add {n} minutes to {time}.",
            "What is the time {n} minutes after {time}?",
            "The train leaves at {time} and travels {n} minutes. When does it arrive?",
            "{time} plus {n} minutes =",
            "I put a cake in the oven at {time} for {n} minutes. When is it done?",
            "The meeting began at {time} and took {n} minutes. At what time was it over?",
            "If the clock shows {time}, what will it show in {n} minutes?",
            "Set an alarm {n} minutes from {time}. To what time?",
        ),
    },
)


def _change(rng: Random) -> Question:
    paid = rng.choice((20, 50, 100))
    n, price, name = rng.randint(1, 4), rng.randint(2, 24), rng.choice(NAMES)
    while n * price >= paid:
        n, price = rng.randint(1, 4), rng.randint(2, 24)
    answer = paid - n * price
    item = rng.choice(("books", "mugs", "shirts", "toys", "plants", "candles"))
    slots = {"name": name, "n": str(n), "item": item, "price": str(price), "paid": str(paid)}
    mistakes = [paid - price, n * price, *number_slips(answer)]
    identity = (name, item, str(n), str(price), str(paid))
    return Question("change", slots, identity, str(answer), near_numbers(answer, mistakes, rng))


CHANGE = Skill(
    "change",
    _change,
    {
        "change": (
            "{name} buys {item} ({n}, at {price} dollars each) and pays with {paid} dollars. What change?",
            "At {price} dollars apiece, {name} takes {n} of the {item}. What is left of {paid} dollars?",
            "{name} had {paid} dollars and bought {item}: {n} at {price} each. How many dollars remain?",
            "Buyer: {name}. Goods: {item}. Price: {price}. Number: {n}. Paid: {paid}. Change?",
            "How many dollars does {name} get back from {paid} after buying {item}, {n} for {price} each?",
            "{name} hands over {paid} dollars for {item}, quantity {n}, unit price {price}. Give the change.",
            "From {paid} dollars, {name} spends {price} on {item}, {n} times. What remains?",
            "{paid} - {n} x {price}: what change does {name} get for the {item}?",
            "A seller gives {name} change from {paid} dollars for {item} ({n} x {price}). How much is it?",
            "What is left when {name} pays for {item}, {n} at {price} dollars each, out of {paid}?",
        ),
    },
)

NUMBER_SKILLS = (
    ARITHMETIC,
    MULTIPLICATION,
    COMPARISON,
    SEQUENCE,
    ROMAN_NUMERALS,
    UNIT_CONVERSION,
    WEEKDAY,
    CLOCK,
    CHANGE,
)
