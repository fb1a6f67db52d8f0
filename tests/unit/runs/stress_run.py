"""Stress for `celery_graceful.runs.run`, in a process of its own: see `test_run.py`.

One thread runs thousands of short tasks. Another one interrupts them, the way a pool does, at
moments that nobody chose:

* `async`: `PyThreadState_SetAsyncExc`, as in the threads pool; the tasks run in a thread;
* `signal`: SIGURG by `pthread_kill`, as in prefork and solo; the tasks run in the main thread;
* `timer`: SIGURG's handler, driven by `setitimer`; the tasks run in the main thread.

Usage: `python -m tests.unit.runs.stress_run <delivery> <runs> <scenario>...`. Prints "ok" and what
was seen of each scenario, or raises.
"""

from __future__ import annotations

import collections
import gc
import io
import itertools
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable

from celery.app.task import Context
from celery.exceptions import Retry

from celery_graceful import interruptible, shield
from celery_graceful.exceptions import Interrupted, ShutdownTimeLimit
from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.pools import wake_signal
from celery_graceful.pools.threads import send_to
from celery_graceful.runs import log_locks
from celery_graceful.runs.run import Run, current, execute, runs
from celery_graceful.task import successor
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines

#: Seconds that a scenario takes at most: a slow machine gets fewer tasks.
SECONDS = 4.0

#: Seconds after which an exception that has not come is lost; the machine may stand still for some.
LOST = 60.0

seen: collections.Counter[str] = collections.Counter()
board = Board.create()
deadlines = Deadlines(grace=9e6, soft=7e6, hard=8e6, source="a test")


def begin_stop() -> None:
    board.begin_stop(deadlines, InterruptReason.SHUTDOWN)


def soften() -> None:
    begin_stop()
    board.enter(Phase.SOFT)


def all_over() -> None:
    board.memory[0:7] = bytes(7)


# -- the ways to interrupt -----------------------------------------------------------


def notify_async() -> None:
    send_to(list(runs.values()))


def notify_signal() -> None:
    signal.pthread_kill(threading.main_thread().ident, wake_signal.SIGNAL)


def notify_timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-5))


def pause() -> None:
    """Somewhere between nothing and many switches of threads."""
    loops = random.choice((-1, 0, 10, 100, 1000))
    for _ in range(loops):
        pass
    if loops < 0:
        time.sleep(0)


# -- scenarios: (body of the task, what the other thread does over and over) ---------


class Wrong(Exception):
    """A promise was broken."""


def expect(fact: bool, what: str) -> None:
    if not fact:
        raise Wrong(what)


def until_raised(work: Callable[[], object]) -> None:
    """Work until an exception comes from outside."""
    end = time.monotonic() + LOST
    while time.monotonic() < end:
        work()
    run = current()
    assert run is not None
    state = {name: getattr(run, name) for name in ("_window", "_shields", "_made", "_sent")}
    raise Wrong(f"an exception was lost: {state} {seen} {board.phase!r} {board.interrupted}")


def nothing() -> None:
    pass


def shields() -> None:
    with shield():
        pass


def nested_shields() -> None:
    with shield():
        with shield(), shield():
            pass
        with shield():
            pass


def interruptibles() -> None:
    with interruptible():
        pass


WORK = (nothing, shields, nested_shields, interruptibles)


def run_plain(body: Callable[[], None]) -> None:
    """As a task that is not graceful."""
    try:
        execute(Run("id", "name", graceful=False), body, (), {})
    except ShutdownTimeLimit:
        seen["limit"] += 1
    else:
        seen["returned"] += 1


class Ended:
    """A task that has returned is not interrupted any more; what it returned comes back."""

    def __init__(self) -> None:
        self.done: set[int] = set()

    def attack(self, notify: Callable[[], None]) -> None:
        soften()
        notify()
        pause()
        all_over()

    def task(self, number: int) -> None:
        try:
            # In C: there is no moment between "is in the set" and "has returned".
            result = execute(Run("id", "name", graceful=True), self.done.add, (number,), {})
        except (Interrupted, ShutdownTimeLimit):
            expect(number not in self.done, "a task that had returned was interrupted")
            seen["interrupted"] += 1
        else:
            expect(number in self.done and result is None, "no result of a task that returned")
            seen["returned"] += 1


