"""Locks that a forked child inherits from threads of the main process, which it does not have.

kombu guards a cached property, for all instances of its class together, with one lock that every
read takes, and keeps while the value is made: ``app.amqp``, or the client of the result backend. A
child that was forked while a thread read one would wait for ever when it comes to read the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from threading import RLock
from typing import Any

from kombu.utils import objects

from celery_graceful.system.process import Slot, itself

__all__ = ["look"]


@dataclass(frozen=True)
class _Found:
    modules: int = 0
    properties: tuple[Any, ...] = ()


def look() -> None:
    """Look for them: before a fork, as in the child that costs memory which it shares."""
    modules = len(sys.modules)
    if modules != _found.value.modules:  # some were loaded meanwhile
        itself.fill(_found, _Found(modules, tuple(_cached_properties())))


def _cached_properties() -> Iterator[Any]:
    known: set[type] = {object}
    classes = [object]
    while classes:
        for cls in type.__subclasses__(classes.pop()):
            if cls not in known:
                known.add(cls)
                classes.append(cls)
                for value in list(vars(cls).values()):
                    # Not by isinstance, for which lazy objects load what they stand for.
                    if issubclass(type(value), objects.cached_property):
                        yield value


def _renew(found: Slot[_Found]) -> None:
    for cached_property in found.value.properties:
        cached_property.lock = RLock()


_found = Slot("cached properties", _Found, in_fork=_renew)
