"""Phrase a request as an instruction: a hash of the request decides which question stands around it.

The questions and the small edits are ours; CLINC150 has the bare requests.
"""

from __future__ import annotations

import hashlib

TEMPLATES = (
    "What does this person want? {}",
    'Which request is this? "{}"',
    "Name the request: {}",
    "Classify what the user says: {}",
    'A customer says "{}". What is the intent?',
    "{}\nThe intent of this message is",
)
EDITS = ("hey, {}", "{} please", "so, {}", "{} thanks", "um {}", "hi there, {}", "{} asap")


def draw(text: str, n: int) -> int:
    """Return a number below n that only the text decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % n


def asked(text: str) -> str:
    """Return a request as an instruction."""
    return TEMPLATES[draw(text, len(TEMPLATES))].format(text)


def asked_again(text: str, copy: int) -> str:
    """Return a request as an instruction in another template and with a small edit; copy: from 1, below the
    number of templates, each of which gives another pair."""
    edited = EDITS[(draw(f"{text}\nedit", len(EDITS)) + copy) % len(EDITS)].format(text)
    return TEMPLATES[(draw(text, len(TEMPLATES)) + copy) % len(TEMPLATES)].format(edited)


def in_words(intent: str) -> str:
    """Return an intent as an answer: pay_bill becomes `pay bill`."""
    return intent.replace("_", " ")