class Failed:
    """An exception of the task's own comes out, unless it was interrupted before."""

    def attack(self, notify: Callable[[], None]) -> None:
        Ended.attack(self, notify)  # type: ignore[arg-type]

    def task(self, number: int) -> None:
        try:
            execute(Run("id", "name", graceful=True), {}.__getitem__, (number,), {})
        except KeyError as exc:
            expect(exc.args == (number,), "another exception than the task's own")
            seen["failed"] += 1
        except (Interrupted, ShutdownTimeLimit):
            seen["interrupted"] += 1
        else:
            raise Wrong("a failure became a success")


class Once:
    """What is due is raised, and once, however often the run is asked."""

    def __init__(self) -> None:
        self.ready = False

    def attack(self, notify: Callable[[], None]) -> None:
        if self.ready:
            soften()
            notify()
            pause()

    def task(self, number: int) -> None:
        self.ready = False
        all_over()
        work = (nothing, shields, nested_shields)[number % 3]
        caught = False

        def body() -> None:
            nonlocal caught
            try:
                self.ready = True
                until_raised(work)
            except ShutdownTimeLimit:
                caught = True
            for _ in range(5):
                pause()
                work()

        try:
            execute(Run("id", "name", graceful=False), body, (), {})
        except ShutdownTimeLimit:
            expect(not caught, "raised twice")
            seen["before the body"] += 1
        else:
            seen["limit"] += 1


class Both:
    """Interrupted first and ShutdownTimeLimit later, each notified of once: the last one comes.

    The first one comes as well, unless the second one overtakes it.
    """

    def __init__(self) -> None:
        self.turn = 0
        self.ready: int | None = None

    def attack(self, notify: Callable[[], None]) -> None:
        if self.ready != self.turn:
            return
        pause()
        begin_stop()
        notify()
        pause()
        soften()
        notify()
        self.turn += 1

    def task(self, number: int) -> None:
        all_over()
        work = WORK[number % len(WORK)]
        came: list[str] = []

        def body() -> None:
            try:
                with interruptible():
                    self.ready = number
                    until_raised(work)
            except Interrupted:
                came.append("Interrupted")
            until_raised(nothing)

        try:
            execute(Run("id", "name", graceful=True), body, (), {})
        except ShutdownTimeLimit as exc:
            came += ["Interrupted"] * (not came and isinstance(exc.__context__, Interrupted))
            came.append("ShutdownTimeLimit")
        seen[", ".join(came)] += 1
        while self.turn == number:  # what still comes now comes from the past
            pause()


class Shielded:
    """Nothing is raised inside a shield, and nothing after an ended one that did not come."""

    def attack(self, notify: Callable[[], None]) -> None:
        (soften if random.random() < 0.5 else begin_stop)()
        notify()
        pause()
        if random.random() < 0.3:
            all_over()

    def task(self, number: int) -> None:
        inside = 0

        def body() -> None:
            nonlocal inside
            for _ in range(3):
                with interruptible(), shield():
                    inside = 1
                    pause()
                    with shield():
                        inside = 2
                        pause()
                        with interruptible():
                            inside = 3
                            pause()
                    with interruptible():
                        inside = 4
                        pause()
                    inside = 0

        try:
            execute(Run("id", "name", graceful=True), body, (), {})
        except (Interrupted, ShutdownTimeLimit):
            expect(not inside, f"raised inside a shield, at {inside}")
            seen["interrupted"] += 1
        else:
            seen["returned"] += 1


class Blocks:
    """Interrupted is raised inside of `interruptible` blocks alone."""

    def attack(self, notify: Callable[[], None]) -> None:
        begin_stop()
        notify()
        pause()
        all_over()

    def task(self, number: int) -> None:
        inside = False

        def body() -> None:
            nonlocal inside
            for _ in range(5):
                inside = True
                with interruptible():
                    nothing()
                    with interruptible():
                        nothing()
                    nothing()
                inside = False
                pause()

        try:
            execute(Run("id", "name", graceful=True), body, (), {})
        except Interrupted:
            expect(inside, "Interrupted outside of an interruptible block")
            seen["interrupted"] += 1
        else:
            seen["returned"] += 1


