"""Each source, gone on from at every boundary."""

from __future__ import annotations

import csv as stdlib_csv
import datetime as dt
import uuid
from collections import OrderedDict
from types import MappingProxyType

import django
import pytest
import sqlalchemy as sa
from django.conf import settings
from django.db import connection, models
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from celery_graceful import CheckpointError
from celery_graceful.checkpoints.codec import decode, encode
from celery_graceful.sources import base, csv, lines, pages, queryset, rows

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[],
    USE_TZ=True,
)
django.setup()


class Book(models.Model):
    isbn = models.UUIDField(unique=True)
    title = models.CharField(max_length=50)
    added = models.DateTimeField(unique=True)
    shelf = models.CharField(max_length=5, unique=True, null=True)

    class Meta:
        app_label = "tests"


def goes_on_everywhere(make, expected):
    """Cut the source off before, after and between all items, and go on from the saved cursor."""
    source = make()
    source.check(None)
    pairs = list(source.pairs(None))
    assert [item for _, item in pairs] == expected
    for number, (cursor, _) in enumerate(pairs, 1):
        back = decode(encode(cursor, "cursor"))
        assert (type(back), back) == (type(cursor), cursor)
        source = make()
        source.check(back)
        assert list(source.pairs(back)) == pairs[number:]


@pytest.mark.parametrize("items", ["abc", [], range(5), (1, 2), b"xy"])
def test_sequence(items):
    goes_on_everywhere(lambda: base.as_source(items), list(items))


def test_a_sequence_that_has_shrunk():
    assert list(base.as_source([1, 2]).pairs(5)) == []


@pytest.mark.parametrize("kind", [dict, OrderedDict, MappingProxyType])
@pytest.mark.parametrize("view", ["keys", "items", "values"])
def test_views_of_a_dict_have_its_order(kind, view):
    found = getattr(kind({"b": 1, "a": 2, "c": 3}), view)
    assert list(base.as_source(found()).pairs(None)) == list(enumerate(found(), 1))


@pytest.mark.parametrize("items", [{1, 2}, frozenset("ab"), {1: 2}.keys() | {3}])
def test_a_set_is_refused(items):
    with pytest.raises(CheckpointError, match="another order in another process"):
        base.as_source(items)


# -- pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        {None: ("abc", 2), 2: ("de", "x"), "x": ("f", None)},
        {None: ("", "x"), "x": ("a", "y"), "y": ("", None)},
        {None: ("", None)},
    ],
)
def test_pages(table):
    fetched = []

    def fetch(cursor):
        fetched.append(cursor)
        return table[cursor]

    goes_on_everywhere(lambda: pages(fetch), list("".join(items for items, _ in table.values())))
    fetched.clear()
    list(pages(fetch).pairs([None, 1]))
    assert fetched == list(table)


@pytest.mark.parametrize("cursor", [3, "ab c", [1], {}])
def test_pages_check(cursor):
    with pytest.raises(CheckpointError, match="the cursor of pages"):
        pages(lambda _: ([], None)).check(cursor)


# -- files ---------------------------------------------------------------------------

