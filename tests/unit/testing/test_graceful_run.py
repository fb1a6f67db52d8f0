"""``graceful_run``: what happens to a task in a worker happens to it here."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import Ignore
from hypothesis import HealthCheck, given, settings

from celery_graceful import (
    Graceful,
    GracefulTask,
    Interrupted,
    InterruptReason,
    ShutdownTimeLimit,
    TooManyInterruptions,
    interrupted,
)
from celery_graceful.runs.run import current
from celery_graceful.testing import (
    NotReached,
    Outcome,
    graceful_run,
    interrupt_at,
    kill_at,
    schedules,
    tested_run,
)
from celery_graceful.testing.in_process_worker import InProcessWorker
from celery_graceful.timeline import worker_state
from tests.unit.testing.tracing import assert_sees_each_call_end

app = Celery("tested", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0")
Graceful(app)
_numbers = itertools.count()


def task(**options: Any) -> Any:
    """A task of a test's own."""
    return app.task(base=GracefulTask, bind=True, name=f"tested.{next(_numbers)}", **options)


@task()
def export(self: Any, rows: list[str], out: str = "all") -> int:
    self.step("open", str, out)
    for name in self.iterate(rows):
        self.step("write", str, name)
        self.state = {"last": name}
    return len(rows)


def test_undisturbed() -> None:
    run = graceful_run(export, ["a", "b"], out="b.csv")
    assert run.outcome is None
    assert run.resume().outcome is Outcome.SUCCEEDED
    assert run.result == 2
    assert [(row.number, row.item, row.done, row.repeated) for row in run.rows] == [
        (1, "a", 1, False),
        (2, "b", 1, False),
    ]
    assert all(row.saved for row in run.rows)
    assert list(run.steps) == ["open", "loop@null/write", "loop@1/write"]
    assert run.state == {"last": "b"}
    with pytest.raises(RuntimeError, match="has succeeded: make another run"):
        run.resume()


def test_interrupted_and_resumed() -> None:
    run = graceful_run(export, ["a", "b", "c"]).interrupt_after_step("loop@1/write")
    assert run.outcome is Outcome.INTERRUPTED
    assert run.outcome == "interrupted"
    assert run.state == {"last": "b"}
    assert [row.saved for row in run.rows] == [True, True]
    run.resume()
    assert (run.outcome, run.deliveries) == ("succeeded", 2)
    assert [row.begun for row in run.rows] == [1, 1, 1]
    assert (run.steps["open"].begun, run.steps["open"].skipped) == (1, 1)


def test_killed_and_resumed() -> None:
    run = graceful_run(export, ["a", "b", "c"]).kill_at(row=2)
    assert run.outcome is Outcome.KILLED
    assert run.state == {"last": "a"}  # saved with the step in the next row
    run.resume()
    assert [(row.begun, row.done) for row in run.rows] == [(1, 1), (2, 2), (1, 1)]
    assert run.steps["loop@1/write"].skipped == 1


@pytest.mark.parametrize(("saved", "repeated"), [(False, True), (True, False)])
def test_killed_before_or_after_it_was_saved(saved: bool, repeated: bool) -> None:
    @task()
    def counts(self: Any) -> None:
        for _ in self.iterate(range(4)):
            pass

    run = graceful_run(counts).kill_at(row=3, saved=saved).resume()
    assert [row.repeated for row in run.rows] == [repeated] * 3 + [False]


def test_killed_at_its_end() -> None:
    run = graceful_run(export, ["a", "b"]).kill_at(end=True)
    assert run.outcome is Outcome.KILLED
    assert run.resume().result == 2
    assert not any(row.repeated for row in run.rows)


def test_who_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    @task()
    def stops(self: Any) -> None:
        raise Interrupted("not today")

    monkeypatch.setattr(tested_run, "MOST", 3)
    with pytest.raises(AssertionError, match=r"no end after 3 deliveries: .* has interrupted"):
        graceful_run(stops).follow()


