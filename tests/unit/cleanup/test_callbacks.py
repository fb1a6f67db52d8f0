"""Callbacks and resources of one process: once, in order, in time, whoever comes by."""

from __future__ import annotations

import gc
import inspect
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
from billiard import pool as billiard_pool
from celery import Celery
from celery.concurrency import asynpool
from hypothesis import given
from hypothesis import strategies as st

from celery_graceful import Graceful
from celery_graceful.cleanup import callbacks, time_limit
from celery_graceful.phases import InterruptReason
from celery_graceful.system.process import itself
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from tests.support.threads import in_threads

TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    """A registry of the test's own, in a process that runs tasks and is a worker's main one."""
    monkeypatch.setattr(callbacks._entries, "value", {})
    monkeypatch.setattr(callbacks._queue.value, "last", None)
    monkeypatch.setattr(callbacks._scopes, "value", frozenset({"process", "worker", "everywhere"}))
    yield
    for slot in (callbacks._scopes, callbacks.exit_timeout):
        itself.leave(slot)


@pytest.fixture
def graceful():
    made = Graceful(Celery("test", set_as_current=False))
    made.app.conf.graceful_exit_timeout = TIMEOUT  # no machine stands still for as long
    return made


def a_resource(graceful, log, name):
    return graceful.resource(
        open=lambda: log.append(f"open {name}") or name,
        close=lambda value: log.append(f"close {value}"),
        name=name,
    )


def script(code, *args):
    """Run a script of its own; it has `graceful`, `say` and what it imports."""
    head = """
        import gc, os, select, signal, sys, threading, time
        from celery import Celery
        from celery_graceful import Graceful
        from celery_graceful.cleanup import callbacks
        graceful = Graceful(Celery("script"))
        def say(*words):
            os.write(1, (" ".join(map(str, words)) + "\\n").encode())
        """
    return subprocess.run(
        [sys.executable, *args, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


# -- order ---------------------------------------------------------------------------


def test_callbacks_then_those_of_the_worker_then_resources(graceful):
    log = []
    first, second = (a_resource(graceful, log, name) for name in ("first", "second"))
    graceful.on_exit(log.append, "worker 1", scope="worker")
    graceful.on_exit(log.append, "1")
    graceful.on_exit(log.append, "2", scope="everywhere")
    graceful.on_exit(log.append, "worker 2", scope="worker")
    second.get(), first.get()
    callbacks.run()
    assert log[2:] == ["2", "1", "worker 2", "worker 1", "close first", "close second"]
    callbacks.run()
    assert len(log) == 8


@pytest.mark.parametrize(
    ("here", "run"),
    [
        ((), ["everywhere"]),
        (("process",), ["everywhere", "process"]),
        (("worker",), ["everywhere", "worker"]),
        (("process", "worker"), ["everywhere", "process", "worker"]),
    ],
)
def test_scopes(graceful, here, run):
    log = []
    callbacks.enter(*here)
    for scope in ("worker", "process", "everywhere"):
        graceful.on_exit(log.append, scope, scope=scope)
    callbacks.run()
    assert log == run


def test_what_a_callback_registers_and_opens_runs_too(graceful):
    log = []
    db = a_resource(graceful, log, "db")

    @graceful.on_exit
    def last():
        graceful.on_exit(log.append, "registered at exit")
        log.append(db.get())

    callbacks.run()
    assert log == ["open db", "db", "registered at exit", "close db"]


# -- the surface ---------------------------------------------------------------------


def test_a_decorated_function_is_still_one(graceful):
    @graceful.on_exit
    def plain(number=1):
        """Says what it is."""
        return number

    @graceful.on_exit(scope="worker", timeout=3)
    def with_options():
        return "yes"

    assert plain(2) == 2
    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Says what it is."
    assert with_options() == "yes"


def test_a_handle_cancels_once(graceful):
    log = []
    handle = graceful.on_exit(log.append, 1)
    assert handle.cancel() is True
    assert handle.cancel() is False
    late = graceful.on_exit(log.append, 2)
    callbacks.run()
    assert late.cancel() is False
    assert log == [2]


def test_arguments_reach_the_callback(graceful):
    log = []
    graceful.on_exit(lambda *args, **kwargs: log.append((args, kwargs)), 1, 2, key="value")
    callbacks.run()
    assert log == [((1, 2), {"key": "value"})]


async def an_async_function():
    pass


def a_generator():
    yield 1


class Yields:
    def __call__(self):
        yield 1


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda g: g.on_exit(print, scope="planet"), ValueError, "planet.*process, worker"),
        (lambda g: g.on_exit(print, timeout=0), ValueError, "timeout 0"),
        (lambda g: g.on_exit(print, timeout=float("inf")), ValueError, "timeout inf"),
        (lambda g: g.on_exit(3), TypeError, "3 cannot be called"),
        (lambda g: g.on_exit(an_async_function), TypeError, "an_async_function is async"),
        (lambda g: g.on_exit(a_generator), TypeError, "a_generator is a generator.*`graceful.reso"),
        (lambda g: g.on_exit(scope="worker")(a_generator), TypeError, "is a generator function"),
        (lambda g: g.on_exit(partial(a_generator)), TypeError, "is a generator function"),
        (lambda g: g.on_exit(Yields()), TypeError, "is a generator function"),
        (lambda g: g.resource(open=a_generator, close=print), TypeError, "a_generator is a gener"),
        (lambda g: g.resource(open=print, close=a_generator), TypeError, "a_generator is a gener"),
        (lambda g: g.resource(print), TypeError, "no generator function"),
        (lambda g: g.resource(open=print), TypeError, "both open and close"),
        (lambda g: g.resource(print, open=print, close=print), TypeError, "both open and close"),
        (lambda g: g.resource(open=an_async_function, close=print), TypeError, "is async"),
        (lambda g: g.resource(open=print, close=print, timeout=-1), ValueError, "timeout -1"),
    ],
)
def test_what_cannot_work_is_refused_at_once(graceful, call, error, match):
    with pytest.raises(error, match=match):
        call(graceful)


