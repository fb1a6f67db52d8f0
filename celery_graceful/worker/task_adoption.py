"""The tasks of an app become this worker's: those that there are, and those that come later.

A plug-in that is imported at run time, ``pool_restart`` with modules: Celery knows such a task when
it builds its strategies anew, which it does with each connection, too. What it makes of the task's
messages, and its tracer, is made there, so that is where the task is adopted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.marks import hand_on
from celery_graceful.batches.running import ask_before
from celery_graceful.checkpoints.resume import check_options
from celery_graceful.deliveries.request import adopt, is_adopted
from celery_graceful.deliveries.worker_services import WorkerServices
from celery_graceful.exceptions import SettingsError
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.monitors.tracer import trace_with_check_in
from celery_graceful.pools import Adapter
from celery_graceful.unusable.detection import UnusableMessages

__all__ = ["TaskAdoption"]

logger = get_logger(__name__)


class TaskAdoption:
    """Of the tasks of one worker.

    Args:
        app: The Celery app.
        host: The worker, as its deliveries see it.
        adapter: Of its pool.
        unusable: Has to know which messages are for tasks as Celery makes them.
    """

    def __init__(
        self, app: Any, host: WorkerServices, adapter: Adapter, unusable: UnusableMessages
    ) -> None:
        self.app = app
        self.host = host
        self.adapter = adapter
        self.unusable = unusable

    def begin(self, consumer: Any, before: Callable[[Any], None]) -> None:
        """Adopt what there is, and from now on what comes.

        Args:
            consumer: Celery's, which has not started.
            before: Called with each task before anything of it is changed.
        """
        self._adopt(before)
        update = consumer.update_strategies

        def update_strategies() -> None:
            self._check(self._adopt(before))
            update()
            if self.adapter.in_process:  # else the children do so
                for task in list(self.app.tasks.values()):
                    trace_with_check_in(task)
                    ask_before(task)
                    hand_on(task)
            self.unusable.know(consumer)

        consumer.update_strategies = update_strategies

    def _adopt(self, before: Callable[[Any], None]) -> list[Any]:
        new = [task for task in self.app.tasks.values() if not is_adopted(task, self.host)]
        for task in new:
            before(task)
            adopt(task, self.host)
            self.adapter.adopt(task)
        return new

    def _check(self, late: list[Any]) -> None:
        """What is refused at a start is said; the worker goes on."""
        try:
            check_options(late)
            if late:
                monitors_of(self.app).check()
        except SettingsError as exc:
            logger.error("A task was registered that cannot be used as it is: %s", exc)