def test_a_killed_task_runs_no_line_more() -> None:
    ran: list[str] = []

    @contextmanager
    def transaction() -> Iterator[None]:
        try:
            yield
        except BaseException:
            ran.append("rolled back")
            raise

    def inner(self: Any) -> None:
        try:
            self.step("charge", ran.append, "charged")
        except BaseException:
            ran.append("except")
        finally:
            ran.append("inner finally")
        ran.append("after")

    @task()
    def outer(self: Any) -> None:
        try:
            try:
                with transaction():
                    inner(self)
            finally:
                ran.append("finally")
                ran.append("finally, second line")
        except BaseException:
            ran.append("outer")

    before = sys.gettrace(), sys.getprofile()
    run = graceful_run(outer).kill_at(step="charge")
    assert (run.outcome, ran) == ("killed", ["charged", "rolled back"])
    assert (sys.gettrace(), sys.getprofile()) == before
    ran.clear()
    run.kill_at(step="charge", saved=True).resume()
    assert ran == [
        *("charged", "rolled back"),
        *("inner finally", "after", "finally", "finally, second line"),
    ]


def test_who_traces_sees_each_call_end() -> None:
    """As coverage does, which counts: a call without its end, and all that follows is lost."""

    def inner(self: Any) -> None:
        try:
            self.checkpoint()
        finally:
            time.time()

    @task()
    def traced(self: Any) -> None:
        try:
            inner(self)
        finally:
            time.time()

    assert_sees_each_call_end(traced, __file__)


def test_what_was_swallowed_kills_all_the_same() -> None:
    @task()
    def swallows(self: Any) -> str:
        try:
            self.checkpoint({"at": 1})
        except BaseException:
            pass
        self.checkpoint({"at": 2})
        return "done"

    run = graceful_run(swallows).kill_at(checkpoint=1, saved=True)
    assert (run.outcome, run.state) == ("killed", {"at": 1})


def test_a_task_sees_what_it_sees_in_a_worker() -> None:
    seen: list[Any] = []

    @task(max_interruptions=1)
    def looks(self: Any) -> None:
        seen.append((self.resumed, self.interruptions, self.request.delivery_info["redelivered"]))
        for _ in self.iterate([1]):
            seen.append((self.interrupted, interrupted(), self.interrupt and self.interrupt.reason))

    run = graceful_run(looks).interrupt_at(row=1)
    assert seen == [(False, 0, False), (True, True, InterruptReason.SHUTDOWN)]
    seen.clear()
    run.resume()
    assert seen == [(True, 1, True)]
    assert (current(), worker_state.board.value, worker_state.flag.value[0]) == (None, None, 0)


def test_hooks_are_called() -> None:
    called: list[Any] = []

    class Base(GracefulTask):
        def on_interrupted(self, interrupt: Any) -> None:
            called.append(("interrupted", interrupt.reason))
            self.state = "left"

        def on_resumed(self, state: Any) -> None:
            called.append(("resumed", state))

        def on_success(self, retval: Any, *args: Any) -> None:
            called.append(("success", retval))

    @app.task(base=Base, bind=True, name="tested.hooked")
    def hooked(self: Any) -> str:
        self.checkpoint()
        return "done"

    graceful_run(hooked).interrupt_at_checkpoint(1).resume()
    assert called == [("interrupted", "shutdown"), ("resumed", "left"), ("success", "done")]


def test_a_base_of_others_may_call_what_it_overrides() -> None:
    class Base(Task):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    other = Celery("composed", task_cls=Base)
    Graceful(other)

    @other.task(base=GracefulTask, bind=True, name="tested.composed")
    def composed(self: Any) -> str:
        self.checkpoint("here")
        return "done"

    call = Task.__call__
    run = graceful_run(composed).interrupt_at_checkpoint(1)
    assert (run.outcome, run.state) == ("interrupted", "here")
    assert run.resume().result == "done"
    assert Task.__call__ is call
    assert composed() == "done"


def test_it_may_be_interrupted_too_often() -> None:
    @task(max_interruptions=1)
    def stands(self: Any) -> None:
        self.checkpoint()

    run = graceful_run(stands).interrupt_at_checkpoint(1).interrupt_at_checkpoint(1)
    assert run.outcome is Outcome.FAILED
    with pytest.raises(TooManyInterruptions):
        _ = run.result


def test_a_wait_is_interrupted() -> None:
    @task()
    def waits(self: Any) -> None:
        self.step("wait", self.sleep, 60)

    run = graceful_run(waits).interrupt_in_step("wait")
    assert run.outcome is Outcome.INTERRUPTED
    assert (run.steps["wait"].begun, run.steps["wait"].done) == (1, 0)


