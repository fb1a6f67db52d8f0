"""``Graceful(app)``: the only place that wires things up."""

from __future__ import annotations

from typing import Any

from celery_graceful.settings import Settings

__all__ = ["Graceful"]

_WORKER_STEP = "celery_graceful.bootsteps:WorkerStep"
_CONSUMER_STEP = "celery_graceful.bootsteps:ConsumerStep"


class Graceful:
    """Adds celery_graceful to a Celery app. Doing so twice is the same as once.

    Nothing is imported and nothing is started until a worker runs the app.

    Args:
        app: The app; configured before or after.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        # By name: a web process must not import what only a worker needs.
        app.steps["worker"].add(_WORKER_STEP)
        app.steps["consumer"].add(_CONSUMER_STEP)
        if not hasattr(app, "_plain_create_task_cls"):
            app._plain_create_task_cls = app.create_task_cls
            app.create_task_cls = self._create_task_cls

    @property
    def settings(self) -> Settings:
        """The ``graceful_*`` settings.

        Raises:
            SettingsError: One of them cannot be used.
        """
        return Settings.from_conf(self.app.conf)

    def _create_task_cls(self) -> Any:
        """The base of tasks that name none: with ``graceful_default_task``, a graceful one."""
        app = self.app
        if self.app.conf.get("graceful_default_task"):
            from celery.utils.imports import symbol_by_name

            from celery_graceful.task import GracefulTask

            base = symbol_by_name(app.task_cls)
            if not issubclass(base, GracefulTask):
                if issubclass(GracefulTask, base):
                    app.task_cls = GracefulTask
                else:
                    app.task_cls = type("GracefulTask", (GracefulTask, base), {"abstract": True})
        return app._plain_create_task_cls()
