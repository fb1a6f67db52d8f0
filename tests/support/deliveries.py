"""Deliveries of tasks in the process of the test, as a pool child makes them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.app import trace

from celery_graceful import GracefulTask
from celery_graceful.checkpoints.checkpoint import DELIVERY, key_of
from celery_graceful.phases import InterruptReason
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines

__all__ = ["Bench", "Kill", "bench"]


class Kill(BaseException):
    """Stands for SIGKILL: nothing gets the time to save anything."""


class Bench:
    """Delivers tasks of one app and interrupts them.

    Args:
        app: The app.
        client: Of the Redis that is its store, if it has one.
    """

    def __init__(self, app: Celery, client: Any = None) -> None:
        self.app = app
        self.client = client
        self._numbers = itertools.count()

    @property
    def board(self) -> Board:
        """The board of the moment."""
        assert worker_state.board.value is not None
        return worker_state.board.value

    def task(self, fn: Any, **options: Any) -> Any:
        """Make a graceful task of ``fn(self, ...)``."""
        options.setdefault("name", f"{fn.__name__}-{next(self._numbers)}")
        options.setdefault("base", GracefulTask)
        options.setdefault("checkpoint_interval", 3600.0)  # what is saved is no matter of time
        return self.app.task(bind=True, **options)(fn)

    def interrupt(self) -> None:
        """The worker begins to stop."""
        self.board.begin_stop(Deadlines(30.0, 20.0, 25.0, "test"), InterruptReason.SHUTDOWN)

    def new_worker(self) -> None:
        """The next delivery is to a worker that does not stop."""
        worker_state.detach()
        worker_state.attach(Board.create())

    def deliver(self, task: Any, *args: Any, id: str = "", **request: Any) -> tuple[str, Any]:
        """Run one delivery; its state (of Celery, or what it raised) and result.

        Raises:
            Kill: The task raised it.
        """
        request = {
            "id": id or uuid.uuid4().hex,
            "delivery_info": {"redelivered": request.pop("redelivered", False)},
            "retries": 0,
            DELIVERY: uuid.uuid4().hex,
            "errbacks": None,
            **request,
        }
        tracer = trace.build_tracer(task.name, task, app=self.app)
        result, info, *_ = tracer(request["id"], args, {}, request)
        return ("SUCCESS", result) if info is None else (info.state, info.retval)

    def run(self, task: Any, *args: Any, id: str = "", limit: int = 1000) -> tuple[str, Any]:
        """Deliver until the task has ended by itself, however often it is cut off."""
        id = id or uuid.uuid4().hex
        for number in range(limit):
            self.new_worker()
            try:
                state, result = self.deliver(task, *args, id=id, redelivered=number > 0)
            except Kill:
                continue
            if state != "IGNORED":
                return state, result
        raise AssertionError(f"no end after {limit} deliveries")

    def saved(self, task: Any, id: str) -> dict[str, str]:
        """The task's hash in the store."""
        fields: dict[str, str] = self.client.hgetall(key_of(task.name, id))
        return fields


@contextmanager
def bench(client: Any = None, **conf: Any) -> Iterator[Bench]:
    """A bench with an app of its own."""
    app = Celery(uuid.uuid4().hex, set_as_current=False)
    app.conf.update(broker_url="memory://", result_backend="cache+memory://", **conf)
    trace._install_stack_protection()
    worker_state.attach(Board.create())
    try:
        yield Bench(app, client)
    finally:
        worker_state.detach()
        trace.reset_worker_optimizations(app)
