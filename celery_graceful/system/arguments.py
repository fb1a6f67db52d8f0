"""Arguments that people pass: what cannot be used is refused where it is written."""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import Any

__all__ = ["check_call", "check_seconds", "name_of"]


def check_call(
    what: str, fn: Any, *, why_not_async: str, why_no_generator: str | None = None
) -> None:
    """Refuse what is no plain function.

    Args:
        what: What it is for, such as ``"on_exit"``.
        fn: What was given.
        why_not_async: What would become of an async function, for people.
        why_no_generator: What to do with a generator function; ``None``: it can be used.

    Raises:
        TypeError: It cannot be called, it is async, or a generator function that cannot be used.
    """
    if inspect.iscoroutine(fn):
        fn.close()  # else Python complains that nobody awaited it
        raise TypeError(f"{what}: {fn!r} is a coroutine, give a plain function: {why_not_async}")
    if not callable(fn):
        raise TypeError(f"{what}: {fn!r} cannot be called: give a function, not what it returns")
    call = getattr(fn, "__call__", None)  # noqa: B004 -- of an object with an async one
    if any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (fn, call)):
        raise TypeError(f"{what}: {name_of(fn)} is async: {why_not_async}")
    if why_no_generator is not None and any(map(inspect.isgeneratorfunction, (fn, call))):
        raise TypeError(f"{what}: {name_of(fn)} is a generator function: {why_no_generator}")


def check_seconds(what: str, value: Any, *, least: float = 0.0) -> None:
    """Refuse what is no finite number of seconds.

    Args:
        what: Where it was given, such as ``"sleep"``.
        value: What was given.
        least: What it has to be above; 0 allows 0 as well.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what}: {value!r} is no number of seconds, such as 0.5")
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{what}: {value!r} is no finite number of seconds of {least:g} or more")


def name_of(fn: Any) -> str:
    """How people read the name of something that can be called."""
    name = getattr(fn, "__qualname__", None)
    module = getattr(fn, "__module__", None)
    return repr(fn) if name is None else name if module is None else f"{module}.{name}"
