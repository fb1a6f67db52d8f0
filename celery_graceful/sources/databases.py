"""Databases, in batches by a key: no OFFSET, and no transaction that stays open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from celery_graceful.exceptions import CheckpointError
from celery_graceful.sources.base import Source

__all__ = ["queryset", "rows"]

T = TypeVar("T")


class _ByKey(Source[T]):
    def pairs(self, cursor: Any) -> Iterator[tuple[Any, T]]:
        while True:
            batch = self._batch(cursor)
            yield from batch
            if len(batch) < self.batch:
                return
            cursor = batch[-1][0]

    def __init__(self, batch: int) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise CheckpointError(f"batch={batch!r}: give a number of 1 or more.")
        self.batch = batch

    def _batch(self, cursor: Any) -> list[tuple[Any, T]]:
        raise NotImplementedError


class queryset(_ByKey[Any]):
    """The objects of a Django queryset in the order of a key, a batch at a time.

    Args:
        qs: The queryset; its order is replaced. With ``values()``, or ``values_list()`` and
            ``named=True``, the key has to be in it.
        by: A field that is unique and never null.
        batch: Objects a query.
    """

    kind = "queryset"

    def __init__(self, qs: Any, by: str = "pk", batch: int = 1000) -> None:
        super().__init__(batch)
        if not hasattr(qs, "query") or not hasattr(qs, "order_by"):
            raise CheckpointError(f"{qs!r} is no QuerySet: give one, such as Book.objects.all().")
        if qs.query.is_sliced:
            raise CheckpointError("a sliced QuerySet cannot be filtered: slice it by a filter.")
        field = qs.model._meta.pk if by == "pk" else qs.model._meta.get_field(by)
        if not field.unique or field.null:
            raise CheckpointError(
                f"by={by!r} is not unique, or may be null: objects with equal keys could be "
                "skipped. Use by='pk', or a unique field."
            )
        self.qs, self.by = qs.order_by(by), by

    def _batch(self, cursor: Any) -> list[tuple[Any, Any]]:
        qs = self.qs if cursor is None else self.qs.filter(**{f"{self.by}__gt": cursor})
        return [(self._key(item), item) for item in qs[: self.batch]]

    def _key(self, item: Any) -> Any:
        key = item.get(self.by) if isinstance(item, dict) else getattr(item, self.by, None)
        if key is None or callable(key):  # a tuple has a method ``count``
            raise CheckpointError(
                f"the QuerySet has to hold its key, {self.by}, and gives a {type(item).__name__}: "
                f"give objects, values({self.by!r}, ...) or values_list({self.by!r}, ..., "
                "named=True)."
            )
        return key


class rows(_ByKey[Any]):
    """The rows of a SQLAlchemy select in the order of a key, a batch at a time.

    Args:
        select: The select; its order is replaced. Of a single entity, the entities come;
            else rows, and the key has to be one of their columns.
        by: The key: a column that is unique and never null.
        bind: What to execute it with: an ``Engine``, a ``Connection``, a ``Session``, or a
            function that makes one (``sessionmaker``). A function and an ``Engine`` are asked
            anew for each batch, so that no transaction stays open in between.
        batch: Rows a query.
    """

    kind = "rows"

    def __init__(self, select: Any, by: Any, bind: Any, batch: int = 1000) -> None:
        super().__init__(batch)
        if not hasattr(select, "column_descriptions") or not hasattr(select, "limit"):
            raise CheckpointError(f"{select!r} is no select: give one, such as select(Book).")
        if not hasattr(by, "key"):
            raise CheckpointError(f"by={by!r} is no column: give one, such as Book.id.")
        if not callable(bind) and not hasattr(bind, "execute") and not hasattr(bind, "connect"):
            raise CheckpointError(
                f"bind={bind!r}: give an Engine, a Connection, a Session or a sessionmaker."
            )
        self.select, self.by, self.bind = select.order_by(None).order_by(by), by, bind
        described = select.column_descriptions
        first = described[0]
        single = len(described) == 1 and first["expr"] is first.get("entity", self)
        self._entity = first["type"] if single else None

    def _connect(self) -> AbstractContextManager[Any]:
        if callable(self.bind):
            opened: AbstractContextManager[Any] = self.bind()
            return opened
        if hasattr(self.bind, "dispose"):
            connection: AbstractContextManager[Any] = self.bind.connect()
            return connection
        return nullcontext(self.bind)

    def _batch(self, cursor: Any) -> list[tuple[Any, Any]]:
        select = self.select if cursor is None else self.select.where(self.by > cursor)
        with self._connect() as connection:
            found = connection.execute(select.limit(self.batch)).all()
        return [(self._key(row), row[0] if self._is_entity(row) else row) for row in found]

    def _is_entity(self, row: Any) -> bool:
        # Executed by a Connection, a select of an entity gives its columns.
        return self._entity is not None and isinstance(row[0], self._entity)

    def _key(self, row: Any) -> Any:
        if self._is_entity(row):
            return getattr(row[0], self.by.key)
        columns = row._mapping
        for key in (self.by, self.by.key):
            if key in columns:
                return columns[key]
        raise CheckpointError(f"the select has to hold its key, {self.by}.")
