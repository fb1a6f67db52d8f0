"""``Operations``: what operators see and do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from celery_graceful.batches.findings import InNeed, in_need
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.claims.claimant import node_of
from celery_graceful.history.entry import What
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.operations import checkpoints
from celery_graceful.operations.asking import ask, check_rabbit, tell, why_rabbit_away
from celery_graceful.operations.batches import Batches, awaited
from celery_graceful.operations.claims import claims_of
from celery_graceful.operations.findings import RECENT, Unknown, findings_of
from celery_graceful.operations.history import history_of, mark, of_late
from celery_graceful.operations.killing import check, kill
from celery_graceful.operations.plain_workers import count_taken
from celery_graceful.operations.quarantine import Quarantine
from celery_graceful.operations.queues import unconsumed
from celery_graceful.operations.records import (
    Answer,
    Checkpoint,
    Claim,
    DeadWorker,
    History,
    Kill,
    KilledTask,
    Moment,
    Status,
    Why,
    Worker,
    utc,
)
from celery_graceful.operations.reruns import Reruns
from celery_graceful.operations.rescue import Rescued, rescue
from celery_graceful.operations.stores import NoStore, Stores, broker_up, stores_of, writable
from celery_graceful.operations.waiting import waiting_of
from celery_graceful.operations.why import Search
from celery_graceful.operations.workers import dead_of, ids_of, workers_of
from celery_graceful.poison.quarantine import count
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import settings_of
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system.version import NAME

__all__ = ["Operations", "UnknownWorker"]


class UnknownWorker(LookupError):
    """No worker of that name has a lease; or more than one has, whose ids follow."""

    def __str__(self) -> str:
        if self.args[1:]:
            return f"there are {len(self.args) - 1} of that name: {', '.join(self.args[1:])}"
        return f"there is no worker {self.args[0]}; celery graceful status names those that live"


class Operations:
    """What operators see and do, of one app. Any process can make it; ``Graceful(app)`` has one.

    Reading never needs a worker to answer. All of it raises ``StoreAway`` where the store, or the
    Redis that is the broker, does not answer, and ``NoStore`` where there is none.

    Args:
        app: The Celery app.
        wait: Seconds, at most, that workers get to answer.
    """

    def __init__(self, app: Any, *, wait: float = 1.0) -> None:
        self.app, self.wait = app, wait

    @property
    def _stores(self) -> Stores:
        return stores_of(self.app)

    @property
    def _settings(self) -> Settings:
        return settings_of(self.app)

    # -- what there is -----------------------------------------------------------------

    def status(self) -> Status:
        """All workers, and what waits for somebody."""
        stores = self._stores
        workers = tuple(workers_of(stores, self._settings))
        dead = tuple(dead_of(stores))
        quarantined = sum(map(count, stores.workers))
        missing, left = _in_need(stores)
        waiting = waiting_of(stores)
        replicas, no_writes = writable(stores)
        without = count_taken(self.app, stores) if self._settings.reliable_fetch else 0
        nobody = not workers and not no_writes
        unknown = self._unknown_workers() if nobody or without else Unknown()
        found = findings_of(
            workers,
            dead,
            quarantined,
            missing,
            away=stores.away,
            no_writes=no_writes,
            replicas=replicas,
            waiting=waiting,
            batches_left=left,
            unconsumed=unconsumed(self.app, stores, workers),
            without_claims=without,
            late=of_late(stores, RECENT),
            unknown=unknown,
            rabbit_away=why_rabbit_away(self.app) if workers else "",
            broker_up=broker_up(stores),
        )
        tasks = dict(waiting.seen + waiting.unseen)
        at = utc(time.time())
        return Status(at, workers, dead, quarantined, missing, tuple(found), tasks, left)

    def workers(self) -> list[Worker]:
        """Workers whose lease runs, by name."""
        return workers_of(self._stores, self._settings)

    def dead_workers(self) -> list[DeadWorker]:
        """Workers whose lease has run out: dead, frozen or cut off."""
        return dead_of(self._stores)

    @property
    def quarantine(self) -> Quarantine:
        """Tasks that are not run again: seen, sent again, dropped."""
        return Quarantine(self.app)

    @property
    def batches(self) -> Batches:
        """Batches that have not ended, and remedies for those that do not."""
        return Batches(self.app, self._where_is)

    def batches_missing(self) -> list[str]:
        """Batches that have not ended, and that miss members, as of the last look for them."""
        return list(_in_need(self._stores).missing)

    @property
    def has_claims(self) -> bool:
        """Whether messages are claimed in Redis; other brokers alone know who holds what."""
        return self._stores.with_claims

    def claims(self, worker: str | None = None) -> Iterator[Claim]:
        """Messages that workers hold, those of the dead too; none where the broker is no Redis.

        Args:
            worker: Only that one's: the name of its node, or its id.

        Raises:
            UnknownWorker: There is none of that name, alive or dead.
        """
        stores = self._stores
        found = list(claims_of(stores, worker))
        if worker is not None and not found:
            known = [*ids_of(stores), *(one.id for one in dead_of(stores))]
            if not any(worker in (one, node_of(one)) for one in known):
                raise UnknownWorker(worker)
        return iter(found)

    def why(self, task_id: str) -> Why:
        """Where a task is, and why it does not run.

        Workers are asked where that says more, and so is the result backend; without an answer
        it says less.

        Args:
            task_id: Of the task.
        """
        found = self._where_is(task_id)
        return awaited(self._stores.store, found) if found.state == "unknown" else found

    def history(self, task_id: str | None = None) -> History:
        """What has happened to a task, or to all of them, where it was not as usual.

        It is kept for ``graceful_history_ttl``, and written a moment after it has happened.

        Args:
            task_id: Of one task. Without: of the fleet, with its deploys.
        """
        return history_of(self._stores, task_id)

    def interrupted(self) -> list[Moment]:
        """Of the history of the fleet: tasks that were interrupted, or given up; oldest first."""
        kinds = {What.INTERRUPTED.value, What.GIVEN_UP.value}
        return [moment for moment in self.history().moments if moment.kind in kinds]

    def resumed(self) -> list[Moment]:
        """The same, of those that went on from what was saved."""
        return [one for one in self.history().moments if one.kind == What.RESUMED.value]

    def mark_deploy(self, text: str) -> Moment:
        """Enter a deploy into the history of the fleet, to see what it has done.

        Args:
            text: What it is, such as a version.
        """
        return mark(self._stores, self._settings, text)

    # -- what tasks have saved -----------------------------------------------------------

    def checkpoint(self, task_id: str, task: str | None = None) -> Checkpoint | None:
        """What is saved of a task; ``None`` for nothing.

        Args:
            task_id: Its id.
            task: Its name. Without, all keys of the store are walked through.
        """
        store = self._stores.store
        if task is not None:
            return checkpoints.read(store, task, task_id)
        return next(self._saved(store, task_id), None)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """All that is saved, in no order."""
        return self._saved(self._stores.store)

    def _saved(self, store: Store, task_id: str = "") -> Iterator[Checkpoint]:
        for name, found in checkpoints.find(store, self.app.tasks, task_id):
            saved = checkpoints.read(store, name, found)
            if saved is not None:
                yield saved

    def clear_checkpoint(self, task_id: str, task: str | None = None) -> bool:
        """Delete what is saved of a task: its next run starts over. Whether there was something.

        One that runs saves again what it does from now on.

        Args:
            task_id: Its id.
            task: Its name. Without, all keys of the store are walked through.
        """
        store = self._stores.store
        if task is not None:
            return bool(checkpoints.clear(store, [(task, task_id)]))
        return bool(checkpoints.clear(store, checkpoints.find(store, self.app.tasks, task_id)))

    # -- what workers do -----------------------------------------------------------------

    def quiet(self, worker: str | None = None) -> list[Answer]:
        """Have a worker, or all, fetch nothing more: a deploy's first step. Tasks go on.

        Args:
            worker: Its node name, or the id of one boot; ``None`` for all.

        Raises:
            UnknownWorker: There is none of that name.
            BrokerAway: The broker does not answer.
        """
        return self._tell("graceful_quiet", worker)

    def resume(self, worker: str | None = None) -> list[Answer]:
        """Have a worker, or all, that are quiet fetch again. Errors are those of ``quiet``.

        Args:
            worker: Its node name, or the id of one boot; ``None`` for all.
        """
        return self._tell("graceful_resume", worker)

    def stop(self, worker: str) -> list[Answer]:
        """Have a worker drain, and end, as by SIGTERM. Errors are those of ``quiet``.

        Args:
            worker: Its node name, or the id of one boot.
        """
        return self._tell("graceful_stop", worker)

    def rescue(self, *, dry_run: bool = False) -> list[Rescued]:
        """Give back what the dead hold, a record a server; workers do so by themselves.

        And what was set aside for a worker that knows its task, where none of ours lives to look
        after it. What dead workers hold RabbitMQ gives back itself: where nothing was set aside
        either, there is no record.

        Args:
            dry_run: Only look who is dead, and what waits.

        Raises:
            NoStore: It is another broker, which keeps what they hold: see what it says.
        """
        return rescue(self.app, dry_run=dry_run)

    def to_kill(self, worker: str) -> tuple[Worker, list[Worker]]:
        """The worker of that name, if it can be killed from here; and the others.

        Args:
            worker: Its node name, or the id of one boot.

        Raises:
            UnknownWorker: There is none of that name, or more than one: name it by its id.
            CannotKill: Why not, and what to do instead.
            BrokerAway: RabbitMQ does not answer: nobody would get what the worker holds.
            StoreAway: Redis does not answer, or takes no writes: the same.
        """
        known = self.workers()
        named = [one for one in known if worker in (one.id, one.name)]
        if not named:
            self._check_leases()
        if len(named) != 1:
            raise UnknownWorker(worker, *(one.id for one in named))
        no_writes = self.no_writes()
        if no_writes:
            raise StoreAway(f"nobody could give back what it holds: {_not_written(no_writes)}")
        check_rabbit(self.app)
        check(named[0])
        return named[0], [one for one in known if one is not named[0]]

    def kill_worker(
        self,
        worker: str,
        *,
        timeout: float = 60.0,
        on_change: Callable[[Sequence[KilledTask]], object] = lambda tasks: None,
    ) -> Kill:
        """Kill a worker on this machine by SIGKILL, and wait until its tasks run again.

        Args:
            worker: The name of its node, or its id.
            timeout: Seconds, at most.
            on_change: Called with those of its tasks whose state has changed.

        Raises:
            UnknownWorker, CannotKill, BrokerAway: As of ``to_kill``. Nothing was done.
            StoreAway: Redis does not answer. Whether the worker was killed is said.
        """
        victim, _ = self.to_kill(worker)
        kill(victim)
        try:
            reruns = Reruns(self.app, self._stores, self._settings, self.wait, victim)
            reruns.follow(timeout, on_change)
        except StoreAway as exc:
            said = "was killed, and what becomes of its tasks cannot be seen"
            raise StoreAway(f"{victim.name} {said}: {exc}") from exc
        return reruns.kill()

    def no_writes(self) -> list[str]:
        """Why servers take no writes: then leases there run out, and say nothing of workers."""
        return writable(self._stores)[1]

    def _unknown_workers(self) -> Unknown:
        """Who answers, with a lease or without."""
        try:
            # Not by a command of ours: of that plain workers have a traceback in their logs.
            said = ask(self.app, "stats", self.wait)
        except BrokerAway as exc:
            return Unknown(away=str(exc))
        plain = {node for node, told in said.items() if NAME not in (told or ())}
        return Unknown(sorted(plain), sorted(said.keys() - plain))

    def _where_is(self, task_id: str) -> Why:
        stores = self._stores
        workers = workers_of(stores, self._settings)
        return Search(self.app, stores, workers, self.wait, task_id).why()

    def _check_leases(self) -> None:
        """Look whether it means something that there is no lease.

        Raises:
            StoreAway: It does not: none could be renewed.
        """
        no_writes = self.no_writes()
        if no_writes:
            raise StoreAway(
                f"no lease can be renewed, so no worker is known: {_not_written(no_writes)}"
            )

    def _tell(self, command: str, worker: str | None) -> list[Answer]:
        try:
            known = ids_of(self._stores)
        except NoStore:  # whoever answers is there
            return tell(self.app, command, self.wait, None if worker is None else [worker])
        if worker is not None:
            known = [one for one in known if worker in (one, node_of(one))]
        if not known:
            self._check_leases()
            if worker is not None:
                raise UnknownWorker(worker)
        try:
            return tell(self.app, command, self.wait, known) if known else []
        except BrokerAway as exc:
            no_writes = self.no_writes()
            if not no_writes:
                raise
            raise StoreAway(f"workers cannot be told: {_not_written(no_writes)}") from exc


def _not_written(why: Sequence[str]) -> str:
    return f"Redis takes no writes: {why[0]}; celery graceful doctor says what mends it"


def _in_need(stores: Stores) -> InNeed:
    ledger = BatchLedger(stores.store)
    return in_need(ledger, ledger.stood_still(0))