# -- resources -----------------------------------------------------------------------


def test_a_generator_is_a_resource(graceful):
    log = []

    @graceful.resource
    def db():
        """The database."""
        log.append("open")
        yield "connection"
        log.append("close")

    assert db.__name__ == "db"
    assert db.__doc__ == "The database."
    assert not db.is_open
    assert log == []
    with db() as one, db() as other:
        assert one == other == db.get() == "connection"
    assert db.is_open
    assert log == ["open"]
    callbacks.run()
    assert not db.is_open
    assert log == ["open", "close"]


def test_closed_by_hand_it_opens_again(graceful):
    log = []
    db = a_resource(graceful, log, "db")
    db.close()
    db.get()
    db.close()
    db.close()
    db.get()
    callbacks.run()
    assert log == ["open db", "close db"] * 2


def test_a_resource_that_does_not_open_is_tried_again(graceful):
    answers = [OSError("no route"), OSError("no route"), "connection"]

    @graceful.resource
    def db():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        yield answer

    for _ in range(2):
        with pytest.raises(OSError, match="no route"):
            db.get()
    with db() as connection:
        assert connection == "connection"
    assert db.is_open


def test_generators_that_yield_too_little_or_too_much(graceful, caplog):
    @graceful.resource
    def none():
        yield from ()

    @graceful.resource(name="the two")
    def two():
        yield 1
        yield 2

    with pytest.raises(RuntimeError, match="none did not yield"):
        none.get()
    two.get()
    callbacks.run()
    assert "Closing the two raised" in caplog.text
    assert "yielded a second time" in caplog.text


def test_a_resource_that_needs_itself(graceful):
    @graceful.resource
    def db():
        yield db.get()

    with pytest.raises(RuntimeError, match=r"opening .*db needs .*db"):
        db.get()


# -- isolation and time ----------------------------------------------------------------


class Stop(BaseException):
    pass


def test_a_resource_that_would_be_a_coroutine_is_refused_where_it_is_opened(graceful):
    async def connect():
        raise AssertionError("nobody awaits it")

    db = graceful.resource(open=lambda: connect(), close=print)
    for _ in range(2):
        with pytest.raises(TypeError, match="is a coroutine, give a plain function: no event loop"):
            db.get()
    assert not db.is_open


def test_a_coroutine_that_nobody_awaits_is_said(graceful, caplog):
    """One that only the call shows: of a lambda, for instance."""
    log = []
    graceful.on_exit(log.append, "others")
    graceful.on_exit(lambda: an_async_function())
    pool = graceful.resource(open=lambda: "pool", close=lambda _: an_async_function(), name="pool")
    pool.get()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="is a coroutine, give a plain function: no event loop"):
            pool.close()
        pool.get()
        callbacks.run()
        gc.collect()
    assert log == ["others"]
    assert [record.getMessage().rpartition(".")[2] for record in caplog.records] == [
        "<lambda> raised",
        "Closing pool raised",
    ]
    assert caplog.text.count("is a coroutine, give a plain function: no event loop runs") == 2


