"""Graceful tasks of apps whose tasks have a base of their own: Django's, Flask's, anybody's."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

import pytest
from celery import Celery, Task, _state, shared_task
from celery.contrib.django.task import DjangoTask

from celery_graceful import Graceful, GracefulTask
from celery_graceful.task.default_base import say_who_is_plain
from tests.support.logs import own_records

in_context: ContextVar[bool] = ContextVar("in_context", default=False)


class ContextTask(Task):
    """As in Flask's documentation: whoever calls it is in the application's context."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = in_context.set(True)
        try:
            return self.run(*args, **kwargs)
        finally:
            in_context.reset(token)


class Mine(GracefulTask):
    abstract = True
    max_interruptions = 7


def make_app(own: Any = ContextTask, **conf: Any) -> Celery:
    app = Celery("composed", task_cls=own, set_as_current=False, broker="memory://")
    app.conf.update(conf)
    return app


def is_in_context() -> bool:
    return in_context.get()


@pytest.mark.parametrize("base", [GracefulTask, Mine])
@pytest.mark.parametrize("default", [False, True], ids=["", "graceful_default_task"])
@pytest.mark.parametrize("lazy", [False, True], ids=["at_once", "lazy"])
def test_a_base_that_is_named(base: Any, default: bool, lazy: bool) -> None:
    app = make_app(graceful_default_task=default)
    early = app.task(base=base, lazy=lazy, name="early", shared=False)(is_in_context)
    Graceful(app)
    late = app.task(base=base, lazy=lazy, name="late", shared=False)(is_in_context)
    for task in (early, late):
        assert isinstance(task, base)
        assert isinstance(task, ContextTask)
        assert task()
        assert task.apply().get()
        assert task.acks_late
        assert task.reject_on_worker_lost
    assert base is GracefulTask or late.max_interruptions == 7


def test_django() -> None:
    app = make_app("celery.contrib.django.task:DjangoTask")
    task = app.task(base=GracefulTask, shared=False)(is_in_context)
    assert isinstance(task, DjangoTask)
    assert callable(task.delay_on_commit)


def test_a_base_that_was_put_in_the_place_of_the_app_s() -> None:
    app = make_app(None)
    app.Task = ContextTask
    assert app.task(base=GracefulTask, shared=False)(is_in_context)()


def test_a_shared_task() -> None:
    task = shared_task(base=GracefulTask, name="composed.shared")(is_in_context)
    app = make_app()
    app.finalize()
    assert app.tasks["composed.shared"]()
    assert task.name == "composed.shared"


def test_bases_that_are_both_already() -> None:
    class Both(GracefulTask, ContextTask):
        abstract = True

    class Other(ContextTask, GracefulTask):
        abstract = True

    app = make_app()
    for base in (Both, Other):
        task = app.task(base=base, name=base.__name__, shared=False)(is_in_context)
        assert task()
        assert type(task._get_current_object()).__bases__ == (base,)


def test_a_task_of_a_plain_base_stays_plain() -> None:
    app = make_app()
    Graceful(app)
    task = app.task(base=Task, shared=False)(is_in_context)
    assert not task()
    assert not isinstance(task, GracefulTask)


# -- graceful_default_task that comes too late --------------------------------------------


def touched_early() -> Celery:
    app = make_app()
    app.Task  # noqa: B018
    app.conf.graceful_default_task = True
    Graceful(app)
    return app


def put_in_its_place() -> Celery:
    app = make_app(None, graceful_default_task=True)
    Graceful(app)
    app.Task = ContextTask
    return app


@pytest.mark.parametrize("make", [touched_early, put_in_its_place])
def test_tasks_that_were_made_before_it_are_named(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_state, "_on_app_finalizers", set())  # those of modules of tests
    app = make()
    for name in ("shop.export", "shop.mail"):
        app.task(name=name, shared=False)(is_in_context)
    app.task(name="shop.graceful", base=GracefulTask, shared=False)(is_in_context)
    app.task(name="shop.other", base=Task, shared=False)(is_in_context)
    app.finalize()
    with caplog.at_level(logging.WARNING):
        say_who_is_plain(app)
    (line,) = [record.getMessage() for record in own_records(caplog)]
    assert line.startswith("graceful_default_task came too late for shop.export, shop.mail: ")
    assert "base=GracefulTask" in line


def test_in_time_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(graceful_default_task=True)
    Graceful(app)
    app.task(name="shop.export", shared=False)(is_in_context)
    app.finalize()
    say_who_is_plain(app)
    assert not own_records(caplog)
    assert isinstance(app.tasks["shop.export"], GracefulTask)
