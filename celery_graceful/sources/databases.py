"""Databases, in batches by a key: no OFFSET, and no transaction that stays open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar

from celery_graceful.exceptions import CheckpointError
from celery_graceful.sources.base import Source

__all__ = ["queryset", "rows"]

T = TypeVar("T")


class _ByKey(Source[T]):
    def pairs(self, cursor: Any) -> Iterator[tuple[Any, T]]:
        while True:
            # One more than are given shows whether the next batch would begin with an equal key.
            found = self._first(self.batch + 1, cursor)
            for (key, _), (following, _) in pairwise(found):
                if key == following:
                    raise CheckpointError(
                        f"two items have the key {key!r}: one of them could be skipped. Give a key "
                        "that is unique, and distinct() if a join repeats it."
                    )
            yield from found[: self.batch]
            if len(found) <= self.batch:
                return
            cursor = found[self.batch - 1][0]

    def __init__(self, batch: int) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise CheckpointError(f"batch={batch!r}: give a number of 1 or more.")
        self.batch = batch

    def _first(self, count: int, cursor: Any) -> list[tuple[Any, T]]:
        """So many, or all that there are, after the cursor, each with its key."""
        raise NotImplementedError


class queryset(_ByKey[Any]):
    """The objects of a Django queryset in the order of a key, a batch at a time.

    Args:
        qs: The queryset; its order is replaced. Not one that is sliced or combined
            (``union()``), has ``distinct()`` of fields, or a window function. With ``values()``,
            or ``values_list()`` and ``named=True``, the key has to be in it.
        by: A field that is unique and never null.
        batch: Objects a query.
    """

    kind = "queryset"

    def __init__(self, qs: Any, by: str = "pk", batch: int = 1000) -> None:
        super().__init__(batch)
        if not hasattr(qs, "query") or not hasattr(qs, "order_by"):
            raise CheckpointError(f"{qs!r} is no QuerySet: give one, such as Book.objects.all().")
        _refuse_query(qs.query)
        field = qs.model._meta.pk if by == "pk" else qs.model._meta.get_field(by)
        if not field.unique or field.null:
            raise CheckpointError(
                f"by={by!r} is not unique, or may be null: objects with equal keys could be "
                "skipped. Use by='pk', or a unique field."
            )
        qs = qs.order_by(by)
        # What reverse() has set survives order_by().
        self.qs, self.by = qs if qs.query.standard_ordering else qs.reverse(), by

    def _first(self, count: int, cursor: Any) -> list[tuple[Any, Any]]:
        qs = self.qs if cursor is None else self.qs.filter(**{f"{self.by}__gt": cursor})
        return [(self._key(item), item) for item in qs[:count]]

    def _key(self, item: Any) -> Any:
        key = item.get(self.by) if isinstance(item, dict) else getattr(item, self.by, None)
        if key is None or callable(key):  # a tuple has a method ``count``
            raise CheckpointError(
                f"the QuerySet has to hold its key, {self.by}, and gives a {type(item).__name__}: "
                f"give objects, values({self.by!r}, ...) or values_list({self.by!r}, ..., "
                "named=True)."
            )
        return key


def _refuse_query(query: Any) -> None:
    if query.is_sliced:
        raise CheckpointError("a sliced QuerySet cannot be filtered: slice it by a filter.")
    if query.combinator:
        raise CheckpointError(
            f"a QuerySet made by {query.combinator}() cannot be filtered: combine by Q objects, "
            "or by filter(pk__in=...)."
        )
    if query.distinct_fields:
        fields = ", ".join(map(repr, query.distinct_fields))
        raise CheckpointError(
            f"distinct({fields}) needs an order of its own, which the key's replaces: give "
            "Model.objects.filter(pk__in=...) of the QuerySet."
        )
    if any(getattr(part, "contains_over_clause", False) for part in _parts(query)):
        raise CheckpointError(
            "a window function would see but one batch: leave it out, or give "
            "Model.objects.filter(pk__in=...) of the QuerySet."
        )


def _parts(query: Any) -> Iterator[Any]:
    yield query.where
    yield from query.annotations.values()


class rows(_ByKey[Any]):
    """The rows of a SQLAlchemy select in the order of a key, a batch at a time.

    Args:
        select: The select; its order is replaced. Not one with a limit, an offset,
            ``DISTINCT ON``, a window function, or a ``GROUP BY`` without the key. Of a single
            entity, the entities come; else rows, and the key has to be one of their columns.
        by: The key: a column that is unique and never null. Its order is ascending.
        bind: What to execute it with: an ``Engine``, a ``Connection``, a ``Session``, or a
            function that makes one (``sessionmaker``). A function and an ``Engine`` are asked
            anew for each batch, so that no transaction stays open in between.
        batch: Rows a query.
    """

    kind = "rows"

    def __init__(self, select: Any, by: Any, bind: Any, batch: int = 1000) -> None:
        super().__init__(batch)
        if not hasattr(select, "get_final_froms"):
            if hasattr(select, "subquery"):  # a union, a Query
                raise CheckpointError(
                    f"a {type(select).__name__} is no select: give a select of its subquery()."
                )
            raise CheckpointError(f"{select!r} is no select: give one, such as select(Book).")
        if not isinstance(getattr(by, "key", None), str) or not hasattr(by, "expression"):
            raise CheckpointError(
                f"by={by if hasattr(by, 'compare') else repr(by)} is no column: give one, such as "
                "Book.id. Its order is ascending."
            )
        _refuse_select(select, by)
        if not callable(bind) and not hasattr(bind, "execute") and not hasattr(bind, "connect"):
            raise CheckpointError(
                f"bind={bind!r}: give an Engine, a Connection, a Session or a sessionmaker."
            )
        self.select, self.by, self.bind = select.order_by(None).order_by(by), by, bind
        described = select.column_descriptions
        first = described[0]
        single = len(described) == 1 and first["expr"] is first.get("entity", self)
        self._entity = first["type"] if single else None
        if not single and _is_another(by, select.selected_columns):
            raise CheckpointError(f"the column {by.key} of the select is not its key, {by}.")

    def _connect(self) -> AbstractContextManager[Any]:
        if callable(self.bind):
            opened: AbstractContextManager[Any] = self.bind()
            return opened
        if hasattr(self.bind, "dispose"):
            connection: AbstractContextManager[Any] = self.bind.connect()
            return connection
        return nullcontext(self.bind)

    def _first(self, count: int, cursor: Any) -> list[tuple[Any, Any]]:
        select = self.select if cursor is None else self.select.where(self.by > cursor)
        with self._connect() as connection:
            found = connection.execute(select.limit(count)).all()
        batch = [(self._key(row), row[0] if self._is_entity(row) else row) for row in found]
        if any(key is None for key, _ in batch):  # as a cursor, it is the beginning
            raise CheckpointError(f"the key, {self.by}, is null: give one that never is.")
        return batch

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


def _refuse_select(select: Any, by: Any) -> None:
    # SQLAlchemy has no public way to ask a select for its clauses.
    for name in ("limit", "offset", "fetch"):
        if getattr(select, f"_{name}_clause", None) is not None:
            raise CheckpointError(
                f"a select with {name}() cannot be read in batches: cut it by a where()."
            )
    before = type(getattr(select, "_pre_columns_clause", None)).__name__
    if getattr(select, "_distinct_on", ()) or before == "DistinctOnClause":
        raise CheckpointError(
            "DISTINCT ON needs an order of its own, which the key's replaces: give a select of "
            "the select's subquery()."
        )
    grouped = getattr(select, "_group_by_clauses", ())
    if grouped and not any(_is_key(by, clause) for clause in grouped):
        raise CheckpointError(
            f"the select is not grouped by its key, {by}: group by it, or give a select of the "
            "select's subquery()."
        )
    if any(map(_has_window, select.selected_columns)):
        raise CheckpointError(
            "a window function would see but one batch: give a select of the select's subquery()."
        )


def _is_key(by: Any, clause: Any) -> bool:
    key = by.expression
    bare = getattr(clause, "element", clause)  # of a label; a str of group_by("id")
    if isinstance(bare, str):
        return bool(bare == by.key)
    return any(one.compare(bare) for one in (key, getattr(key, "element", key)))


def _is_another(by: Any, columns: Any) -> bool:
    same = [column for column in columns if column.key == by.key]
    has_table = getattr(by.expression, "table", None) is not None
    return has_table and bool(same) and not any(_is_key(by, column) for column in same)


def _has_window(part: Any) -> bool:
    if hasattr(part, "get_final_froms"):  # a subquery, which is read whole
        return False
    return part.__visit_name__ == "over" or any(map(_has_window, part.get_children()))
