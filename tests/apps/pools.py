"""Pools as others write them, for CELERY_CUSTOM_WORKER_POOL."""

from __future__ import annotations

import pickle
import threading

from celery.concurrency import prefork, solo, thread
from celery.concurrency.asynpool import AsynPool, Worker
from celery.concurrency.base import BasePool, apply_target


class Prefork(prefork.TaskPool):
    """With a pool of processes, and an object that runs in them, of its own."""

    class Pool(AsynPool):
        class Worker(Worker):
            def on_loop_start(self, pid):
                print(">> a child of our own", flush=True)
                super().on_loop_start(pid)


class Threads(thread.TaskPool):
    pass


class Solo(solo.TaskPool):
    pass


class Elsewhere(solo.TaskPool):
    """Waits in the main thread, as solo, for what runs in another one: asyncio's do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.on_apply = self._apply

    def _apply(self, *args, **kwargs):
        runner = threading.Thread(target=apply_target, args=args, kwargs=kwargs, daemon=True)
        runner.start()
        runner.join()


class Unknown(BasePool):
    """Sends what it is handed to who knows where."""

    def on_apply(self, target, args, kwargs, callback, accept_callback, **_):
        pickle.dumps((target, args, kwargs))
        run = (target, args, kwargs, callback, accept_callback)
        threading.Thread(target=apply_target, args=run, daemon=True).start()
