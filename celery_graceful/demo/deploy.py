"""The story of the demo: a worker under load is replaced by another, as in a deploy."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from pathlib import Path

from celery_graceful.demo.history import History
from celery_graceful.demo.journal import Fact
from celery_graceful.demo.servers import CannotRun
from celery_graceful.demo.timeline import Timeline
from celery_graceful.demo.verdict import claimed
from celery_graceful.demo.workers import Ended, LogLine, News, Ready, Worker

__all__ = ["GRACE", "Deploy"]

#: Seconds between SIGTERM and SIGKILL.
GRACE = 10.0

#: Seconds that a worker may take to start.
START_TIMEOUT = 60.0

#: Seconds after SIGTERM at which the story ends, whatever is missing.
PATIENCE = 34.0

#: Seconds in which the last acknowledgements may reach the broker.
LAST_ACKS = 5.0

CONCURRENCY = 6
LONG_ONES = ("export_orders-1", "call_carrier-1", "rebuild_index-1", "resize_photos-1")

_COLOURS = {"interrupted": "yellow", "finished": "green", "failed": "red", "resumed": "cyan"}


class Deploy:
    """One run of the story.

    Args:
        timeline: Where to show it.
        redis_url: Broker and result backend.
        service_url: Of the slow HTTP service.
        folder: For the exports.
        pool: Of the workers.
        plain: Leave celery_graceful out.
    """

    def __init__(
        self,
        timeline: Timeline,
        *,
        redis_url: str,
        service_url: str,
        folder: Path,
        pool: str,
        plain: bool,
    ) -> None:
        self.timeline = timeline
        self.history = History()
        self.pool = pool
        self.had_to_kill = False
        self.env = {
            "DEMO_REDIS": redis_url,
            "DEMO_SERVICE": service_url,
            "DEMO_FOLDER": str(folder),
            "DEMO_PLAIN": "1" if plain else "",
            # As a platform's pod or unit would have it.
            "TERMINATION_GRACE_PERIOD_SECONDS": f"{GRACE:g}",
        }
        os.environ.update(self.env)
        from celery_graceful.demo.app import app  # reads that environment

        self._app = app
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._ready: set[str] = set()
        self._workers: list[Worker] = []
        self._numbers: dict[str, int] = {}

    def run(self) -> None:
        """Play it to its end.

        Raises:
            CannotRun: A worker did not start.
        """
        try:
            old = self._start("worker-1")
            self._until_ready(old)
            self._load()
            self._pump(lambda: all(map(self.history.running, LONG_ONES)), START_TIMEOUT)
            self._pump(lambda: False, 2.0)
            self._replace(old)
            claimed(self.env["DEMO_REDIS"], LAST_ACKS)
        finally:
            for worker in self._workers:
                worker.kill()

    # -- the parts of the story ----------------------------------------------------

    def _start(self, name: str) -> Worker:
        self.timeline.event("platform", f"starts {name}", colour="bold")
        worker = Worker(
            name, pool=self.pool, concurrency=CONCURRENCY, env=self.env, news=self._news
        )
        self._workers.append(worker)
        return worker

    def _until_ready(self, worker: Worker) -> None:
        self._pump(lambda: worker.name in self._ready or worker.gone() is not None, START_TIMEOUT)
        if worker.name not in self._ready:
            output = "\n".join(worker.tail)
            raise CannotRun(f"{worker.name} did not start:\n{output}")

    def _load(self) -> None:
        for task_id in LONG_ONES:
            self._send(task_id.rpartition("-")[0])
        for _ in range(2):
            self._send("send_reminder", countdown=8)
        for _ in range(14):
            self._send("send_mail")
        self.timeline.event("shop", f"has sent {len(self.history.tasks)} tasks, goes on sending")

    def _send(self, name: str, countdown: float | None = None) -> None:
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        task_id = f"{name}-{number}"
        self.history.sent(task_id)
        self._app.send_task(name, task_id=task_id, countdown=countdown)

    def _replace(self, old: Worker) -> None:
        """Stop the old worker, start the new one, and wait until everything is done."""
        old.term()
        assert old.told_to_stop_at is not None
        self.timeline.count_from(old.told_to_stop_at)
        self.timeline.event(
            "platform",
            f"sends SIGTERM to worker-1, and SIGKILL in {GRACE:g} s if it is there still",
            at=old.told_to_stop_at,
            colour="magenta",
        )
        self._start("worker-2")
        self._let_go(old)
        end = old.told_to_stop_at + PATIENCE
        self._pump(self.history.all_finished, end - time.monotonic())

    def _let_go(self, old: Worker) -> None:
        """Play the platform: wait until the worker is gone, kill it when its time is up."""
        assert old.told_to_stop_at is not None
        end = old.told_to_stop_at + GRACE
        while old.gone() is None and time.monotonic() < end:
            self._send("send_mail")
            self._pump(lambda: old.gone() is not None, min(0.8, end - time.monotonic()))
        status = old.gone()
        took = time.monotonic() - old.told_to_stop_at
        if status is not None:
            what = f"worker-1 is gone after {took:.1f} of {GRACE:g} s, exit status {status}"
            self.timeline.event("platform", f"{what}: no SIGKILL", colour="magenta")
            return
        self.had_to_kill = True
        self.timeline.event(
            "platform", f"sends SIGKILL to worker-1 after {took:.1f} s", colour="red"
        )
        old.kill()
        self._pump(lambda: not old.running, 5.0)
        self.history.killed(old.name, time.monotonic())

    # -- what the workers tell -----------------------------------------------------

    def _pump(self, until: Callable[[], bool], seconds: float) -> bool:
        """Take in news for up to ``seconds``, or until something holds; whether it does."""
        end = time.monotonic() + seconds
        while not until():
            left = end - time.monotonic()
            if left <= 0:
                return False
            try:
                worker, news = self._news.get(timeout=min(left, 0.05))
            except queue.Empty:
                continue
            self._take_in(worker, news)
        return True

    def _take_in(self, worker: Worker, news: Fact | LogLine | Ready | Ended) -> None:
        if isinstance(news, Fact):
            self.history.add(news)
            self._show(news)
        elif isinstance(news, Ready):
            self._ready.add(worker.name)
            self.timeline.event(worker.name, f"is ready ({self.pool})", colour="bold")
        elif isinstance(news, LogLine):
            self.timeline.event(worker.name, f"log: {news}", colour="dim")
        else:
            worker.has_ended()

    def _show(self, fact: Fact) -> None:
        is_short = fact.task not in LONG_ONES
        if fact.what == "received" or (fact.what == "started" and is_short):
            return  # too many to show
        words = {
            "interrupted": f"interrupted {fact.detail}; its message goes back",
            "resumed": f"goes on {fact.detail}",
            "failed": f"failed: {fact.detail}",
        }
        colour = "" if is_short and fact.what == "finished" else _COLOURS.get(fact.what, "")
        what = words.get(fact.what, fact.what)
        self.timeline.event(fact.worker, what, fact.task, at=fact.at, colour=colour)
