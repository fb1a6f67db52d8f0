"""A task's context: made in fewer steps where a worker makes one for each run, without our headers.

What messages say beside what a context has by name are the user's own headers, which Celery sends
along with the next try of a task. Ours are not seen there; those that it has to have are added.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.app.task import Context

from celery_graceful.messages.own_headers import CARRIED, OWN

__all__ = ["BESIDE", "install"]

#: What messages say beside what a context has by name, and users' headers.
BESIDE = ("lang", "task", "argsrepr", "kwargsrepr", "compression")


def install() -> None:
    """In a process that runs tasks, once."""
    _hide()
    _carry()


def _hide() -> None:
    """Celery takes each of some sixty names, of which it makes a set each time, out of a copy."""
    plain = getattr(Context, "_get_custom_headers", None)
    if plain is None or hasattr(plain, "_hides"):
        return
    attributes = vars(Context)
    celerys = frozenset((*attributes, *BESIDE))
    known = celerys.union(OWN)
    count = len(attributes)
    probe = Context()
    is_known = plain(probe, dict.fromkeys(celerys)) is None and plain(probe, own=1) == {"own": 1}

    @wraps(plain)
    def _get_custom_headers(self: Any, *args: Any, **kwargs: Any) -> Any:
        said = dict(*args, **kwargs)
        if is_known and len(attributes) == count:
            return {name: value for name, value in said.items() if name not in known} or None
        # Another version has others.
        return plain(self, {name: value for name, value in said.items() if name not in OWN})

    _get_custom_headers._hides = True  # type: ignore[attr-defined]
    Context._get_custom_headers = _get_custom_headers


def _carry() -> None:
    plain = Context.as_execution_options
    if hasattr(plain, "_carries"):
        return

    @wraps(plain)
    def as_execution_options(self: Any) -> Any:
        options, said = plain(self), vars(self)
        carried = {name: said[name] for name in CARRIED if name in said}
        if carried:
            options["headers"] = {**(options.get("headers") or {}), **carried}
        return options

    as_execution_options._carries = True  # type: ignore[attr-defined]
    Context.as_execution_options = as_execution_options
