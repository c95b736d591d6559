"""Cut text into words in any script: at blanks, and at every character where a script has none between words.

Such scripts are Chinese, Japanese, Thai, Lao, Khmer, Myanmar and the like. Without a dictionary their words
cannot be told, so a character, with the marks that belong to it, stands for one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import regex

# Line_Break=SA: the scripts of South-East Asia. Script extensions count signs such as 々 and ー in.
_UNSPACED = (
    r"[[\p{Line_Break=SA}\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{Yi}\p{Tibetan}]"
    r"&&[\p{L}\p{Nl}]]\p{M}*"
)
_CHARACTER = regex.compile(f"(?V1){_UNSPACED}")
# A run of unspaced characters, or a run of other word characters. Unlike those of `re`, they include the
# vowel signs of Indian scripts.
_RUN = regex.compile(rf"(?V1)(?:{_UNSPACED})+|(?:(?!{_UNSPACED})\w)+")
_WORD = regex.compile(r"\w\w+")
_INVISIBLE = {
    ord(sign): None for sign in "\u200b\u2060\ufeff\u00ad"
}  # between words or syllables, or nowhere


def comparable(text: str) -> str:
    """Return the text without what readers do not see: case, how accents are encoded, zero-width spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    return text.casefold()


def words(text: str) -> list[str]:
    """Return what stands between blanks, each character of a script without blanks on its own."""
    return (text if text.isascii() else _CHARACTER.sub(r" \g<0> ", text)).split()


def terms(text: str) -> Iterator[str]:
    """Yield the words that a search counts: runs of two or more word characters, without punctuation.

    A run of characters of a script without blanks gives each pair of neighbours, or its only character.
    """
    if text.isascii() or not _CHARACTER.search(text):
        yield from _WORD.findall(text)
        return
    for run in _RUN.findall(text):
        characters = _CHARACTER.findall(run)
        if len(characters) > 1:
            yield from map("".join, zip(characters, characters[1:], strict=False))
        elif characters or len(run) > 1:
            yield run
