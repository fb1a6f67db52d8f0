"""Sources for ``iterate``: what can go on from the middle.

A source gives pairs: a cursor, and the item that it is the cursor *after*. ``None`` is the
cursor of the beginning. Lists, ranges, other sequences and plain iterables need nothing from
here; their cursor is a count of items.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from celery_graceful.sources.base import Source, pages
from celery_graceful.system.on_demand import on_demand as _on_demand

if _TYPE_CHECKING:
    from celery_graceful.sources.databases import queryset, rows
    from celery_graceful.sources.files import csv, lines

_ON_DEMAND = {
    "csv": "celery_graceful.sources.files",
    "lines": "celery_graceful.sources.files",
    "queryset": "celery_graceful.sources.databases",
    "rows": "celery_graceful.sources.databases",
}

# What a loop over a list does not need.
__getattr__ = _on_demand(__name__, _ON_DEMAND)

__all__ = ["Source", "base", "csv", "lines", "pages", "queryset", "rows"]
