"""Skills that put a sentence under a label, and requests for something else about the same sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from gtp_benchmarks.skills.question import Question, Skill, near_numbers
from gtp_benchmarks.skills.sentences import (
    DESKS,
    MESSAGES,
    REVIEWED,
    SHELVES,
    VERDICTS,
    Sentence,
    book_sentence,
    message,
    review,
)

CHOICES = 5  # labels that a test question offers, where a skill has as many


def _labelled(
    sentence: Callable[[Random], Sentence], labels: Mapping[str, object]
) -> Callable[[Random], Question]:
    def draw(rng: Random) -> Question:
        drawn = sentence(rng)
        others = [label for label in labels if label != drawn.label]
        wrong = rng.sample(others, min(CHOICES - 1, len(others)))
        return Question("label", {"text": drawn.text}, drawn.parts, drawn.label, tuple(wrong), drawn.label)

    return draw


DESK = Skill(
    "desk",
    _labelled(message, DESKS),
    {
        "label": (
            'Which desk takes this message? "{text}"',
            "Message: {text}\nDesk:",
            "Name the desk for this message: {text}",
            'A visitor writes: "{text}" Which desk is that for?',
            "Send this message to the right desk: {text}",
            "{text}\nWho in the building should deal with that?",
            "To which department would you pass this on? {text}",
            "Sort the post. {text} goes to",
            "Put this in the proper in-tray: {text}",
            "You answer the switchboard and hear: {text} Where do you connect the caller?",
        )
    },
    tuple(DESKS),
    asked_wordings=5,
)

SHELF = Skill(
    "shelf",
    _labelled(book_sentence, SHELVES),
    {
        "label": (
            'Which shelf holds the book with this sentence? "{text}"',
            "Sentence: {text}\nShelf:",
            "Name the shelf for this sentence: {text}",
            'A book begins: "{text}" On which shelf is it?',
            "Put the book with this sentence on the right shelf: {text}",
            "{text}\nWhat sort of reading is that?",
            "A shop has lost the cover of a volume that says: {text} What genre is it?",
            "Tell the genre from one line. {text}",
            "In which part of the bookshop would you look for this? {text}",
            "Catalogue entry for a text with the line {text} Subject:",
        )
    },
    tuple(SHELVES),
    asked_wordings=5,
)

REVIEW = Skill(
    "review",
    _labelled(review, VERDICTS),
    {
        "label": (
            'Is this review good or bad? "{text}"',
            "Review: {text}\nVerdict, good or bad:",
            "Say whether this review is good or bad: {text}",
            'A guest writes: "{text}" Is the review good or bad?',
            "Put this review on the good or the bad pile: {text}",
            "{text}\nHappy customer, then good. Unhappy customer, then bad. Which?",
            "Thumbs up means good, thumbs down means bad. {text}",
            "How did they like it, good or bad? {text}",
            "Feedback from a client: {text} Mood, as good or bad:",
            "Would you count this as good or as bad news for the owner? {text}",
        )
    },
    tuple(VERDICTS),
    asked_wordings=5,
)


def _rewriting(rng: Random) -> Question:
    drawn = message(rng)
    item, casual = drawn.parts
    formal = dict(MESSAGES)[casual]
    others = [other for _, other in MESSAGES if other != formal]
    wrong = tuple(other.format(item=item) for other in rng.sample(others, 3))
    return Question("formal", {"text": drawn.text}, drawn.parts, formal.format(item=item), wrong)


REWRITING = Skill(
    "rewriting",
    _rewriting,
    {
        "formal": (
            'Rewrite this message for the desk in formal words: "{text}"',
            "Message: {text}\nThe same in polite words:",
            "Make this message formal: {text}",
            'A visitor writes: "{text}" Write that as a formal letter would.',
            "Send this message to the desk in better style: {text}",
            "Polish this message before the desk reads it: {text}",
            "{text}\nSay that politely.",
            "The desk wants formal messages. Rewrite: {text}",
            "How would a lawyer write this message? {text}",
            "Turn this note into proper English: {text}",
        )
    },
    decoy=True,
)


def _word_count(rng: Random) -> Question:
    drawn = rng.choice((message, book_sentence, review))(rng)
    answer = len(drawn.text.split())
    near = [answer - 2, answer - 1, answer + 1, answer + 2]
    return Question("count", {"text": drawn.text}, drawn.parts, str(answer), near_numbers(answer, near, rng))


WORD_COUNT = Skill(
    "word_count",
    _word_count,
    {
        "count": (
            'How many words does this message have? "{text}"',
            "Sentence: {text}\nWords:",
            "Count the words of this sentence: {text}",
            'A visitor writes: "{text}" How many words is that?',
            "The number of words in this review: {text}",
            "{text}\nHow many words did you read?",
            "A telegram costs a dollar a word. What does this message cost? {text}",
            "Word count of the sentence {text}",
            "Which number of words is in this text? {text}",
            "Say how many words stand here: {text}",
        )
    },
    decoy=True,
)


def _next_sentence(who: str, shelf: str, before: Sequence[str], rng: Random) -> str:
    """Return what the same character does next in a book of this shelf; before: what is over."""
    did, when = (rng.choice([part for part in parts if part not in before]) for parts in SHELVES[shelf][1:])
    return f"Then {who[0].lower()}{who[1:]} {did} {when}."


def _continuation(rng: Random) -> Question:
    drawn = book_sentence(rng)
    answer = _next_sentence(drawn.parts[0], drawn.label, drawn.parts, rng)
    others = rng.sample([shelf for shelf in SHELVES if shelf != drawn.label], 3)
    wrong = tuple(_next_sentence(rng.choice(SHELVES[shelf][0]), shelf, (), rng) for shelf in others)
    return Question("next", {"text": drawn.text}, drawn.parts, answer, wrong)


CONTINUATION = Skill(
    "continuation",
    _continuation,
    {
        "next": (
            'Continue the book with this sentence: "{text}"',
            "Sentence: {text}\nNext sentence:",
            "Write on after this sentence: {text}",
            'A book begins: "{text}" How does it go on?',
            "The book on this shelf has a torn page. Add what is missing after: {text}",
            "{text}\nGo on.",
            "Which sentence could follow in the book? {text}",
            "Tell what the one in this sentence did then: {text}",
            "The story stops here. {text} What comes after that?",
            "One more line for the book, please. {text}",
        )
    },
    decoy=True,
)

_REPLIES = {
    "good": "Thank you! We are glad that you enjoyed the {thing}, and hope to see you soon.",
    "bad": "We are sorry that you were unhappy with the {thing}, and will do better next time.",
}


def _reply(rng: Random) -> Question:
    drawn = review(rng)
    thing = drawn.parts[0]
    other = rng.choice([one for one in REVIEWED if one != thing])
    answers = {verdict: reply.format(thing=thing) for verdict, reply in _REPLIES.items()}
    answer = answers.pop(drawn.label)
    wrong = (*answers.values(), _REPLIES[drawn.label].format(thing=other))
    return Question("reply", {"text": drawn.text}, drawn.parts, answer, wrong)


REPLY = Skill(
    "reply",
    _reply,
    {
        "reply": (
            'Write a reply to this review: "{text}"',
            "Review: {text}\nReply:",
            "Answer this good or bad review: {text}",
            'A guest writes: "{text}" What does the owner answer?',
            "Respond to the review in one sentence: {text}",
            "{text}\nWhat should we say to this guest?",
            "Draft what the owner says to the author of this review: {text}",
            "Be kind to whoever wrote this review: {text}",
            "Owner's comment below the review {text}",
            "The guest should hear from us. {text}",
        )
    },
    decoy=True,
)

SENTENCE_SKILLS = (DESK, SHELF, REVIEW, REWRITING, WORD_COUNT, CONTINUATION, REPLY)
