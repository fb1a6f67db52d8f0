"""Outside of a worker everything is there, works, costs next to nothing and does nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

import celery_graceful
from celery_graceful import Graceful, GracefulTask, Interrupted
from celery_graceful.runs.run import current
from celery_graceful.timeline import worker_state

#: Loaded by a worker, or by nobody who does not ask for it.
HEAVY = {
    "billiard.pool",
    "celery.concurrency.prefork",
    "celery.worker",
    "celery_graceful.worker.bootsteps",
    "celery_graceful.worker.drain",
    "celery_graceful.deliveries.request",
    "celery_graceful.history.entry",
    "celery_graceful.monitors.monitor",
    "celery_graceful.testing",
    "celery_graceful.timeline.grace_period",
    "difflib",
    "django",
    "eventlet",
    "gevent",
    "greenlet",
    "kombu.transport.redis",
    "opentelemetry",
    "prometheus_client",
    "redis",
    "sentry_sdk",
    "sqlalchemy",
}

#: What a web process does with Celery anyway.
WEB = """
    import celery
    app = celery.Celery("web", broker="redis://localhost:1/0")

    @app.task
    def plain(): ...
    plain.name
"""

#: The same with this package.
WEB_GRACEFUL = """
    import celery
    import celery_graceful
    app = celery.Celery("web", broker="redis://localhost:1/0")
    graceful = celery_graceful.Graceful(app)
    graceful.settings

    @app.task(base=celery_graceful.GracefulTask)
    def plain():
        with celery_graceful.interruptible(), celery_graceful.shield():
            celery_graceful.sleep(0)
            celery_graceful.wait_for_interrupt(0)
        return celery_graceful.interrupted()
    plain()
"""


def modules(code: str) -> set[str]:
    """What is loaded in a fresh interpreter after ``code``."""
    code = textwrap.dedent(code) + "\nimport sys, os; os.write(1, ' '.join(sys.modules).encode())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_import_stays_light() -> None:
    loaded = modules("import celery_graceful") - modules("from celery import Celery, Task")
    assert loaded & {*HEAVY, "_hashlib", "celery_graceful.settings"} == set()


def test_a_web_process_pays_for_this_package_alone() -> None:
    extra = modules(WEB_GRACEFUL) - modules(WEB)
    assert extra & HEAVY == set()
    packages = {name.partition(".")[0] for name in extra}
    foreign = {name for name in packages if not name.startswith(("celery_graceful", "_"))}
    assert foreign <= sys.stdlib_module_names
    assert len(foreign) <= 8, foreign


def test_a_command_line_that_looks_up_commands_needs_no_worker() -> None:
    """Celery's imports those of remote control, and all plugins, whatever it is to do."""
    looks_up = "import celery.bin.celery, celery, celery_graceful\n"
    extra = modules(looks_up + "celery_graceful.Graceful(celery.Celery('shop'))")
    assert "celery_graceful.worker.control" in extra
    without = modules(looks_up)
    assert (extra - without) & HEAVY == set()
    commands = {name for name in without if name.startswith("celery_graceful.cli.")}
    assert commands == {"celery_graceful.cli.group", "celery_graceful.cli.writing"}


# -- a direct call, eager mode, the REPL ---------------------------------------------


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("inert", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    app.conf.task_eager_propagates = True
    Graceful(app)
    yield app
    assert worker_state.board.value is None


def uses_everything(self: Any) -> dict[str, Any]:
    called: list[Any] = []
    began = time.monotonic()
    self.sleep(0.05)
    celery_graceful.sleep(0.05)
    slept = time.monotonic() - began
    with self.interruptible(), celery_graceful.interruptible(), self.shield(), self.shield():
        with_shield = celery_graceful.shield()
    with with_shield:
        pass
    with self.interrupt_callback(called.append), celery_graceful.interrupt_callback(called.append):
        pass
    return {
        "interrupted": self.interrupted,
        "interrupt": self.interrupt,
        "function": celery_graceful.interrupted(),
        "current": celery_graceful.current_interrupt(),
        "waited": self.wait_for_interrupt(0.01),
        "waited for": celery_graceful.wait_for_interrupt(0.01),
        "called": called,
        "slept": slept >= 0.1,
        "run": current(),
    }


INERT = {
    "interrupted": False,
    "interrupt": None,
    "function": False,
    "current": None,
    "waited": False,
    "waited for": False,
    "called": [],
    "slept": True,
    "run": None,
}


@pytest.mark.parametrize("how", ["direct", "delay", "apply"])
def test_inert_in_a_task_without_a_worker(app: Celery, how: str) -> None:
    task = app.task(uses_everything, base=GracefulTask, bind=True, name="everything")
    results = {
        "direct": task,
        "delay": lambda: task.delay().get(),
        "apply": lambda: task.apply().get(),
    }
    assert results[how]() == INERT


def test_inert_in_the_repl() -> None:
    class AnyTask(GracefulTask):
        name = "any"

        def run(self) -> None: ...

    assert uses_everything(AnyTask()) == INERT


def test_a_wait_without_end_is_refused(app: Celery) -> None:
    with pytest.raises(RuntimeError, match="would never end here"):
        celery_graceful.wait_for_interrupt()


def test_errors_come_out_as_ever(app: Celery) -> None:
    @app.task(base=GracefulTask, bind=True)
    def fails(self: Any) -> None:
        with self.interruptible(), self.shield(), self.interrupt_callback(print):
            raise LookupError("mine")

    for call in (fails, fails.delay, fails.apply):
        with pytest.raises(LookupError, match="mine"):
            call()


def test_a_retry_is_a_retry(app: Celery) -> None:
    tries = []

    @app.task(base=GracefulTask, bind=True, max_retries=2, default_retry_delay=0)
    def retried(self: Any) -> int:
        tries.append(self.request.retries)
        if len(tries) < 3:
            try:
                raise LookupError
            except LookupError as exc:
                raise self.retry(exc=exc, countdown=0) from exc
        return len(tries)

    app.conf.task_eager_propagates = False
    assert retried.delay().get() == 3
    assert tries == [0, 1, 2]


def test_interrupted_by_hand_is_not_swallowed(app: Celery) -> None:
    """Without a worker nobody could give the message back: the exception reaches the caller."""

    @app.task(base=GracefulTask)
    def by_hand() -> None:
        try:
            raise Interrupted
        except Exception:
            pytest.fail("Interrupted is no error")

    with pytest.raises(Interrupted):
        by_hand()


def test_reading_interrupted_is_cheap(app: Celery) -> None:
    """Four times what it takes: three system calls more would break it.

    The best of many rounds, since others use the processor as well. What it costs each time is in
    the best one, too.
    """
    task = app.task(uses_everything, base=GracefulTask, bind=True, name="cheap")
    rounds = []
    for _ in range(100):
        began = time.perf_counter()
        for _ in range(100):
            task.interrupted  # noqa: B018
        rounds.append(time.perf_counter() - began)
    assert min(rounds) / 100 < 3e-6


def test_a_worker_imports_celerys_consumer_no_earlier_than_celery() -> None:
    """Others replace what it imports: celery-aio-pool the tracer, when its pool is made."""
    code = (
        "import sys, celery_graceful.worker.bootsteps; "
        "print('celery.worker.consumer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
