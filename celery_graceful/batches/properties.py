"""What a user gives a batch beside its members: properties of what JSON can say, and a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.utils.json import dumps, loads

from celery_graceful.batches.signatures import named
from celery_graceful.system.describe import describe

__all__ = ["checked", "checked_description", "checked_key"]

#: Characters that they may take as JSON: each callback is given them.
MOST = 16 * 1024

#: Characters of a key.
LONGEST_KEY = 200


def checked(properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """The properties as they will be read again.

    Raises:
        TypeError: They are no dict of names, or hold what JSON cannot say.
        ValueError: They are too large.
    """
    if properties is None:
        return {}
    if not isinstance(properties, Mapping) or not all(isinstance(n, str) for n in properties):
        raise TypeError(f"properties: {named(properties)} is no dict of names and values")
    try:
        text = dumps(dict(properties), allow_nan=False)
        found: dict[str, Any] = loads(text)
    except Exception as exc:
        raise TypeError(
            f"properties: {named(properties)} is no JSON: {describe(exc)}; give what JSON can say, "
            "such as ids in place of objects"
        ) from exc
    if len(text) > MOST:
        raise ValueError(
            f"properties: {len(text)} characters of JSON are too many, each callback gets them: "
            f"keep them elsewhere, and give no more than {MOST}"
        )
    return found


def checked_description(description: str) -> str:
    """What people are told of a batch.

    Raises:
        TypeError: It is no text.
        ValueError: It cannot be encoded: half of a pair of surrogates.
    """
    if not isinstance(description, str):
        raise TypeError(f"description: {named(description)} is no text")
    try:
        description.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"description: {description!r} cannot be encoded: {exc.reason}") from exc
    return description


def checked_key(key: str | None) -> str:
    """The key of a batch; empty: it has none.

    Raises:
        TypeError: It is no text.
        ValueError: It is too long, or empty, as of a variable that is not set.
    """
    if key is None:
        return ""
    if not isinstance(key, str):
        raise TypeError(f"key: {named(key)} is no text, give one such as 'invoices 2026-05'")
    if len(key) > LONGEST_KEY:
        raise ValueError(f"key: {len(key)} characters are too many, give {LONGEST_KEY} at most")
    if not key.strip() or not key.isprintable():
        raise ValueError(
            f"key: {key!r} says nothing, or not in one line: give one, or leave it out"
        )
    return key
