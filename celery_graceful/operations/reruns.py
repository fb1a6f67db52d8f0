"""What becomes of the tasks of a worker that was killed: watched until each of them runs again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from celery_graceful.claims.claimant import node_of
from celery_graceful.operations import checkpoints
from celery_graceful.operations.claims import claims_of
from celery_graceful.operations.records import Claim, Kill, KilledTask, Worker, utc
from celery_graceful.operations.stores import Stores
from celery_graceful.operations.why import Search
from celery_graceful.operations.workers import workers_of
from celery_graceful.settings import Settings

__all__ = ["Reruns"]

#: Seconds between two looks; and that one may take when time is up.
PAUSE, LONGEST = 0.2, 5.0

Tell = Callable[[Sequence[KilledTask]], object]


class Reruns:
    """The tasks of one worker, which was killed a moment ago.

    Args:
        app: The Celery app.
        stores: Where its workers are known.
        settings: What the user set.
        wait: Seconds that workers get to answer.
        victim: The worker, as it was before.
    """

    def __init__(
        self, app: Any, stores: Stores, settings: Settings, wait: float, victim: Worker
    ) -> None:
        self.app, self.stores, self.settings, self.wait = app, stores, settings, wait
        self.victim = victim
        self.began = time.time()
        self._clock = time.monotonic()
        self.tasks = list(self._held())

    def follow(self, timeout: float, on_change: Tell) -> None:
        """Look until nothing is left to wait for, for ``timeout`` seconds at most.

        Args:
            timeout: Seconds since the kill.
            on_change: Called with those whose state has changed.

        Raises:
            StoreAway: Redis does not answer.
        """
        until = self._clock + timeout
        while True:
            on_change(self._look(until))
            left = until - time.monotonic()
            if left <= 0 or all(task.is_settled for task in self.tasks):
                return
            time.sleep(min(PAUSE, left))

    def kill(self) -> Kill:
        """What was found."""
        waited = round(time.monotonic() - self._clock, 1)
        name, tasks = self.victim.name, tuple(self.tasks)
        return Kill(self.victim.id, name, utc(self.began), waited, tasks)

    # -- what it held ----------------------------------------------------------------------

    def _held(self) -> Iterator[KilledTask]:
        """Claims, which do not change any more; what ran without one, a heartbeat says.

        Where its lease was lost meanwhile, others have the claim of what it still ran.
        """
        claims = list(claims_of(self.stores))
        mine = [claim for claim in claims if claim.worker == self.victim.id]
        for claim in mine:
            if claim.id:  # else it is a message of something else
                yield KilledTask(claim.id, claim.task, claim.begun)
        known = {claim.id for claim in mine}
        moved = {claim.id for claim in claims} - known
        last = {worker.id: worker for worker in workers_of(self.stores, self.settings)}
        for task in last.get(self.victim.id, self.victim).running:
            if task.id in known:
                continue
            if task.id in moved or not self._claims(task.task):  # else it has just ended
                yield KilledTask(task.id, task.task, begun=True)

    def _claims(self, name: str) -> bool:
        """Whether a task that runs has a claim, as far as is known."""
        return self.stores.with_claims and not self._is_early(name)

    def _is_early(self, name: str) -> bool:
        task = self.app.tasks.get(name)
        return task is not None and not task.acks_late

    # -- where it is now -------------------------------------------------------------------

    def _look(self, until: float) -> list[KilledTask]:
        """Those of which there is something new, as far as there is time to look.

        A broker that hangs costs a wait for each task.
        """
        until = max(until, time.monotonic() + LONGEST)
        claims = {claim.id: claim for claim in claims_of(self.stores)}
        others = [
            worker
            for worker in workers_of(self.stores, self.settings)
            if worker.id != self.victim.id
        ]
        running = {task.id: worker for worker in others for task in worker.running}
        changed = []
        for at, task in enumerate(self.tasks):
            if task.is_settled:
                continue
            if time.monotonic() > until:
                break
            found = self._find(task, claims.get(task.id), running.get(task.id), others)
            if (found.state, found.worker) != (task.state, task.worker):
                seconds = round(time.monotonic() - self._clock, 1)
                self.tasks[at] = replace(found, seconds=seconds)
                changed.append(self.tasks[at])
        return changed

    def _find(
        self, task: KilledTask, claim: Claim | None, runs_on: Worker | None, others: list[Worker]
    ) -> KilledTask:
        if claim is not None and claim.worker == self.victim.id:
            return task
        if claim is not None and claim.begun:
            return self._runs(task, node_of(claim.worker))
        if runs_on is not None:
            return self._runs(task, runs_on.name)
        if claim is not None:
            return replace(task, state="back", worker=node_of(claim.worker))
        if not task.begun and self.stores.with_claims:
            return replace(task, state="back")
        return self._search(task, others)

    def _runs(self, task: KilledTask, worker: str) -> KilledTask:
        saved = checkpoints.read(self.stores.store, task.task, task.id)
        said = "" if saved is None else saved.where
        return replace(task, state="running", worker=worker, said=said)

    def _search(self, task: KilledTask, others: Sequence[Worker]) -> KilledTask:
        """It is in nobody's hands, as far as claims and heartbeats say."""
        found = Search(self.app, self.stores, others, self.wait, task.id).why()
        said = found.sentences[0]
        if found.state in ("done", "quarantined"):
            return replace(task, state=found.state, worker="", said=said)
        if found.state == "running":
            return self._runs(task, node_of(found.worker))
        if found.state in ("queued", "claimed"):
            return replace(task, state="back", worker=node_of(found.worker), said=said)
        if self._is_early(task.task):
            return replace(task, state="lost", said="it was acknowledged before it ran")
        if self.stores.with_claims and task.state == "unknown":  # that twice: it was on its way
            return replace(task, state="done", said="it has ended, and has no result")
        return replace(task, state="unknown", said="; ".join(found.sentences[:2]))
