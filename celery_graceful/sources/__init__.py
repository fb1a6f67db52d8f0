"""Sources for ``iterate``: what can go on from the middle.

A source gives pairs: a cursor, and the item that it is the cursor *after*. ``None`` is the
cursor of the beginning. Lists, ranges, other sequences and plain iterables need nothing from
here; their cursor is a count of items.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from celery_graceful.sources.base import Source, pages

if _TYPE_CHECKING:
    from celery_graceful.sources.databases import queryset, rows
    from celery_graceful.sources.files import csv, lines

_ON_DEMAND = {
    "csv": "celery_graceful.sources.files",
    "lines": "celery_graceful.sources.files",
    "queryset": "celery_graceful.sources.databases",
    "rows": "celery_graceful.sources.databases",
}


def __getattr__(name: str) -> object:
    """What a loop over a list does not need."""
    if name in _ON_DEMAND:
        return getattr(_importlib.import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Source", "base", "csv", "lines", "pages", "queryset", "rows"]
