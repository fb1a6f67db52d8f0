"""A task's context, made in fewer steps where a worker makes one for each run."""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.app.task import Context

__all__ = ["install"]

#: What messages say beside what a context has by name.
_BESIDE = ("lang", "task", "argsrepr", "kwargsrepr", "compression")


def install() -> None:
    """In a process that runs tasks, once.

    Celery takes each of some sixty names, of which it makes a set each time, out of a copy of what
    the message says. What is left are headers of the user's own.
    """
    plain = getattr(Context, "_get_custom_headers", None)
    if plain is None or hasattr(plain, "_is_quick"):
        return
    attributes = vars(Context)
    known = frozenset((*attributes, *_BESIDE))
    probe = Context()
    if plain(probe, dict.fromkeys(known)) is not None or plain(probe, own=1) != {"own": 1}:
        return  # another version has others
    count = len(attributes)

    @wraps(plain)
    def _get_custom_headers(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(attributes) != count:
            return plain(self, *args, **kwargs)
        said = dict(*args, **kwargs)
        return {name: value for name, value in said.items() if name not in known} or None

    _get_custom_headers._is_quick = True  # type: ignore[attr-defined]
    Context._get_custom_headers = _get_custom_headers
