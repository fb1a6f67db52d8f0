"""Sources for ``iterate``: what can go on from the middle.

A source gives pairs: a cursor, and the item that it is the cursor *after*. ``None`` is the
cursor of the beginning. Lists, ranges, other sequences and plain iterables need nothing from
here; their cursor is a count of items.
"""

from celery_graceful.sources.base import Source, pages
from celery_graceful.sources.databases import queryset, rows
from celery_graceful.sources.files import csv, lines

__all__ = ["Source", "base", "csv", "lines", "pages", "queryset", "rows"]
