"""Run by ``test_green_locks`` in a process of its own: ``python green_sections.py gevent``.

A finalizer that waits, for Redis for instance, can be run by the garbage collector inside of any
guarded section: there, other greenlets of the thread run, and want in as well. Here each section
has one.
"""

# ruff: noqa: E402 (patched first)
from __future__ import annotations

import faulthandler
import signal
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

HUB, *ONLY = sys.argv[1:]

if HUB == "gevent":
    from gevent import monkey

    monkey.patch_all()
    from gevent import get_hub, sleep, spawn

    hub_greenlet = get_hub()

    def in_hub(call: Callable[[], None]) -> None:
        get_hub().loop.run_callback(call)

    def join(greenlets: list[Any]) -> None:
        for each in greenlets:
            each.get()
else:
    import eventlet

    eventlet.monkey_patch()
    from eventlet import sleep, spawn
    from eventlet.hubs import get_hub

    hub_greenlet = get_hub().greenlet

    def in_hub(call: Callable[[], None]) -> None:
        get_hub().schedule_call_global(0, call)

    def join(greenlets: list[Any]) -> None:
        for each in greenlets:
            each.wait()


from celery import Celery
from greenlet import getcurrent

from celery_graceful.batches.ends import Ends
from celery_graceful.claims.claimant import Claimant
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.lease_validity import LeaseValidity
from celery_graceful.deliveries.duplicates import Duplicates
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.requeue import Requeue
from celery_graceful.deliveries.stage import Stage
from celery_graceful.poison.start_notes import StartNotes
from celery_graceful.runs.run import Run
from celery_graceful.store.store import Store
from celery_graceful.system import native, process

allocate_lock = native._allocate_lock()
plain_lock = native.Lock()
main = native.thread_ident()


def finalizer() -> None:
    """That of something that was forgotten: it waits, where that is possible."""
    if native.thread_ident() == main and getcurrent() is not hub_greenlet:
        sleep(0)
        sleep(0.001)