@pytest.mark.parametrize("exc", [ValueError, SystemExit, KeyboardInterrupt, Stop])
def test_one_that_raises_costs_no_other_its_run(graceful, caplog, exc):
    log = []

    def raises():
        raise exc("as it shall")

    graceful.on_exit(log.append, 1)
    graceful.on_exit(raises)
    graceful.on_exit(log.append, 2)
    callbacks.run()
    assert log == [2, 1]
    assert "raises raised" in caplog.text


def hangs_asleep():
    while True:
        time.sleep(3600)


def hangs_on_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def hangs_and_swallows():
    while True:
        try:
            hangs_asleep()
        except Exception:
            pass


def hangs_in_python():
    while True:
        pass


HANGS = [hangs_asleep, hangs_on_a_lock, hangs_and_swallows, hangs_in_python]


@pytest.mark.parametrize("hangs", HANGS)
@pytest.mark.parametrize("timeout", [0.1, None])
def test_one_that_hangs_costs_no_other_its_run(graceful, caplog, monkeypatch, hangs, timeout):
    slow = SimpleNamespace(monotonic=lambda: time.monotonic() / 100)  # for a machine that stalls
    monkeypatch.setattr(callbacks, "time", slow)
    graceful.app.conf.graceful_exit_timeout = 0.9
    log = []
    graceful.on_exit(log.append, 1)
    graceful.on_exit(hangs, timeout=timeout)
    graceful.on_exit(log.append, 2)
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    callbacks.run()
    assert log == [2, 1]
    assert f"{hangs.__name__} did not end within {timeout or '0.'}" in caplog.text
    assert time.monotonic() - started < TIMEOUT
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_many_that_hang_end_together_in_time(graceful, caplog, monkeypatch):
    graceful.app.conf.graceful_exit_timeout = 2.0
    now, limit, log = [0.0], [0.0], []

    def call(fn, seconds):
        limit[0] = seconds
        fn()

    def hangs():  # as long as it may, on a machine that is never busy
        now[0] += limit[0]
        raise time_limit.Overrun

    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(time_limit, "call", call)
    graceful.on_exit(log.append, 1)
    for _ in range(5):
        graceful.on_exit(hangs, timeout=10)
    callbacks.run()
    assert 1.0 < now[0] <= 2.0
    assert caplog.text.count("hangs did not end") == 5
    assert log == [1]


def test_it_may_be_late_for_one_that_is_quick(graceful, monkeypatch):
    log = []
    for number in range(10):
        graceful.on_exit(log.append, number)
    quick = itertools.count(step=0.0001)  # seconds, on a machine that is never busy
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(quick)))
    callbacks.run(end=0.0)
    assert log == list(reversed(range(10)))


@pytest.mark.parametrize(
    ("here", "last_resort", "left"),
    [
        ("worker", 100, 5),
        ("worker", 2, 1.7),
        ("process", 100, 5),
        ("process", 2, 1),
        ("process", -1, 0.1),
    ],
)
def test_a_stopping_worker_cleans_up_before_its_last_resort(
    monkeypatch, graceful, here, last_resort, left
):
    graceful.app.conf.graceful_exit_timeout = 5.0
    monkeypatch.setattr(worker_state.board, "value", Board.create())
    began = time.monotonic()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: began))
    callbacks.enter(here)
    assert callbacks.time_left() == pytest.approx(5, abs=0.05)
    worker_state.board.value.begin_stop(Deadlines(600, 400, 500, ""), InterruptReason.SHUTDOWN)
    assert (
        worker_state.board.value.last_resort_at - worker_state.board.value.requested_at
        == pytest.approx(560)
    )
    worker_state.board.value.leave_at(began + last_resort)
    assert callbacks.time_left() == pytest.approx(left, abs=0.05)
    assert (
        worker_state.board.value.grace_ends_at - worker_state.board.value.requested_at
        == pytest.approx(600)
    )


def test_what_there_is_no_time_for_is_named(graceful, caplog):
    log = []
    graceful.on_exit(log.append, 1)
    graceful.on_exit(hangs_asleep)
    callbacks.run(end=time.monotonic() - 1)
    assert log == []
    assert "No time left at exit, so not run: " in caplog.text
    assert "hangs_asleep" in caplog.text
    assert callbacks._left() == []


def test_in_another_thread_what_hangs_is_left_behind(graceful, caplog):
    graceful.app.conf.graceful_exit_timeout = TIMEOUT
    log = []
    graceful.on_exit(log.append, 1)
    let_go = threading.Event()
    graceful.on_exit(let_go.wait, timeout=0.1)
    graceful.on_exit(log.append, 2)
    thread = threading.Thread(target=callbacks.run)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    let_go.set()
    assert log == [2, 1]
    assert "wait did not end within 0.1 s" in caplog.text