TEXTS = ["", "a", "a\n", "a\n\nb\r\nc", "äö\n€\n\n😀\nende"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines(tmp_path, text, encoding):
    path = tmp_path / "file"
    path.write_bytes(text.encode(encoding) if text else b"")
    goes_on_everywhere(lambda: lines(path, encoding), [x.rstrip("\r") for x in text.splitlines()])


def test_lines_of_latin_1(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("ä\nö\n".encode("latin-1"))
    goes_on_everywhere(lambda: lines(path, "latin-1"), ["ä", "ö"])


def test_lines_of_utf_16():
    with pytest.raises(CheckpointError, match="convert the file to utf-8"):
        lines("file", "utf-16")


def test_a_file_that_has_shrunk(tmp_path):
    path = tmp_path / "file"
    path.write_text("a\nb\n")
    lines(path).check(4)
    with pytest.raises(CheckpointError, match="shorter than the 5 bytes"):
        lines(path).check(5)
    with pytest.raises(CheckpointError, match="byte offset"):
        lines(path).check("2")


CSV = 'id;text\r\n1;"a\nb;""c"""\r\n\r\n2;ü\r\n3;"\r\n"'


def test_csv(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(CSV.encode())
    records = [["1", 'a\nb;"c"'], ["2", "ü"], ["3", "\r\n"]]
    dicts = [{"id": number, "text": text} for number, text in records]
    goes_on_everywhere(lambda: csv(path, delimiter=";"), dicts)
    goes_on_everywhere(lambda: csv(path, header=False, delimiter=";"), [["id", "text"], *records])


@pytest.mark.parametrize(
    "text", ["a,b\n1\n1,2\n1,2,3\n1,2,3,4\n", "a,b,a\n1\n1,2\n1,2,3\n1,2,3,4\n"]
)
def test_csv_of_short_and_long_records(tmp_path, text):
    path = tmp_path / "file.csv"
    path.write_text(text)
    expected = list(stdlib_csv.DictReader(text.splitlines()))
    assert None in expected[0].values()
    assert "4" in expected[-1][None]
    goes_on_everywhere(lambda: csv(path), expected)


@pytest.mark.parametrize("text", ["", "id,text\n"])
def test_csv_empty(tmp_path, text):
    path = tmp_path / "file.csv"
    path.write_text(text)
    goes_on_everywhere(lambda: csv(path), [])


# -- Django --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def books():
    with connection.schema_editor() as editor:
        editor.create_model(Book)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
    for number in range(7):
        added = start + dt.timedelta(microseconds=number * 7 % 11)
        Book.objects.create(isbn=uuid.uuid4(), title=f"book {number}", added=added)
    yield Book.objects.order_by("-title")
    with connection.schema_editor() as editor:  # other modules' tests may come in between
        editor.delete_model(Book)


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
@pytest.mark.parametrize("by", ["pk", "isbn", "added"])
def test_queryset(books, by, batch):
    expected = list(books.order_by(by))
    goes_on_everywhere(lambda: queryset(books, by, batch), expected)
    goes_on_everywhere(
        lambda: queryset(books.values("id", by), by, batch),
        list(books.order_by(by).values("id", by)),
    )


def test_queryset_empty(books):
    goes_on_everywhere(lambda: queryset(books.none()), [])


def test_queryset_queries(books):
    log = []

    def watch(execute, sql, *rest):
        log.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(watch):
        list(queryset(books, batch=3).pairs(None))
    assert len(log) == 3
    assert not any("OFFSET" in sql for sql in log)


@pytest.mark.parametrize("by", ["title", "shelf"])
def test_queryset_needs_a_key(books, by):
    with pytest.raises(CheckpointError, match="not unique, or may be null"):
        queryset(books, by)


def test_queryset_sliced(books):
    with pytest.raises(CheckpointError, match="sliced"):
        queryset(books[:3])


@pytest.mark.parametrize("batch", [2, 7])
def test_queryset_reversed(books, batch):
    for given in (books.reverse(), models.QuerySet(Book).reverse(), books.reverse().reverse()):
        goes_on_everywhere(
            lambda given=given: queryset(given, batch=batch), list(books.order_by("pk"))
        )


@pytest.mark.parametrize("how", ["union", "intersection", "difference"])
def test_queryset_combined(books, how):
    with pytest.raises(CheckpointError, match=rf"{how}\(\) cannot be filtered"):
        queryset(getattr(books.filter(pk__lt=3), how)(books.filter(pk__gt=5)))


def test_queryset_distinct_on(books):
    with pytest.raises(CheckpointError, match=r"distinct\('title', 'id'\) needs an order"):
        queryset(books.distinct("title", "id"))
    goes_on_everywhere(lambda: queryset(books.distinct()), list(books.order_by("pk")))


@pytest.mark.parametrize("filtered", [False, True])
def test_queryset_with_a_window(books, filtered):
    rank = models.Window(models.Count("pk"), order_by="pk")
    with pytest.raises(CheckpointError, match="a window function"):
        queryset(books.alias(n=rank).filter(n__lt=3) if filtered else books.annotate(n=rank))


def test_queryset_with_an_aggregate(books):
    goes_on_everywhere(
        lambda: queryset(books.annotate(n=models.Count("title")).filter(n=1), batch=2),
        list(books.order_by("pk")),
    )


def test_queryset_of_raw_sql(books):
    with pytest.raises(CheckpointError, match="is no QuerySet"):
        queryset(Book.objects.raw("SELECT * FROM tests_book"))


def test_queryset_of_named_rows(books):
    rows = books.values_list("id", "pk", named=True)
    goes_on_everywhere(lambda: queryset(rows), list(rows.order_by("pk")))


@pytest.mark.parametrize(
    ("cut", "gives"),
    [
        (lambda books: books.values_list("pk", flat=True), "int"),
        (lambda books: books.values_list("pk", "title"), "tuple"),
        (lambda books: books.values_list("title", named=True), "Row"),
        (lambda books: books.values("title"), "dict"),
    ],
)
def test_queryset_without_its_key(books, cut, gives):
    with pytest.raises(CheckpointError, match=f"hold its key, pk, and gives a {gives}: "):
        next(queryset(cut(books)).pairs(None))


def test_queryset_has_to_be_wrapped(books):
    with pytest.raises(CheckpointError, match=r"sources\.queryset"):
        base.as_source(books)


# -- SQLAlchemy ----------------------------------------------------------------------


class Base(orm.DeclarativeBase):
    pass


class Song(Base):
    __tablename__ = "songs"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    code: orm.Mapped[uuid.UUID] = orm.mapped_column(unique=True)
    title: orm.Mapped[str]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = sa.create_engine(f"sqlite:///{tmp_path_factory.mktemp('db')}/songs.db")
    Base.metadata.create_all(made)
    with orm.Session(made) as session, session.begin():
        for number in range(7):
            session.add(Song(id=number * 3, code=uuid.uuid4(), title=f"song {number}"))
    yield made
    made.dispose()


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
@pytest.mark.parametrize("by", [Song.id, Song.code])
@pytest.mark.parametrize("bind", ["engine", "connection", "session"])
def test_rows(engine, bind, by, batch):
    select = sa.select(Song.title, by).order_by(Song.title.desc())
    with engine.connect() as connected, orm.Session(engine) as session:
        expected = list(connected.execute(select.order_by(None).order_by(by)))
        to = {"engine": engine, "connection": connected, "session": session}[bind]
        goes_on_everywhere(lambda: rows(select, by, to, batch), expected)


@pytest.mark.parametrize("batch", [2, 7])
def test_rows_of_an_entity(engine, batch):
    make = orm.sessionmaker(engine, expire_on_commit=False)
    source = rows(sa.select(Song), by=Song.id, bind=make, batch=batch)
    pairs = list(source.pairs(None))
    assert [(cursor, song.title) for cursor, song in pairs] == [
        (n * 3, f"song {n}") for n in range(7)
    ]
    assert [song.title for _, song in source.pairs(12)] == ["song 5", "song 6"]


def test_rows_of_an_entity_without_a_session(engine):
    goes_on_everywhere(
        lambda: rows(sa.select(Song), Song.id, engine, 3),
        list(engine.connect().execute(sa.select(Song).order_by(Song.id))),
    )


def test_rows_of_a_table(engine):
    table = Song.__table__
    source = rows(sa.select(table).where(table.c.id > 6), by=table.c.id, bind=engine, batch=2)
    assert [row.title for _, row in source.pairs(None)] == [f"song {n}" for n in range(3, 7)]


def test_rows_empty(engine):
    goes_on_everywhere(lambda: rows(sa.select(Song).where(sa.false()), Song.id, engine), [])


def test_rows_without_its_key(engine):
    with pytest.raises(CheckpointError, match="has to hold its key"):
        list(rows(sa.select(Song.title), Song.id, engine).pairs(None))


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (lambda select: select.limit(3), "limit"),
        (lambda select: select.limit(0), "limit"),
        (lambda select: select.offset(3), "offset"),
        (lambda select: select.fetch(3), "fetch"),
        (lambda select: select.slice(1, 3), "limit"),
    ],
)
def test_rows_cut(engine, cut, name):
    with pytest.raises(CheckpointError, match=rf"a select with {name}\(\) .*: cut it by a where"):
        rows(cut(sa.select(Song)), Song.id, engine)


@pytest.mark.parametrize(
    "by", [Song.id.desc(), Song.id.asc(), Song.id + 1, sa.func.abs(Song.id), "id", Song]
)
def test_rows_by_no_column(engine, by):
    with pytest.raises(CheckpointError, match=r"is no column: .* ascending"):
        rows(sa.select(Song), by, engine)


def distinct_on(column):
    if hasattr(postgresql, "distinct_on"):  # SQLAlchemy 2.1
        return sa.select(Song).ext(postgresql.distinct_on(column))
    return sa.select(Song).distinct(column)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda: sa.select(Song.id).union(sa.select(Song.id)), "CompoundSelect is no select"),
        (lambda: orm.Session().query(Song), "Query is no select"),
        (lambda: sa.select(Song).from_statement(sa.text("x")), "is no select: give one, such as"),
        (lambda: distinct_on(Song.title), "DISTINCT ON"),
        (
            lambda: sa.select(sa.func.max(Song.id).label("id")).group_by(Song.title),
            r"not grouped by its key, Song\.id",
        ),
        (
            lambda: sa.select(Song.id, sa.func.count().over(order_by=Song.id) + 1),
            "a window function",
        ),
        (lambda: sa.select(sa.func.max(Song.id).label("id")), "column id of the select is not"),
        (lambda: sa.select(orm.aliased(Song).id, Song.title), "column id of the select is not"),
    ],
)
def test_rows_that_batches_would_change(engine, given, why):
    with pytest.raises(CheckpointError, match=why):
        rows(given(), Song.id, engine)