@pytest.mark.parametrize("in_thread", [False, True])
def test_soft_deadline(in_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, wait = threading.Event(), InProcessWorker._wait

    def wait_for_the_task(self: InProcessWorker, seconds: float) -> None:
        assert computing.wait(60)  # on a slow machine the deadline may pass before it begins
        wait(self, seconds)

    monkeypatch.setattr(InProcessWorker, "_wait", wait_for_the_task)

    @task()
    def computes(self: Any) -> str:
        try:
            computing.set()
            if self.state is None:
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    time.sleep(0.01)
        except ShutdownTimeLimit:
            self.checkpoint("cut short")
        return "done"

    run = graceful_run(computes)
    if in_thread:
        thread = threading.Thread(target=run.soft_deadline_after, args=[0.3])
        thread.start()
        thread.join(timeout=30)
    else:
        run.soft_deadline_after(0.3)
    assert (run.outcome, run.state) == ("interrupted", "cut short")
    assert run.resume().result == "done"


def test_who_ends_before_its_deadline_has_ended() -> None:
    run = graceful_run(export, []).soft_deadline_after(60)
    assert run.outcome is Outcome.SUCCEEDED


def test_failures() -> None:
    @task()
    def fails(self: Any) -> None:
        for number in self.iterate(range(3)):
            if number == 1:
                raise ValueError("no")

    run = graceful_run(fails).resume()
    assert run.outcome is Outcome.FAILED
    with pytest.raises(ValueError, match="no"):
        _ = run.result
    assert [row.saved for row in run.rows] == [True, False]


def test_retries_are_deliveries() -> None:
    local = Celery("retrying", broker="memory://")
    Graceful(local)

    @local.task(base=GracefulTask, bind=True, name="tested.retried")
    def retried(self: Any) -> int:
        self.step("first", int)
        if not self.request.retries:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    run = graceful_run(retried).resume()
    assert run.outcome is Outcome.RETRIED
    assert run.resume().result == 1
    assert run.steps["first"].skipped == 1


def test_ignored() -> None:
    @task()
    def ignores(self: Any) -> None:
        raise Ignore

    assert graceful_run(ignores).resume().outcome is Outcome.IGNORED


def test_each_delivery_has_its_own_arguments() -> None:
    given = ["a", "b"]

    @task()
    def takes(self: Any, names: list[str]) -> list[str]:
        names.append("c")
        self.checkpoint()
        return names

    run = graceful_run(takes, given).interrupt_at_checkpoint(1).resume()
    assert (run.result, given) == (["a", "b", "c"], ["a", "b"])


def test_where_it_never_comes() -> None:
    run = graceful_run(export, ["a"])
    text = r"interrupt_at\(row=2\) never came: .* has succeeded; it has 1 rows, 0 checkpoints, and"
    with pytest.raises(NotReached, match=text):
        run.interrupt_at(row=2)


def test_another_kind_of_task() -> None:
    @app.task(name="tested.plain")
    def plain() -> None: ...

    with pytest.raises(TypeError, match="is no GracefulTask"):
        graceful_run(plain)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: interrupt_at(row=0), ValueError),
        (lambda: kill_at(), TypeError),
        (lambda: kill_at(row=1, step="a"), TypeError),
        (lambda: kill_at(step=""), TypeError),
        (lambda: schedules(), ValueError),
    ],
)
def test_events_that_cannot_be(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(schedules(rows=4, steps=["open", "write"], most=4))
def test_any_schedule_comes_to_the_end(schedule: Any) -> None:
    run = graceful_run(export, list("abcd")).follow(*schedule)
    assert run.result == 4
    assert all(row.done for row in run.rows)
    kills = sum(event.kills for event in schedule)
    assert all(step.begun <= 1 + kills for step in run.steps.values())


@task()
async def _coroutine(self: Any) -> None:
    raise AssertionError("nobody awaits it")


@task()
def _generator(self: Any) -> Iterator[None]:
    yield
    raise AssertionError("nobody asks for more")


@pytest.mark.parametrize("never_runs", [_coroutine, _generator])
def test_what_no_worker_would_run_is_refused(never_runs: Any) -> None:
    with pytest.raises(TypeError, match="which no worker runs"):
        graceful_run(never_runs).resume()