def test_a_call_out_of_reach_is_left_behind():
    # In C, without a way back to the interpreter for a signal: here the signal is blocked.
    process = script("""
        graceful.app.conf.graceful_exit_timeout = 60
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        def out_of_reach():
            say("out of reach")
            select.select([], [], [])
        graceful.on_exit(say, "first", scope="everywhere")
        graceful.on_exit(out_of_reach, scope="everywhere", timeout=1)
        graceful.on_exit(say, "last", scope="everywhere")
        callbacks.run(on_stuck=lambda: os._exit(7))
        """)
    assert process.stdout.split("\n") == ["last", "out of reach", "first", ""], process.stderr
    assert process.returncode == 7
    assert "out_of_reach cannot be ended: going on without it" in process.stderr


def test_a_bad_setting_is_no_reason_not_to_clean_up(graceful, caplog):
    log = []
    graceful.app.conf.graceful_exit_timeout = "soon"
    graceful.on_exit(log.append, 1)
    callbacks.run()
    assert log == [1]
    assert "graceful_exit_timeout = 'soon' cannot be used" in caplog.text


# -- processes -------------------------------------------------------------------------


def test_a_script_runs_them_at_exit_also_when_it_fails():
    process = script("""
        graceful.on_exit(say, "process")
        graceful.on_exit(say, "worker", scope="worker")
        graceful.on_exit(say, "everywhere", scope="everywhere")
        @graceful.resource
        def db():
            yield say("open")
            say("close")
        db.get()
        raise ValueError
        """)
    assert process.stdout.split("\n") == ["open", "everywhere", "close", ""]
    assert process.returncode == 1


def test_nothing_is_paid_for_nothing():
    process = script("""
        def is_quick():  # it waits for nothing
            before, used = time.monotonic(), time.process_time()
            callbacks.run()
            assert threading.active_count() == 1
            return time.process_time() - used < 0.01 and time.monotonic() - before < 1

        def first():  # each is the first run of its process
            pid = os.fork()
            if pid == 0:
                try:
                    os._exit(0 if is_quick() else 3)
                finally:
                    os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status in (0, 3)
            return status == 0

        say(len(threading.enumerate()), "ctypes" in sys.modules and "loaded by others")
        assert any(first() for _ in range(10))  # others use the processor as well
        """)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("1 ")


FORK = """
    @graceful.resource
    def db():
        say("open", os.getpid() == parent)
        try:
            yield [os.getpid()]
        finally:
            say("close", os.getpid() == parent)

    @graceful.resource
    def unused():
        yield 1

    parent = os.getpid()
    graceful.on_exit(lambda: say("exit", os.getpid() == parent), scope="everywhere")
    of_parent = db.get()
    pid = os.fork()
    if pid == 0:
        assert not db.is_open
        if child == "uses":
            assert db.get() == [os.getpid()]
            assert db.get() is db.get()
        gc.collect()
        sys.exit(0)  # the whole way: atexit, and the end of all modules
    assert os.waitpid(pid, 0)[1] == 0
    assert db.get() is of_parent
    """


@pytest.mark.parametrize(
    ("child", "lines"),
    [
        ("uses", ["open True", "open False", "exit False", "close False"]),
        ("does not", ["open True", "exit False"]),
    ],
)
def test_a_fork_inherits_no_resource(child, lines):
    process = script(f"child = {child!r}" + textwrap.dedent(FORK))
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [*lines, "exit True", "close True"]


def test_a_fork_while_another_thread_opens():
    process = script("""
        opening, go_on = threading.Event(), threading.Event()
        @graceful.resource
        def db():
            opening.set()
            if os.getpid() == parent:
                go_on.wait()
            yield os.getpid()
        parent = os.getpid()
        thread = threading.Thread(target=db.get)
        thread.start()
        opening.wait()
        pid = os.fork()
        if pid == 0:
            assert db.get() == os.getpid()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        go_on.set()
        thread.join()
        assert db.get() == parent
        """)
    assert process.returncode == 0, process.stderr


# -- threads ---------------------------------------------------------------------------