class Plain:
    """A task that is not graceful sees ShutdownTimeLimit alone."""

    def attack(self, notify: Callable[[], None]) -> None:
        if random.random() < 0.5:
            begin_stop()
            notify()
        else:
            soften()
            notify()
            pause()
            all_over()

    def task(self, number: int) -> None:
        def body() -> None:
            for _ in range(3):
                with interruptible(), shield():
                    nothing()
                pause()

        run_plain(body)


class Sent:
    """A task that has sent its retry ends by that, and sends none where it was interrupted."""

    request = Context(called_directly=False)

    def attack(self, notify: Callable[[], None]) -> None:
        Shielded.attack(self, notify)  # type: ignore[arg-type]

    def task(self, number: int) -> None:
        sent = False

        def retry() -> None:
            nonlocal sent
            pause()
            sent = True
            pause()
            raise Retry

        def body() -> None:
            try:
                with interruptible():
                    successor.retry(self, retry)
            finally:
                with interruptible(), shield():
                    pause()

        try:
            execute(Run("id", "name", graceful=True), body, (), {})
        except (Interrupted, ShutdownTimeLimit):
            expect(not sent, "interrupted, and sent as well")
            seen["interrupted"] += 1
        except Retry:
            expect(sent, "a retry that was not sent")
            seen["retry"] += 1


class Logged:
    """Who is interrupted while it writes a line of the log keeps nobody else from doing so."""

    def __init__(self) -> None:
        # Where a thread stands is looked at first: as in a worker, nothing else runs in between.
        sys.setswitchinterval(0.005)
        log_locks.install()
        logging.raiseExceptions = False  # a limit that lands in there is one of the handler
        self.handler = logging.StreamHandler(io.StringIO())
        self.log = logging.getLogger("stress")
        self.log.propagate = False
        self.log.handlers = [self.handler]

    def attack(self, notify: Callable[[], None]) -> None:
        Ended.attack(self, notify)  # type: ignore[arg-type]

    def task(self, number: int) -> None:
        def body() -> None:
            for _ in range(20):
                self.log.warning("a line")

        run_plain(body)
        expect(not self.handler.lock._is_owned(), "the lock of a handler is held for ever")
        self.handler.setStream(io.StringIO())


SCENARIOS = {
    cls.__name__.lower(): cls
    for cls in (Ended, Failed, Once, Both, Shielded, Blocks, Plain, Sent, Logged)
}
DELIVERIES = {"async": notify_async, "signal": notify_signal, "timer": notify_timer}


def stress(delivery: str, scenario: str, count: int) -> None:
    seen.clear()
    all_over()
    plan = SCENARIOS[scenario]()
    over = False
    end = time.monotonic() + SECONDS
    crash: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as exc:
            crash.append(exc)

    def attack() -> None:
        while not over:
            plan.attack(DELIVERIES[delivery])
            pause()

    def work() -> None:
        # An exception that lands out here is not caught by anybody: that is the point.
        for number in itertools.count():
            if number >= count or crash or time.monotonic() > end:
                break
            plan.task(number)
            if current() is not None:
                raise Wrong("a run was left behind")

    attacker = threading.Thread(target=guarded, args=(attack,))
    attacker.start()
    if delivery == "async":
        worker = threading.Thread(target=guarded, args=(work,))
        worker.start()
        worker.join()
    else:
        guarded(work)
    over = True
    attacker.join()
    for exc in crash:
        raise exc
    print("ok", scenario, *(f"{what}={times}" for what, times in seen.items()), flush=True)


def main(delivery: str, count: str, *scenarios: str) -> None:
    worker_state.attach(board)
    sys.setswitchinterval(1e-6)
    # What is raised in a finalizer, Python swallows: a worker raises it again later, nobody here.
    gc.collect()
    gc.disable()
    wake_signal.install()
    signal.signal(signal.SIGALRM, wake_signal.look)
    for scenario in scenarios:
        stress(delivery, scenario, int(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
