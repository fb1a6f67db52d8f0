"""Headers that are kept for whoever sends a member or a callback, and when."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, chain
from celery.signals import before_task_publish

from celery_graceful import Batch, Graceful, SettingsError, UnknownBatch
from celery_graceful.batches import kept_headers
from celery_graceful.batches.kept_headers import are_kept, keep
from celery_graceful.batches.members import Members
from celery_graceful.messages.own_headers import KEPT


def nothing() -> None:
    """No headers."""


@pytest.fixture
def app() -> Celery:
    app = Celery("kept", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    Graceful(app)

    @app.task(name="kept.work", bind=True, shared=False)
    def work(self: Any, *args: Any) -> None: ...

    return app


def test_each_task_keeps_what_it_has_of_its_own(app: Celery) -> None:
    work = app.tasks["kept.work"]
    own = work.si().set(headers={"tenant": "another", "mine": 1})
    sig = chain(work.si(), own)
    keep(sig, {"tenant": "acme", "request": 7})
    first, second = (one.options["headers"] for one in sig.tasks)
    assert first == {"tenant": "acme", "request": 7, KEPT: {"tenant": "acme", "request": 7}}
    assert second == {
        "tenant": "another",
        "mine": 1,
        "request": 7,
        KEPT: {"tenant": "another", "request": 7},
    }


def test_what_is_linked_keeps_them_too(app: Celery) -> None:
    """An errback is sent by whoever finds that its task has failed."""
    work = app.tasks["kept.work"]
    errback = work.si().set(headers={"mine": 1})
    sig = work.si().set(link=work.si(), link_error=[errback])
    keep(sig, {"tenant": "acme"})
    (link,), (link_error,) = sig.options["link"], sig.options["link_error"]
    assert link.options["headers"] == {"tenant": "acme", KEPT: {"tenant": "acme"}}
    assert link_error.options["headers"]["tenant"] == "acme"
    assert errback.options["headers"] == {"mine": 1}, "it may be another one's too"


def test_who_comes_last_has_the_last_word() -> None:
    def late(headers: Any, **_: Any) -> None:
        headers["tenant"] = "public"

    before_task_publish.connect(late)
    try:
        are_kept()
        headers = {"tenant": "acme", KEPT: {"tenant": "acme"}}
        before_task_publish.send(sender="work", headers=headers)
        assert headers["tenant"] == "acme"
        are_kept()
        assert [one is kept_headers._put for _, one in before_task_publish.receivers].count(
            True
        ) == 1
    finally:
        before_task_publish.disconnect(late)


def test_a_producer_that_is_run_again_gives_the_same_ids(app: Celery) -> None:
    """Also in another request."""
    requests = iter((1, 2))
    app.conf.graceful_batch_headers = lambda: {"request": next(requests)}
    work = app.signature("kept.work")
    first, second = (Members(app, "one", counted=True).make(work, "member 1,") for _ in range(2))
    assert first.id == second.id
    assert [one.signature.options["headers"]["request"] for one in (first, second)] == [1, 2]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (7, "give a function, or name it as module:attribute"),
        ("no function", "give a function, or name it as module:attribute"),
        ("no_such_module:headers", "name one that is there, .*no_such_module"),
        (f"{__name__}:no_such", "name one that is there, .*no_such"),
        (f"{__name__}:KEPT", "name a function, not a str"),
        (lambda: ["tenant"], r"it has to return a dict, not \['tenant'\]"),
        (lambda: {"tenant": object()}, "it has to return what can be serialized as JSON"),
        (lambda: {7: "tenant"}, "it returns a header 7, which means something else"),
        (lambda: {"id": "tenant"}, "it returns a header 'id', which means something else"),
        (lambda: {"retries": 7}, "it returns a header 'retries'"),
        (lambda: {"graceful_batch": ""}, "it returns a header 'graceful_batch'"),
    ],
)
def test_what_are_no_headers(app: Celery, given: Any, why: str) -> None:
    app.conf.graceful_batch_headers = given
    work = app.signature("kept.work")
    for callbacks in ({}, {"on_complete": work.clone()}):
        batch = Batch(app=app, **callbacks)
        with pytest.raises(SettingsError, match=f"(?s)graceful_batch_headers = .*{why}"):
            batch.apply_async([work])
        with pytest.raises(UnknownBatch):
            batch.status()


def test_there_may_be_none(app: Celery) -> None:
    app.conf.graceful_batch_headers = f"{__name__}:nothing"
    batch = Batch(app=app).apply_async([app.signature("kept.work")])
    assert batch.status().succeeded == 1


def test_what_the_function_raises_is_raised(app: Celery) -> None:
    def broken() -> None:
        raise LookupError("no request here")

    app.conf.graceful_batch_headers = broken
    batch = Batch(app=app)
    with pytest.raises(LookupError, match="no request here"):
        batch.apply_async([app.signature("kept.work")])
    with pytest.raises(UnknownBatch):
        batch.status()