def test_rows_of_a_subquery(engine):
    first, last = (sa.select(Song.id).where(cut) for cut in (Song.id < 5, Song.id > 14))
    for given in (
        first.union(last),
        sa.select(Song.id).where(Song.id.in_([0, 3, 15, 18])).limit(9),
    ):
        sub = given.subquery()
        goes_on_everywhere(
            lambda sub=sub: rows(sa.select(sub), sub.c.id, engine, 2), [(0,), (3,), (15,), (18,)]
        )


@pytest.mark.parametrize("group", [Song.id, "id", Song.__table__.c.id])
def test_rows_of_groups(engine, group):
    select = sa.select(Song.id, sa.func.count()).group_by(group)
    goes_on_everywhere(lambda: rows(select, Song.id, engine, 2), [(n * 3, 1) for n in range(7)])


def test_rows_by_a_label(engine):
    by = Song.id.label("number")
    for group in (Song.id, by, "number"):
        select = sa.select(by, Song.title).group_by(group)
        assert len(list(rows(select, by, engine, 2).pairs(None))) == 7


@pytest.mark.parametrize("by", [sa.null().label("key"), sa.literal(1).label("key")])
def test_rows_with_a_key_that_is_none(engine, by):
    with pytest.raises(CheckpointError, match=r"is null|have the key 1: .* skipped"):
        list(rows(sa.select(by, Song.title), by, engine, 3).pairs(None))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_rows_with_keys_that_are_equal(engine, batch):
    """Also where one batch ends with the key that the next one begins with."""
    twice = sa.select(Song).join(orm.aliased(Song), sa.true())
    with pytest.raises(CheckpointError, match="two items have the key 0"):
        next(rows(twice, Song.id, engine, batch).pairs(None))
