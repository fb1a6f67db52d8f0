"""What a checkpoint may hold: to JSON and back, with the types that it had.

JSON's own types stand for themselves. The others are tagged, as ``{"$": [tag, text]}``:
datetime, date, time, timedelta, Decimal, UUID, bytes, tuples, and mappings whose keys are
not all strings. Subclasses are refused, since they would come back as something else.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import uuid
from collections.abc import Callable
from typing import Any

from celery_graceful.exceptions import CheckpointError

__all__ = ["decode", "encode"]

_TAG = "$"

#: Beside a tag, where ISO's text cannot say it; earlier versions pass over it.
_FOLD = "fold"

#: type -> (tag, to text)
_WRITE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    dt.datetime: ("datetime", dt.datetime.isoformat),
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    dt.timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    decimal.Decimal: ("decimal", str),
    uuid.UUID: ("uuid", str),
    bytes: ("bytes", lambda value: base64.b64encode(value).decode("ascii")),
}

_READ: dict[str, Callable[[Any], Any]] = {
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "timedelta": lambda value: dt.timedelta(*value),
    "decimal": decimal.Decimal,
    "uuid": uuid.UUID,
    "bytes": base64.b64decode,
    "tuple": tuple,
    "dict": dict,
}

_MENDS: list[tuple[type, str]] = [
    (set, "pass sorted(...) of it"),
    (frozenset, "pass sorted(...) of it"),
    (bytearray, "pass bytes(...) of it"),
]


def encode(value: Any, name: str, max_bytes: float = float("inf")) -> str:
    """``value`` as JSON.

    Args:
        value: What is to be saved.
        name: What it is called in errors, for instance ``state``.
        max_bytes: The most that the JSON may take.

    Raises:
        CheckpointError: A part of it is of a type that would not come back as it was, or
            the whole is too large. It names the part, its type and the mend.
    """
    try:
        text = json.dumps(_plain(value, name), separators=(",", ":"))
    except RecursionError:
        raise CheckpointError(
            f"{name} cannot be saved: it contains itself, or is nested too deeply. "
            "Save the ids of what it refers to."
        ) from None
    except ValueError as exc:
        raise CheckpointError(f"{name} cannot be saved: {exc}.") from exc
    if len(text) > max_bytes:  # the JSON is ASCII
        raise CheckpointError(
            f"{name} takes {len(text)} bytes, more than graceful_checkpoint_max_bytes = "
            f"{max_bytes:.0f}: keep bulk data in your own storage and save a reference to it."
        )
    return text


def decode(text: str) -> Any:
    """The value that ``encode`` was given."""
    return json.loads(text, object_hook=_revive)


def _plain(value: Any, path: str) -> Any:
    kind = type(value)
    if kind in (str, int, float, bool, type(None)):
        return value
    if kind is list:
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if kind is tuple:
        return {_TAG: ["tuple", [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]]}
    if kind is dict:
        if _TAG not in value and all(type(key) is str for key in value):
            return {key: _plain(item, f"{path}[{key!r}]") for key, item in value.items()}
        pairs = [
            [_plain(key, f"a key of {path}"), _plain(item, f"{path}[{key!r}]")]
            for key, item in value.items()
        ]
        return {_TAG: ["dict", pairs]}
    if kind in _WRITE:
        tag, write = _WRITE[kind]
        if getattr(value, "tzinfo", None) is not None and value.utcoffset() is None:
            raise CheckpointError(
                f"{path} is a {kind.__module__}.{kind.__qualname__} in a time zone that has no "
                f"UTC offset of its own: save it without {value.tzinfo}, and that name beside it."
            )
        plain = {_TAG: [tag, write(value)]}
        if getattr(value, "fold", 0):
            plain[_FOLD] = value.fold
        return plain
    raise CheckpointError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which JSON cannot give back: "
        f"{_mend(value)}."
    )


def _revive(mapping: dict[str, Any]) -> Any:
    if _TAG in mapping:
        tag, content = mapping[_TAG]
        value = _READ[tag](content)
        return value.replace(fold=mapping[_FOLD]) if _FOLD in mapping else value
    return mapping


def _mend(value: Any) -> str:
    for kind in type(value).__mro__[1:]:
        if kind in (str, int, float, list, tuple, dict) or kind in _WRITE:
            if hasattr(value, "value") and hasattr(value, "name"):
                return "save its .value"
            return f"convert it to {kind.__name__}"
    for kind, mend in _MENDS:
        if isinstance(value, kind):
            return mend
    if hasattr(value, "pk"):
        return "save its .pk"
    if hasattr(value, "item") and hasattr(value, "dtype"):
        return "save its .item() or .tolist()"
    if hasattr(value, "__next__"):
        return "pass list(...) of it"
    return "save its id, or what it is made of"
