"""Where a task is, and why it does not run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from itertools import chain
from typing import Any

from celery import states
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend

from celery_graceful.claims.claimant import node_of
from celery_graceful.claims.lease import live_workers
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.messages.routing import DELAYED, known_queues
from celery_graceful.operations import checkpoints
from celery_graceful.operations.asking import ask
from celery_graceful.operations.claims import claims_of
from celery_graceful.operations.history import history_of
from celery_graceful.operations.pasting import pasted
from celery_graceful.operations.plain_workers import find_taken
from celery_graceful.operations.queues import Place, Unsure, find_in_queues, lengths
from celery_graceful.operations.records import Claim, RunningTask, Why, Worker, utc
from celery_graceful.operations.stores import Stores, writable
from celery_graceful.poison.quarantine import find
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.unusable.waiting import WaitingRoom

__all__ = ["Search"]

#: Seconds that the result backend gets.
RESULT_TIMEOUT = 1.5


class Search:
    """The search for one task.

    Args:
        app: The Celery app.
        stores: Where its workers are known.
        workers: Those that live.
        wait: Seconds that workers get to answer.
        task_id: Of the task.
    """

    def __init__(
        self, app: Any, stores: Stores, workers: Sequence[Worker], wait: float, task_id: str
    ) -> None:
        self.app, self.stores, self.workers, self.wait = app, stores, workers, wait
        self.id = task_id
        #: Why nobody can say whether it has ended.
        self._no_result = ""
        #: What its result says, where it has not ended.
        self._status = ""
        #: Why the broker has not answered: it is asked no more.
        self._away: BrokerAway | None = None

    def why(self) -> Why:
        """Look wherever it can be, from where it has got furthest.

        Raises:
            StoreAway: Redis does not answer.
        """
        looks = (
            self._claimed,
            self._held,
            self._quarantined,
            self._unknown,
            self._queued,
            self._ended,
            self._elsewhere_taken,
        )
        for look in looks:
            found = look()
            if found is not None:
                return found
        elsewhere = self._elsewhere()
        if elsewhere and self._status == states.RETRY:
            said = "it waits for its next try, as its result says: RETRY"
            return Why(self.id, "", "queued", (said, *elsewhere, *self._past("", "queued")))
        said_of_it = (self._nowhere(), *elsewhere, *self._past("", "unknown"))
        return Why(self.id, "", "unknown", said_of_it, stuck=True)

    # -- where it can be -----------------------------------------------------------------

    def _claimed(self) -> Why | None:
        claim = next((c for c in claims_of(self.stores) if c.id == self.id), None)
        if claim is None:
            return None
        node = node_of(claim.worker)
        no_writes = [] if claim.worker_lives else writable(self.stores)[1]
        if no_writes:
            held = "runs" if claim.begun else "holds"
            said = f"{node} {held} it, as far as is known: its lease could not be renewed, since "
            said += f"Redis takes no writes: {no_writes[0]}"
            state = "running" if claim.begun else "claimed"
            return self._why(
                claim.task, state, said, claim.worker, claim.queue, stuck=True, mend="doctor"
            )
        if not claim.worker_lives:
            said = f"{node} holds it, and is dead: others give it back to {claim.queue}"
            return self._why(
                claim.task, "claimed", said, claim.worker, claim.queue, stuck=True, mend="rescue"
            )
        told = self._ask([claim.worker]).get(node)
        if claim.begun or (told and told["running"]):
            return self._runs(claim.task, claim.worker, told, claim.queue)
        full = writable(self.stores)[1] if told is None else []
        if full:  # then nobody can be asked
            said = (
                f"{node} holds it, and Redis takes no writes: {full[0]}; if it has ended, it runs "
            )
            said += "again when that does"
            return self._why(
                claim.task, "claimed", said, claim.worker, claim.queue, stuck=True, mend="doctor"
            )
        said = f"{node} holds it, and {self._waits(claim, told)}"
        return self._why(claim.task, "claimed", said, claim.worker, claim.queue)

    def _held(self) -> Why | None:
        """Without a claim: on other brokers, or acknowledged when it began."""
        for worker in self.workers:
            for task in worker.running:
                if task.id == self.id:
                    told = {"task": task.task, "seconds": task.seconds, "running": True}
                    return self._runs(task.task, worker.id, told)
        unnamed = [w.id for w in self.workers if w.running_count > len(w.running)]
        asked = unnamed if self.stores.with_claims else [w.id for w in self.workers]
        for node, told in self._ask(asked).items() if asked else ():
            worker_id = next(w.id for w in self.workers if w.name == node)
            if told["running"]:
                return self._runs(told["task"], worker_id, told)
            said = f"{node} holds it, and {_waiting(told['waits_for'])}"
            return self._why(told["task"], "claimed", said, worker_id)
        return None

    def _quarantined(self) -> Why | None:
        for store in self.stores.workers:
            kept = find(store, self.id)
            if kept is not None:
                said = f"in quarantine since {utc(kept.at):%Y-%m-%d %H:%M:%SZ}: {kept.why}"
                mend = pasted(["quarantine", "show"], self.id)
                return self._why(kept.task, "quarantined", said, stuck=True, mend=mend)
        return None

    def _unknown(self) -> Why | None:
        """Set aside, since no worker that has seen it knows its task."""
        rooms = [WaitingRoom(s, b) for s in self.stores.workers for b in self.stores.brokers]
        for room in rooms:
            kind = room.find(self.id)
            if kind is not None:
                said = f"no worker of {kind.queue} that has seen it knows {kind.name}: "
                seen = live_workers(room.store, room.broker)
                said += "deploy one that does" if seen else "it is set aside, and none sees to it"
                mend = "" if seen else "rescue"
                return self._why(kind.name, "queued", said, "", kind.queue, stuck=True, mend=mend)
        return None

    def _queued(self) -> Why | None:
        for store in self.stores.workers if self.stores.with_claims else ():
            try:
                found = find_in_queues(self.app, store, self.id)
            except Unsure as exc:
                return self._why("", "queued", f"it may be in a queue: {exc}")
            if found is not None:
                return self._waits_in(found)
        return None

    def _ended(self) -> Why | None:
        found: dict[str, Any] = {}
        if not native.bounded(lambda: found.update(self._result()), RESULT_TIMEOUT):
            self._no_result = "the result backend has not answered"
        state = found.get("status")
        if state not in states.READY_STATES:
            self._status = "" if state in (None, states.PENDING) else str(state)
            return None
        at, name = found.get("date_done"), str(found.get("name") or "")
        return self._why(name, "done", f"it has ended: {state}{_when(at)}")

    def _elsewhere_taken(self) -> Why | None:
        """By a worker without this package, or without claims."""
        taken = find_taken(self.app, self.stores, self.id)
        task, back = (taken.task, utc(taken.back_at)) if taken else ("", None)
        if_dead = f"if that dies, it comes back at {back:%Y-%m-%d %H:%M:%SZ}" if back else ""
        for node, (state, info) in self._others_hold().items():
            name = str(info.get("name") or task)
            if state == "active":
                said = f"it runs on {node}, which has no claims: {if_dead or 'it may be lost'}"
                return self._why(name, "running", said, node)
            return self._why(name, "claimed", f"{node} holds it, without a claim; {if_dead}", node)
        if taken is None:
            return None
        said = "a worker without claims (plain Celery) has taken it, and does not answer"
        mend = ""
        if taken.member is not None:
            mend = pasted(["batches", "resend", f"--member={self.id}"], taken.member.batch)
        return self._why(task, "claimed", f"{said}; {if_dead}", stuck=True, mend=mend)

    def _others_hold(self) -> dict[str, Any]:
        """What workers that are not known here say of it: ``active`` or not, and what it is."""
        try:
            said = self._asked("query_task", ids=[self.id])
        except BrokerAway:
            return {}
        return {
            node: told[self.id]
            for node, told in said.items()
            if isinstance(told, dict) and self.id in told
        }

    def _result(self) -> dict[str, Any]:
        """What the result backend says; nothing where it cannot."""
        try:
            backend = self.app.backend
            if isinstance(backend, (DisabledBackend, RPCBackend)):
                self._no_result = "results are kept for nobody, or for who has sent the task alone"
                return {}
            return dict(backend.get_task_meta(self.id))
        except Exception as exc:  # each backend has errors of its own
            self._no_result = f"the result backend has not answered: {describe(exc)}"
            return {}

    # -- what is said of it ----------------------------------------------------------------

    def _runs(self, task: str, worker: str, told: Any, queue: str = "") -> Why:
        seconds = (told or {}).get("seconds") or self._known_seconds()
        lasts = "" if seconds is None else f" for {seconds:.0f} s"
        left = next((w.seconds_left for w in self.workers if w.id == worker), None)
        stops = "" if left is None else f"; that stops, and gives it up in {left:.0f} s"
        said = f"it runs on {node_of(worker)}{lasts}{stops}"
        return self._why(task, "running", said, worker, queue)

    def _known_seconds(self) -> float | None:
        running: list[RunningTask] = [task for w in self.workers for task in w.running]
        return next((task.seconds for task in running if task.id == self.id), None)

    def _waits(self, claim: Claim, told: Any) -> str:
        now = dt.datetime.now(dt.timezone.utc)
        if claim.eta is not None and claim.eta > now:
            return f"waits for its time, {claim.eta:%Y-%m-%d %H:%M:%SZ}"
        if told is None:
            return "has not answered what it waits for: room in the pool, most likely"
        return _waiting(told["waits_for"])

    def _waits_in(self, found: Place) -> Why:
        said = f"it waits in the queue {found.queue}, at place {found.place} of {found.total}"
        consumers = [w for w in self.workers if found.queue in w.queues]
        fetching = [w.name for w in consumers if w.fetches]
        mend = ""
        if fetching:
            who = f"consumed by {', '.join(fetching[:5])}"
        elif consumers:
            who = f"of those that consume it, none fetches: {consumers[0].name} is quiet"
            if consumers[0].seconds_left is None:
                mend = pasted(["resume"], consumers[0].name)
        else:
            others = self._others(found.queue)
            who = f"consumed by {', '.join(others[:5])}" if others else "nobody consumes it"
            if others is None:
                who = "workers could not be asked who consumes it"
            fetching = others or []
            if others == []:
                who += f": start a worker with --queues {found.queue}"
        more: dict[str, Any] = {
            "place": found.place,
            "queue": found.queue,
            "stuck": not fetching,
            "mend": mend,
        }
        return self._why(found.task, "queued", f"{said}; {who}", **more)

    def _others(self, queue: str) -> list[str] | None:
        """Workers that consume a queue, as they answer themselves: plain ones, too.

        ``None`` if they cannot be asked.
        """
        try:
            said = self._asked("active_queues")
        except BrokerAway:
            return None
        return sorted(
            node
            for node, queues in said.items()
            if isinstance(queues, list) and any(each.get("name") == queue for each in queues)
        )

    def _nowhere(self) -> str:
        said = ["no worker holds it"]
        if self.stores.with_claims:
            said.append("it is in no queue")
        result = f"its result is {self._status}" if self._status else "it has no result"
        said.append(self._no_result or result)
        heard_of = not self.stores.with_claims or self._no_result or self._status
        return ("" if heard_of else "nobody has heard of it: ") + ", ".join(said)

    def _elsewhere(self) -> tuple[str, ...]:
        """Where a broker cannot be looked into."""
        if self.stores.with_claims:
            return ()
        try:
            if self._away is not None:
                raise self._away
            queues = chain(known_queues(self.app), *(w.queues for w in self.workers))
            found = lengths(self.app, queues)
        except BrokerAway as exc:
            return (f"it may be in a queue: the broker does not answer: {exc}",)
        said = [
            f"it may be in {queue}: {count} wait there, and "
            + (f"{consumers} consume it" if consumers else "nobody consumes it")
            for queue, (count, consumers) in found.items()
            if count and queue not in DELAYED
        ]
        delayed = sum(count for queue, (count, _) in found.items() if queue in DELAYED)
        if delayed:
            said.append(f"it may wait for its time: {delayed} do, in queues celery_delayed_N")
        if said:
            said.append("the broker does not say what is in its queues")
        return tuple(said)

    def _why(
        self, task: str, state: str, said: str, worker: str = "", queue: str = "", **more: Any
    ) -> Why:
        return Why(self.id, task, state, (said, *self._past(task, state)), worker, queue, **more)

    def _past(self, task: str, state: str) -> list[str]:
        """What it has been through."""
        said = []
        store = self.stores.store
        tasks = [(task, self.id)] if task else checkpoints.find(store, self.app.tasks, self.id)
        saved = next(filter(None, (checkpoints.read(store, *each) for each in tasks)), None)
        if saved is not None and saved.where and state != "done":
            said.append(f"it has saved that it is {saved.where}")
        if saved is not None and saved.interruptions:
            anew = ", and has saved nothing: each run starts over" * saved.is_empty
            said.append(f"interrupted {_times(saved.interruptions)}{anew * (state != 'done')}")
        key = [f"graceful:deaths:{self.id}"]
        died = sum(int(each.execute("ZCARD", key, insist=True)) for each in self.stores.workers)
        if died:
            said.append(f"the process that ran it died {_times(died)}")
        for last in history_of(self.stores, self.id).moments[-1:]:
            if last.kind == state:  # in quarantine: said already
                continue
            on = f"on {last.worker}" if last.worker else ""
            how = ", ".join(filter(None, (on, last.reason, last.where)))
            kind = last.kind.replace("_", " ")
            said.append(f"last: {kind} at {last.at:%Y-%m-%d %H:%M:%SZ}, {how}".rstrip(", "))
        return said

    def _asked(
        self, command: str, workers: Sequence[str] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """What workers answer.

        Raises:
            BrokerAway: The broker has not answered, now or before.
        """
        if self._away is not None:
            raise self._away
        try:
            return ask(self.app, command, self.wait, workers, **arguments)
        except BrokerAway as exc:
            self._away = exc
            raise

    def _ask(self, workers: Sequence[str]) -> dict[str, Any]:
        """What workers hold of it, by their names; what cannot be asked has not answered."""
        try:
            said = self._asked("graceful_status", workers, task_id=self.id)
        except BrokerAway:
            return {}
        held = {node: (told or {}).get("tasks") for node, told in said.items()}
        return {node: tasks[0] for node, tasks in held.items() if tasks}


def _when(at: Any) -> str:
    """As result backends say it: a time, mostly of UTC, or its text; nothing where they do not."""
    if isinstance(at, str):
        try:
            at = dt.datetime.fromisoformat(at.replace("Z", "+00:00"))
        except ValueError:
            return f", {at}"
    if not isinstance(at, dt.datetime):
        return ""
    at = at if at.tzinfo else at.replace(tzinfo=dt.timezone.utc)
    return f", {at.astimezone(dt.timezone.utc):%Y-%m-%d %H:%M:%SZ}"


def _waiting(what: str) -> str:
    return {
        "eta": "waits for its time",
        "rate limit": "waits for the rate limit of its task",
    }.get(what, "waits for room in the pool")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