@pytest.mark.parametrize("round", range(5))
def test_32_threads_open_and_register_at_once(graceful, quick_switches, round):
    graceful.app.conf.graceful_exit_timeout = TIMEOUT
    log = []
    got = []

    @graceful.resource
    def db():
        log.append("open")
        yield object()
        log.append("close")

    def use(number):
        got.append(db.get())
        graceful.on_exit(log.append, number)
        got.append(db.get())

    in_threads(32, use)
    assert len({id(value) for value in got}) == 1
    in_threads(8, lambda number: callbacks.run())
    assert log[0] == "open"
    assert log[-1] == "close"
    assert sorted(log[1:-1]) == list(range(32))


def test_32_threads_close_what_is_open_once(graceful, quick_switches):
    graceful.app.conf.graceful_exit_timeout = TIMEOUT
    log = []
    db = a_resource(graceful, log, "db")
    db.get()
    in_threads(32, lambda number: db.close() if number % 2 else callbacks.run())
    assert log == ["open db", "close db"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), st.sampled_from(["process", "worker", "everywhere"])),
        st.tuples(st.sampled_from(["cancel", "open", "close"]), st.integers(0, 3)),
        st.tuples(st.just("run"), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS)
def test_any_history_runs_each_once_and_in_order(steps):
    callbacks._entries.value.clear()
    graceful = Graceful(Celery("test", set_as_current=False))
    graceful.app.conf.graceful_exit_timeout = TIMEOUT
    log, expected = [], []
    resources = [a_resource(graceful, log, number) for number in range(4)]
    handles, waiting, opened = [], [], []

    def run():
        others = [h for h, scope in waiting if scope != "worker"]
        worker = [h for h, scope in waiting if scope == "worker"]
        expected.extend([*reversed(others), *reversed(worker)])
        expected.extend(f"close {number}" for number in reversed(opened))
        waiting.clear()
        opened.clear()
        callbacks.run()

    for what, which in steps:
        if what == "register":
            handles.append(graceful.on_exit(log.append, len(handles), scope=which))
            waiting.append((len(handles) - 1, which))
        elif what == "cancel" and which < len(handles):
            there = [entry for entry in waiting if entry[0] == which]
            assert handles[which].cancel() is bool(there)
            waiting[:] = [entry for entry in waiting if entry[0] != which]
        elif what == "open":
            if which not in opened:
                opened.append(which)
                expected.append(f"open {which}")
            assert resources[which].get() == which
        elif what == "close":
            if which in opened:
                opened.remove(which)
                expected.append(f"close {which}")
            resources[which].close()
        elif what == "run":
            run()
    run()
    assert log == expected
    assert callbacks._entries.value == {}


# -- what this stands on -----------------------------------------------------------------


def test_billiard_ends_a_child_as_we_think():
    source = inspect.getsource(billiard_pool.Worker._do_exit)
    told, dead = source.index("self.on_exit(pid, exitcode)"), source.index("DEATH")
    assert told < dead < source.index("os._exit(exitcode)"), source
    call = inspect.getsource(billiard_pool.Worker.__call__)
    assert call.index("self.after_fork()") < call.index("finally:") < call.rindex("_do_exit")
    assert "self.on_exit" in inspect.getsource(billiard_pool.Worker.__reduce__)


def test_billiard_starts_and_shrinks_a_pool_as_we_think():
    for pool in (billiard_pool.Pool, asynpool.AsynPool):
        parameters = list(inspect.signature(pool._create_worker_process).parameters)
        assert len(parameters) == 2, parameters
        assert "return" in inspect.getsource(pool._create_worker_process)
    assert "terminate_controlled()" in inspect.getsource(billiard_pool.Pool.shrink)
    from billiard.process import BaseProcess

    assert "self.terminate()" in inspect.getsource(BaseProcess.terminate_controlled)
    # A worker that cannot start: our turn (-100) comes after that of its pool.
    assert "exitpriority=15" in inspect.getsource(billiard_pool.Pool.__init__)


def test_logs_go_through_the_logger_of_the_package():
    assert callbacks.logger.name == "celery_graceful.cleanup.callbacks"
    assert logging.getLogger("celery_graceful.cleanup.callbacks") is callbacks.logger


def test_the_main_thread_is_reachable_and_others_are_not():
    answers = [time_limit.reachable()]
    thread = threading.Thread(target=lambda: answers.append(time_limit.reachable()))
    thread.start()
    thread.join(TIMEOUT)
    assert answers == [True, False]


def test_nothing_stays_alive_for_a_closed_resource(graceful):
    class Value:
        pass

    db = graceful.resource(open=Value, close=lambda value: None)
    db.get()
    db.close()
    gc.collect()
    # Not by isinstance: it asks a proxy what it stands for, which may be gone.
    assert not any(type(thing) is Value for thing in gc.get_objects())
    assert os.getpid() in db._states
