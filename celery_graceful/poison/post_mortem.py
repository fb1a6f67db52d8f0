"""Looks into deaths on behalf of one worker: of its children, and of runs left by other workers.

The store is asked in a thread, and what it says is carried out by the worker's loop: a store
that is slow holds up the delivery in question, and one that is away nothing.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.claims.begun import note_now
from celery_graceful.claims.claimant import claims_key
from celery_graceful.claims.fence import CLAIM
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.messages.fingerprint import fingerprint, fingerprint_as_text
from celery_graceful.poison.deaths import (
    NOT_HEARD,
    Death,
    condemn,
    count_deaths,
    say_deaths,
    take_back,
    tell_untold,
)
from celery_graceful.poison.delivered import Delivered
from celery_graceful.poison.owning_app import origin_of
from celery_graceful.poison.quarantine import Kept
from celery_graceful.poison.redelivered import Asked, Finding, look
from celery_graceful.poison.start_notes import LONG, StartNotes
from celery_graceful.store.app_stores import find_workers_store, settings_of
from celery_graceful.store.start_note import note_of
from celery_graceful.store.store import Store, StoreAway, fork_gate
from celery_graceful.system.describe import describe
from celery_graceful.system.portions import COUNT
from celery_graceful.timeline import worker_state

__all__ = ["PostMortems"]

logger = get_logger(__name__)

#: Seconds between looks at a lease that will be renewed or run out; the first of them at a run
#: that is about to end, as most are whose message is here.
LOOK_AGAIN, LOOK_SOON = 0.5, 0.05

#: What is known of a run whose worker has a lease, and whose message is here.
GONE = "the process that ran it is gone, or has lost its connection"

#: Seconds for which the message of what runs elsewhere is held. RabbitMQ closes the channel of
#: one that is held for too long, its own ``consumer_timeout``.
HOLD = 30.0


class _Again(NamedTuple):
    """A delivery that has come again.

    Attributes:
        request: The delivery.
        then: Called in the loop with whether it has ended elsewhere.
        alone: It waits while another worker, one that lives, runs it.
        until: But no longer than this, on the monotonic clock.
        pause: Seconds until the look after the next one.
        at: When to look.
        kills: It has been found out that it kills who runs it.
    """

    request: Delivered
    then: Callable[[bool], None]
    alone: bool
    until: float
    pause: float = LOOK_SOON
    at: float = 0.0
    kills: bool = False

    def asked(self) -> Asked:
        """What the store is asked."""
        message = fingerprint_as_text(fingerprint(self.request))
        return Asked(self.request.id, "", message, self.alone)


class PostMortems:
    """The post-mortems of one worker.

    Args:
        app: The Celery app.
        ring_loop: Makes the loop call ``on_loop``.
        in_process: A task that dies takes the worker with it.
    """

    def __init__(self, app: Any, ring_loop: Callable[[], None], *, in_process: bool) -> None:
        self.app = app
        self.settings = settings_of(app)
        #: Who we are. Where there are leases, the one that holds ours.
        self.worker = uuid.uuid4().hex
        self.ring_loop = ring_loop
        self.in_process = in_process
        self._has_run = False  # here, in this process
        #: Brokers that give back by themselves what a dead worker held.
        self.start_notes: StartNotes | None = None
        if self.store and is_amqp(app.connection_for_read()):
            self.start_notes = StartNotes(self.store, self.settings.poison_window)
        self._cases: deque[Callable[[], None]] = deque()
        #: What was delivered again: as it comes, and until it is known whether it may run.
        self._again: deque[_Again] = deque()
        self._waiting: list[_Again] = []
        self._verdicts: deque[Callable[[], None]] = deque()
        self._news = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    @property
    def store(self) -> Store | None:
        """Where the workers are known."""
        return find_workers_store(self.app)

    def known_as(self, worker: str) -> None:
        """Where the consumer is connected, the worker has a lease, under this id."""
        self.worker = worker

    def start(self) -> None:
        """Start the threads."""
        if find_workers_store(self.app) is not None:
            self._thread = threading.Thread(
                target=self._run, name="graceful-post-mortem", daemon=True
            )
            self._thread.start()
        if self.start_notes is not None:
            self.start_notes.run()

    def leave(self, seconds: float) -> None:
        """Bring to its end what is under way, in up to ``seconds``: what is told is told once."""
        self._ended = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def end(self, seconds: float) -> None:
        """The process goes on without a worker: end the threads, in up to ``seconds``."""
        if self.start_notes is not None:
            self.start_notes.end_thread(seconds)
        self.leave(seconds)

    def tell_soon(self) -> None:
        """Somebody went to quarantine, and is to be told of. From any thread."""
        self._decide(lambda: self._open(self._tell))

    # -- asked by the loop -----------------------------------------------------------

    def child_died(self, request: Delivered, then: Callable[[bool], None], how: str = "") -> bool:
        """The child that ran a delivery is dead.

        Args:
            request: The delivery.
            then: Called in the loop with whether its task is in quarantine now.
            how: It died, as the pool says it.

        Returns:
            Whether it will be: not where deaths are not counted.
        """
        if self.store is None or not self.settings.poison_limit:
            return False
        self._open(lambda: self._child_died(request, then, how))
        return True

    def delivered_again(
        self, request: Delivered, then: Callable[[bool], None], *, alone: bool
    ) -> bool:
        """A delivery is about to be handed over; as ``child_died``.

        It has to wait where the broker says that it was delivered before, and cannot say
        whether it ran.

        Args:
            request: The delivery.
            then: Called in the loop with whether it has ended elsewhere: in quarantine, or
                with another worker that could not acknowledge it.
            alone: It waits while another worker, one that lives, runs it.
        """
        again = request.delivery_info.get("redelivered") or request.request_dict.get(SENT_AGAIN)
        if self.start_notes is None or not again:
            return False
        self._again.append(_Again(request, then, alone, time.monotonic() + HOLD))
        self._news.set()
        return True

    def outlived(self, request: Delivered) -> None:
        """A run has ended, and its process lives, whose claim was another worker's by then."""
        claim, board = _claim(request), worker_state.board.value
        if claim is None or board is None:
            return
        store = find_workers_store(self.app, board.place_of(claim[0]))
        if store is not None:
            self._open(partial(take_back, store, request.id, *claim))  # else it stays counted

    def begins(self, request: Delivered) -> str | None:
        """A task is about to run; the note of it, if it has to be ended by ``ends``."""
        if request.claim is not None:
            if request.task.acks_late:
                if self.in_process:
                    first, self._has_run = not self._has_run, True
                    note_now(self.app, request.request_dict, first=first)
                request.claim.book.running.add(request.claim)
            return None
        if self.start_notes is None:
            return None
        delivery = request.request_dict[DELIVERY]
        note = note_of(self.worker, delivery, acks_late=request.task.acks_late)
        if self.in_process and request.delivery_info.get("redelivered"):
            # It may be what killed the one before us, and will kill us before a thread gets
            # to say so.
            self.start_notes.start_now(request.id, note)
        else:
            self.start_notes.start(request.id, note)
        return note

    def ends(self, task_id: str, note: str, ran: float, *, wake: bool) -> None:
        """A run has ended, or its task was given back.

        Args:
            task_id: Of the task.
            note: Of the run.
            ran: Seconds, if it has ended by itself.
            wake: False from a thread that the pool's monkey patching does not know.
        """
        if self.start_notes is not None:
            self.start_notes.end(task_id, note, later=ran >= LONG, wake=wake)

    def remember(self, task_id: str, note: str | None, message: str, *, wake: bool = True) -> None:
        """A run has ended whose acknowledgement may be lost: tell the other workers.

        Args:
            task_id: Of the task.
            note: Of the run.
            message: What its message is known by.
            wake: As for ``ends``.
        """
        if self.start_notes is not None and note is not None:
            self.start_notes.remember(task_id, note, message, wake=wake)

    def on_loop(self) -> None:
        """Carry out what was decided; in the loop."""
        while self._verdicts:
            verdict = self._verdicts.popleft()
            try:
                verdict()
            except Exception as exc:
                logger.error("After a post-mortem: %s", describe(exc), exc_info=True)

    # -- in the thread ---------------------------------------------------------------

    def _open(self, case: Callable[[], None]) -> None:
        self._cases.append(case)
        self._news.set()

    def _decide(self, verdict: Callable[[], None]) -> None:
        self._verdicts.append(verdict)
        self.ring_loop()

    def _run(self) -> None:
        while not self._ended:
            self._news.wait(self._until_next())
            self._news.clear()
            while self._cases:
                self._take_up(self._cases.popleft())
            while self._again:
                self._waiting.append(self._again.popleft())
            now = time.monotonic()
            due = [case for case in self._waiting if case.at <= now]
            self._waiting = [case for case in self._waiting if case.at > now]
            for start in range(0, len(due), COUNT):
                self._look_into(due[start : start + COUNT])

    def _take_up(self, case: Callable[[], None]) -> None:
        try:
            case()
        except StoreAway:
            pass  # said there
        except Exception as exc:  # the thread must not end: others wait for what it finds out
            logger.error("In a post-mortem: %s", describe(exc), exc_info=True)

    def _until_next(self) -> float | None:
        if not self._waiting:
            return None
        return max(0.0, min(case.at for case in self._waiting) - time.monotonic())

    def _tell(self) -> None:
        tell_untold(self.app)

    def _child_died(self, request: Delivered, then: Callable[[bool], None], how: str) -> None:
        quarantined = False
        assert self.store is not None
        try:
            deaths = self._count(request)
            with fork_gate:  # of all times, a pool forks when a child has died
                has_succeeded = request.has_succeeded()
            if has_succeeded:
                pass
            elif deaths >= self.settings.poison_limit:
                quarantined = self._condemn_here(request, deaths, self._death(request, how))
            else:
                died = (request.name, request.id, deaths, self._death(request, how))
                say_deaths(self.store, self.settings, [died])
        except StoreAway:
            pass  # said there; this death is not counted
        except Exception as exc:
            logger.error("Could not count a death of %s: %s", request.humaninfo(), describe(exc))
        self._decide(lambda: then(quarantined))
        if quarantined:
            self._tell()

    def _death(self, request: Delivered, how: str) -> Death:
        """Of a child of ours, which ran that alone."""
        what = Death().what + (f" of {how}" if how else "")
        return Death(self.worker, what, f"{self.worker}/{request.request_dict[DELIVERY]}")

    def _count(self, request: Delivered) -> int:
        assert self.store is not None
        delivery = request.request_dict[DELIVERY]
        if self.start_notes is not None:
            return self._look(Asked(request.id, f"|{delivery}"))[0].deaths
        death = {request.id: _claim(request) or (delivery, "")}
        return count_deaths(self.store, self.settings, death)[request.id]

    def _look_into(self, cases: Sequence[_Again]) -> None:
        """Into all that were delivered again, in a few steps: while these take, none of them runs.

        Others may have left hundreds, and the store may be far away.
        """
        try:
            findings = self._look(*(case.asked() for case in cases))
        except Exception as exc:
            if len(cases) == 1 or isinstance(exc, StoreAway):
                for case in cases:
                    (self._look_later if case.kills else self._let_run)(case, exc)
            else:  # the message of one of them is odd
                for case in cases:
                    self._look_into([case])
            return
        now = time.monotonic()
        verdicts: list[Callable[[], None]] = []
        died: list[tuple[str, str, int, Death]] = []
        poisoned: list[tuple[_Again, int, Death]] = []
        for case, found in zip(cases, findings, strict=True):
            request = case.request
            gone = GONE if found.unsure else NOT_HEARD
            death = Death(found.left_by, gone, found.left_by)
            if found.verdict == "runs" and now > case.until:
                verdicts.append(request.put_off)
            elif found.verdict in ("wait", "runs") and not request.has_left:
                self._wait(case, now)
            elif found.verdict == "poisoned":
                poisoned.append((case, found.deaths, death))
            else:
                if found.verdict == "run" and found.news:
                    deaths = found.deaths + found.unsure
                    died.append((request.name, request.id, deaths, death))
                elif found.verdict == "ended":
                    text = "%s has ended with another worker: acknowledged"
                    logger.info(text, request.humaninfo())
                verdicts.append(partial(case.then, found.verdict in ("ended", "kept")))
        assert self.store is not None
        say_deaths(self.store, self.settings, died)
        for verdict in verdicts:
            self._decide(verdict)
        self._condemn(poisoned)
        if poisoned or any(found.verdict == "kept" for found in findings):
            self._take_up(self._tell)

    def _let_run(self, case: _Again, exc: Exception) -> None:
        if not isinstance(exc, StoreAway):  # that is said there
            logger.error("Could not look into %s: %s", case.request.humaninfo(), describe(exc))
        self._decide(partial(case.then, False))

    def _condemn(self, cases: Sequence[tuple[_Again, int, Death]]) -> None:
        tasks: list[tuple[Kept, Death]] = []
        there: list[_Again] = []
        for case, deaths, death in cases:
            try:
                tasks.append((self._kept(case.request, deaths, death), death))
                there.append(case)
            except Exception as exc:
                self._let_run(case, exc)
        assert self.store is not None
        try:
            done = condemn(self.store, self.settings, tasks)
        except Exception as exc:
            for case in there:
                self._look_later(case, exc)
            return
        for case, is_done in zip(there, done, strict=True):
            self._decide(partial(case.then, is_done))

    def _look_later(self, case: _Again, exc: Exception) -> None:
        """It kills who runs it: not for a store that is away for a moment."""
        now = time.monotonic()
        if isinstance(exc, StoreAway) and now < case.until:
            self._wait(case._replace(kills=True), now)
        else:
            self._let_run(case, exc)

    def _wait(self, case: _Again, now: float) -> None:
        later = min(2 * case.pause, LOOK_AGAIN)
        self._waiting.append(case._replace(at=now + case.pause, pause=later))

    def _look(self, *tasks: Asked) -> list[Finding]:
        assert self.store is not None
        return look(self.store, self.settings, self.worker, *tasks)

    def _kept(self, request: Delivered, deaths: int, death: Death) -> Kept:
        """What goes to quarantine of a delivery without a claim."""
        return Kept.of_message(request.message, **self._rest(deaths, death))

    def _rest(self, deaths: int, death: Death) -> dict[str, Any]:
        rest = {"why": "", "deaths": deaths, "worker": death.worker or self.worker}
        return rest | origin_of(self.app)

    def _condemn_here(self, request: Delivered, deaths: int, death: Death) -> bool:
        """What has killed a child of ours; whether it is in quarantine now."""
        assert self.store is not None
        claim = _claim(request)
        if claim is None:
            kept = self._kept(request, deaths, death)
            return all(condemn(self.store, self.settings, [(kept, death)]))
        claimed = self.store.execute("HGET", [claims_key(claim[0])], [claim[1]])
        if claimed is None:
            return False  # it is somebody else's already
        key, _, raw = claimed.partition("\0")
        kept = Kept.of_claim(key, raw, **self._rest(deaths, death))
        return all(condemn(self.store, self.settings, [(kept, death)], [claim]))


def _claim(request: Delivered) -> tuple[str, str] | None:
    """Worker and number of its claim, where there are claims."""
    worker, _, number = request.request_dict.get(CLAIM, "").rpartition("/")
    return (worker, number) if number else None
