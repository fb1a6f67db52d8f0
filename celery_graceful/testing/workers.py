"""What the fixture ``graceful_worker`` is: starts workers, and ends them with the test."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.app.utils import find_app

from celery_graceful.testing.leftovers import Broker, queues_of
from celery_graceful.testing.worker_process import LIMIT, GracefulWorker

__all__ = ["Workers"]


class Workers:
    """Starts workers of apps on one broker: ``graceful_worker(app)``.

    Args:
        url: Of the broker.
        ours: It is a Redis that nobody else uses.
        env: For all workers.
    """

    def __init__(self, url: str, *, ours: bool, env: Mapping[str, str] | None = None) -> None:
        self.broker = Broker(url)
        self.env = dict(env or {})
        self._workers: list[GracefulWorker] = []
        self._apps: list[Any] = []
        if ours:
            self.broker.empty()

    def __call__(
        self,
        app: Any,
        *,
        pool: str = "prefork",
        concurrency: int = 1,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        ready: bool = True,
        timeout: float = LIMIT,
    ) -> GracefulWorker:
        """Start a worker, and wait until it consumes.

        Args:
            app: The app, or where it is: ``"shop:app"``. It has to be in a module that a new
                process can import. Until the test ends it sends to the same broker.
            pool: The pool, as ``celery worker -P`` has it.
            concurrency: Of the pool.
            settings: Of Celery or ours, in place of the app's own; what JSON can hold.
            env: Added to its environment.
            args: Added to its command line.
            ready: Wait for it.
            timeout: Seconds that it may take to be ready.

        Raises:
            TypeError: ``app`` is neither.
            LookupError: The app is in no module that can be imported.
            NotInTime: It is not ready.
        """
        if not isinstance(app, (Celery, str)):
            raise TypeError(
                f'graceful_worker({app!r}): give the app, or where it is, such as "shop:app"'
            )
        path = app if isinstance(app, str) else _path_of(app)
        self._point_here(find_app(path) if isinstance(app, str) else app)
        ours = {"broker_url": self.broker.url, "broker_connection_retry_on_startup": True}
        if self.broker.is_redis:
            ours.update(result_backend=self.broker.url, graceful_store=self.broker.url)
        worker = GracefulWorker(
            path,
            self.broker,
            pool=pool,
            concurrency=concurrency,
            settings={**ours, **(settings or {})},
            env={**self.env, **(env or {})},
            args=args,
            name=f"w{len(self._workers) + 1}-{os.getpid()}@test",
        )
        self._workers.append(worker)
        if ready:
            worker.wait_for(r"ready\.$", timeout=timeout)
        return worker

    def assert_nothing_left(self, timeout: float = 10.0) -> None:
        """Check that no message, claim and checkpoint is left behind.

        What ends last is cleared away a moment later, so it waits.

        Args:
            timeout: Seconds.

        Raises:
            AssertionError: Something is left. It says what.
        """
        queues = set().union(*map(queues_of, self._apps)) if self._apps else {"celery"}
        end = time.monotonic() + timeout
        while left := self.broker.left(queues):
            if time.monotonic() > end:
                lines = "\n".join(f"    {line}" for line in left)
                raise AssertionError(f"after {timeout:g} s there is left at the broker\n{lines}")
            time.sleep(0.05)

    def close(self) -> None:
        """End all workers; apps send where they did before."""
        for worker in self._workers:
            worker.close()
        for app in self._apps:
            forget_connections(app)
        self.broker.close()

    def _point_here(self, app: Any) -> None:
        if app not in self._apps:
            self._apps.append(app)
            forget_connections(app)


def forget_connections(app: Any) -> None:
    """Have an app look up anew where its broker and its results are: the environment says so."""
    vars(app).update(_pool=None, _backend_cache=None)
    vars(app._local).pop("backend", None)
    if "amqp" in vars(app):
        vars(app.amqp).pop("_producer_pool", None)


def _path_of(app: Any) -> str:
    """Where a new process finds it."""
    for name, module in sorted(sys.modules.items(), key=lambda item: item[0] != app.main):
        if name == "__main__" or name.partition(".")[0] in ("celery", "celery_graceful"):
            continue
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is app:
                return f"{name}:{attribute}"
    raise LookupError(f'{app!r} is in no module; say where it is, such as "shop:app"')
