"""Real deliveries, of a worker of which only its ledger is there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest.mock import MagicMock

from celery import Celery
from kombu.message import Message
from kombu.utils.json import dumps

from celery_graceful import Graceful, GracefulTask
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest, adopt
from celery_graceful.deliveries.worker_services import WorkerServices
from celery_graceful.system.process import Owner
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board

__all__ = ["Held", "held"]


class Held:
    """Holds deliveries of one app.

    Args:
        app: The app.
        board: Of the worker.
    """

    def __init__(self, app: Celery, board: Board) -> None:
        self.app, self.board = app, board
        self.ledger = Ledger(MagicMock(), MagicMock())
        rest = {one.name: MagicMock() for one in fields(WorkerServices)}
        self.host = WorkerServices(**{**rest, "ledger": self.ledger})

    def deliver(self, task_id: str, *, runs: bool = True, **options: Any) -> GracefulRequest:
        """A task of its own is delivered; and begun, by the process with the number 1."""
        options = {"base": GracefulTask, "name": f"task {task_id}", "shared": False, **options}
        task = self.app.tasks[self.app.task(**options)(_nothing).name]
        adopt(task, self.host)
        made = self.app.amqp.as_task_v2(task_id, task.name, (), {})
        message = Message(
            body=dumps(made.body),
            headers=made.headers,
            properties=made.properties,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={"exchange": "", "routing_key": "celery"},
        )
        request: GracefulRequest = task.Request(message, app=self.app, task=task, hostname="w")
        if runs:
            request.begin()
            request.worker_pid, request.time_start = 1, 1.0
        return request


def _nothing() -> None: ...


@contextmanager
def held(backend: str = "cache+memory://") -> Iterator[Held]:
    """Of an app with that result backend."""
    app = Celery(uuid.uuid4().hex, broker="memory://", backend=backend, set_as_current=False)
    Graceful(app)
    app.finalize()
    owner, board = Owner(), Board.create()
    worker_state.attach(board, owner)
    try:
        yield Held(app, board)
    finally:
        owner.end()
        app.close()
