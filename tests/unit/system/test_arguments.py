"""Arguments that cannot be used: refused where they are written, with the thing and the mend."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.local import Proxy

import celery_graceful
from celery_graceful import Graceful, GracefulTask, sources
from celery_graceful.exceptions import CheckpointError
from tests.support.peers import environ
from tests.support.workers import ROOT


async def an_async_function() -> None:
    pass


async def an_async_generator() -> AsyncIterator[int]:
    yield 1


def nothing() -> None:
    pass


def a_generator() -> Iterator[int]:
    yield 1


class AsyncCall:
    async def __call__(self) -> None:
        pass


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("shop", broker="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def task(app: Celery) -> GracefulTask:
    made: GracefulTask = app.task(base=GracefulTask, name="t", shared=False)(nothing)
    return made


FLASK = SimpleNamespace(extensions={"celery": Celery("flask", set_as_current=False)})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (None, r"Graceful\(None\): give the Celery app"),
        ("shop", r"Graceful\('shop'\): give the Celery app"),
        (Celery, r"Graceful\(<class .*give the Celery app, .*, not its class"),
        (FLASK, r"give the Celery app, .*keeps it as 'celery'"),
    ],
)
def test_what_is_no_app(given: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        Graceful(given)


def test_what_stands_for_an_app_is_one(app: Celery) -> None:
    assert Graceful(Proxy(lambda: app)).app is app


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda g: g.on_exit(None), TypeError, "None cannot be called: give a function, not what"),
        (lambda g: g.on_exit(print, timeout="3"), ValueError, "timeout '3' is no finite"),
        (lambda g: g.on_exit(print, timeout=True), ValueError, "timeout True is no finite"),
        (lambda g: g.on_exit(AsyncCall()), TypeError, "is async: no event loop runs"),
        (lambda g: g.resource(None), TypeError, "None cannot be called"),
        (lambda g: g.resource(open=print, close=print, timeout="3"), ValueError, "timeout '3'"),
    ],
)
def test_at_exit(
    app: Celery, call: Callable[[Graceful], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call(Graceful(app))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda t: t.sleep(None), TypeError, "sleep: None is no number of seconds"),
        (lambda t: t.sleep("1"), TypeError, "sleep: '1' is no number of seconds"),
        (lambda t: t.sleep(-1), ValueError, "sleep: -1 is no finite number .* 0 or more"),
        (lambda t: t.sleep(float("inf")), ValueError, "sleep: inf is no finite"),
        (lambda t: t.sleep(float("nan")), ValueError, "sleep: nan is no finite"),
        (lambda t: t.wait_for_interrupt("1"), TypeError, "wait_for_interrupt: '1' is no number"),
        (lambda t: t.wait_for_interrupt(-1), ValueError, "wait_for_interrupt: -1 is no finite"),
        (lambda t: t.interrupt_callback(5), TypeError, "interrupt_callback: 5 cannot be called"),
        (
            lambda t: t.interrupt_callback(an_async_function),
            TypeError,
            "an_async_function is async: nobody would await it",
        ),
    ],
)
def test_interrupts(
    task: GracefulTask, call: Callable[[GracefulTask], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call(task)


@pytest.mark.parametrize("block", [celery_graceful.shield, celery_graceful.interruptible])
@pytest.mark.parametrize("called", [True, False])
def test_blocks_are_decorators(block: Any, called: bool) -> None:
    decorate = block() if called else block

    @decorate
    def double(number: int) -> int:
        """Twice."""
        return 2 * number

    assert double(2) == double(number=2) == 4
    assert (double.__name__, double.__doc__) == ("double", "Twice.")
    with pytest.raises(TypeError, match=r"an_async_function is async: say `async with celery_gr"):
        decorate(an_async_function)
    with pytest.raises(TypeError, match="a_generator is a generator: say `with"):
        decorate(a_generator)
    with pytest.raises(TypeError, match="5 cannot be called"):
        decorate(5)


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (5, r"step\('a', ...\): 5 cannot be called: give a function, not what it returns"),
        (None, "None cannot be called"),
        (an_async_function, "an_async_function is async: .*asyncio.run"),
        (partial(an_async_function), "is async: .*asyncio.run"),
        (an_async_function(), "is a coroutine, give a plain function: .*asyncio.run"),
        (lambda: an_async_function(), "is a coroutine, give a plain function"),
    ],
)
def test_steps(task: GracefulTask, fn: Any, match: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that nobody awaited
        with pytest.raises(TypeError, match=match):
            task.step("a", fn)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: 5, "5 cannot be iterated over: give a list"),
        (an_async_generator, "is asynchronous: iterate over a list"),
        (lambda: sources.queryset([1]), r"\[1\] is no QuerySet"),
        (lambda: sources.rows("select", "id", None), "'select' is no select"),
        (lambda: sources.lines(5), "5 is no file"),
        (lambda: sources.csv(None), "None is no file"),
        (lambda: sources.queryset([1], batch="3"), "batch='3': give a number"),
    ],
)
def test_sources(task: GracefulTask, make: Callable[[], Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        task.iterate(make())


def test_rows_need_a_column_and_somebody_to_ask() -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    table = sqlalchemy.Table("t", sqlalchemy.MetaData(), sqlalchemy.Column("id"))
    select = sqlalchemy.select(table)
    with pytest.raises(CheckpointError, match="by='id' is no column"):
        sources.rows(select, "id", lambda: None)
    with pytest.raises(CheckpointError, match="bind='sqlite://': give an Engine"):
        sources.rows(select, table.c.id, "sqlite://")


@pytest.mark.parametrize(
    ("page", "match"),
    [
        (None, r"a_page\(None\) returned None: return a tuple of the page's items"),
        ([1, 2, 3], r"a_page\(None\) returned a list of 3: return a tuple"),
        ((1, 2), r"a_page\(None\) returned a tuple of 2: return a tuple"),
    ],
)
def test_pages(task: GracefulTask, page: Any, match: str) -> None:
    def a_page(cursor: Any) -> Any:
        return page

    with pytest.raises(CheckpointError, match=match):
        list(task.iterate(sources.pages(a_page)))


def test_pages_are_fetched_by_a_function() -> None:
    with pytest.raises(TypeError, match="pages: 5 cannot be called"):
        sources.pages(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is async"):
        sources.pages(an_async_function)  # type: ignore[arg-type]


def test_what_can_be_used_is() -> None:
    celery_graceful.sleep(0)
    assert celery_graceful.wait_for_interrupt(0) is False
    with celery_graceful.interrupt_callback(print):
        pass
    assert asyncio.run(an_async_function()) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("command", [["rescue"], ["quarantine", "list"]])
@pytest.mark.parametrize(
    ("app", "match"),
    [
        ([], "no app was given: celery -A <your app> graceful"),
        (["-A", "tests.apps.bare"], "is not graceful: where it is made, say"),
    ],
)
def test_commands_are_about_a_graceful_app(command: list[str], app: list[str], match: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", *app, "graceful", *command],
        env=environ(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert match in done.stderr
    assert "Traceback" not in done.stderr
