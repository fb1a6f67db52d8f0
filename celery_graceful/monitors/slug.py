"""What a monitor is called at its server."""

from __future__ import annotations

import hashlib
import re
import unicodedata

__all__ = ["hashed", "slug_of_entry", "slugify"]

#: Letters that a slug keeps, as Sentry's server has it.
LENGTH = 50

#: Hexadecimal digits that tell two names apart.
DIGITS = 8


def slugify(name: str) -> str:
    """``name`` as servers write it: dots vanish, spaces become dashes, 50 characters at most."""
    return _whole(name)[:LENGTH].strip("-_")


def slug_of_entry(name: str) -> str:
    """A slug for any name of a beat entry, the same in every process and at any time.

    Where servers would cut the name, or drop characters of it, a hash of it follows: without
    it two entries might share a slug. Accents, capitals and spaces are no reason.
    """
    decomposed = unicodedata.normalize("NFKD", name)
    letters = "".join(char for char in decomposed if not unicodedata.combining(char))
    whole = _whole(letters)
    dropped = re.search(r"[^\w\s-]", letters, re.ASCII)
    return hashed(name) if dropped or not whole or len(whole) > LENGTH else whole


def hashed(name: str) -> str:
    """The slug of a name with its hash."""
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
    readable = slugify(name)[: LENGTH - DIGITS - 1].strip("-_")
    return f"{readable or 'entry'}-{digits}"


def _whole(name: str) -> str:
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    text = re.sub(r"[^\w\s-]", "", text.lower())
    return re.sub(r"[-\s]+", "-", text).strip("-_")