class LockWithFinalizer:
    """As that of ``_thread``; a finalizer runs when it was acquired."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self.release, self.locked = self._lock.release, self._lock.locked

    def acquire(self, *how: Any) -> bool:
        acquired = bool(self._lock.acquire(*how))
        if acquired:
            finalizer()
        return acquired

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


native._allocate_lock = lambda: LockWithFinalizer  # type: ignore[assignment]
process._lock = native.Lock()


class Held(MagicMock):
    """A delivery."""

    def move(self, stage: Stage) -> None:
        self.stage = stage


def claims() -> list[Callable[[], Any]]:
    book = Claims(MagicMock())
    tags = [book.tag("worker", number) for number in range(3)]
    return [
        lambda: [book.ack(tag) for tag in tags],
        lambda: [book.end_with(tag, "an end") for tag in tags],
        lambda: (book.take_done("worker"), book.not_sent("worker")),
        lambda: (book.take_done("worker"), book.sent("worker")),
        lambda: (book.left(), book.flush(0.0)),
    ]


def ledger() -> list[Callable[[], Any]]:
    book = Ledger(MagicMock(), MagicMock())
    held = [Held(stage=Stage.RUNNING, claim=None, told_to_end=False) for _ in range(3)]
    for each in held:
        book.enter(each)

    def leave() -> None:
        with book.leaving:
            pass

    return [
        leave,
        lambda: book.move(held, Stage.HANDED_OVER, only=[Stage.RUNNING]),
        lambda: [book.not_handed_over(each) for each in held],
        lambda: [book.close(each, Stage.FINISHED, only=[Stage.RUNNING]) for each in held],
    ]


def ends() -> list[Callable[[], Any]]:
    told = Ends(Celery(set_as_current=False), MagicMock(), MagicMock())
    told._send = lambda hurry: None  # type: ignore[method-assign]
    return [
        lambda: told.note(MagicMock(), MagicMock()),
        lambda: told.note(MagicMock(), MagicMock(), MagicMock()),
        lambda: told.wait_no_more(),
    ]


def store() -> list[Callable[[], Any]]:
    it = Store("a test", MagicMock())
    return [lambda: it._failed("why", time.monotonic()), lambda: it._answered(time.monotonic())]


def start_notes() -> list[Callable[[], Any]]:
    notes = StartNotes(MagicMock(), 60.0)
    return [
        lambda: notes.start("task", "run"),
        lambda: notes.end("task", "run", later=True),
        lambda: notes.remember("task", "run", "message"),
        notes.flush,
    ]


def claimant() -> list[Callable[[], Any]]:
    who = Claimant("worker")
    return [lambda: who.take_numbers(3)] * 2


def lease_validity() -> list[Callable[[], Any]]:
    return [LeaseValidity(MagicMock(), 10.0).was_away] * 2


def duplicates() -> list[Callable[[], Any]]:
    known = Duplicates(MagicMock())
    return [lambda: known._owes(("task", "queue"), "note")] * 2  # type: ignore[arg-type]


def requeue() -> list[Callable[[], Any]]:
    back = Requeue(MagicMock(), MagicMock())
    return [lambda: back._defer([MagicMock()]), back.flush]


def slots() -> list[Callable[[], Any]]:
    slot: process.Slot[int] = process.Slot("a test", int, in_fork=process.emptied)

    def fill() -> None:
        owner = process.Owner()
        owner.fill(slot, 1)
        owner.end()

    return [fill, fill]


def run() -> list[Callable[[], Any]]:
    """Its coroutines may be in several greenlets."""
    one = Run("task", "name", graceful=True)
    return [one.raise_due, lambda: one.due_for(set(), anywhere=True)]


def hub() -> list[Callable[[], Any]]:
    """One that waits for what its own greenlet holds cannot wait for long."""
    lock, said = native.Lock(), []

    def wait() -> None:
        try:
            with lock:
                pass
        except RuntimeError as exc:
            said.append(exc)

    def hold() -> None:
        with lock:
            in_hub(wait)
            while not said:
                sleep(0.01)

    return [hold]


def thread() -> list[Callable[[], Any]]:
    """What a real thread holds is waited for as ever; and it waits for what a greenlet holds."""
    lock, sum_of = native.Lock(), [0]

    def add() -> None:
        for _ in range(20):
            with lock:
                before = sum_of[0]
                native.pause(0.0005)
                sum_of[0] = before + 1

    def start() -> None:
        threads = [native.start_thread(add, "a test") for _ in range(2)]
        add()
        while not all(each.wait(0.0) for each in threads):
            sleep(0.01)

    def check() -> None:
        while sum_of[0] < 80:  # for ever, where two of them added to the same
            sleep(0.01)

    return [start, add, check]


def signals() -> list[Callable[[], Any]]:
    """Wherever a handler raises, the lock is not left held."""

    def interrupt(*_: Any) -> None:
        raise InterruptedError

    def attack() -> None:
        raised = inside = 0
        before = signal.signal(signal.SIGALRM, interrupt)
        set_timer, began = signal.setitimer, time.monotonic()
        while raised < 200 and time.monotonic() < began + 30:
            try:
                set_timer(signal.ITIMER_REAL, 5e-5)
                for _ in range(100_000):
                    with plain_lock:
                        inside += 1
            except InterruptedError:
                raised += 1
            assert not plain_lock.locked()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        assert raised > 10

    return [attack]


def fork_gate() -> list[Callable[[], Any]]:
    """Who forks waits for itself neither: what one of its greenlets does meanwhile goes on."""
    gate = native.ForkGate()

    def close() -> None:
        gate._close()
        finalizer()
        gate._open()

    def go() -> None:
        with gate:
            finalizer()

    return [go, close, go]


SECTIONS = [
    claims,
    ledger,
    ends,
    store,
    start_notes,
    claimant,
    lease_validity,
    duplicates,
    requeue,
    slots,
    run,
    thread,
    hub,
    signals,
    fork_gate,
]

if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)
    for section in SECTIONS:
        if not ONLY or section.__name__ in ONLY:
            join([spawn(call) for call in section()])
            print(section.__name__, flush=True)
    faulthandler.cancel_dump_traceback_later()
    native.original("os", "_exit")(0)
