"""``kill -9`` of a worker leaves nobody behind, whatever its children were about."""

from __future__ import annotations

import signal
from pathlib import Path

from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import Worker

APP = "tests.apps.orphans"


def test_children_that_are_still_starting(broker: Broker, tmp_path: Path) -> None:
    """Celery has not asked the kernel yet; and each holds the pipes of those before it open."""
    gate, beat = tmp_path / "gate", ["-B", "-s", str(tmp_path / "schedule")]
    with Worker(APP, env={**broker.env, "HELD": "1", "GATE": str(gate)}, args=beat) as worker:
        worker.wait_line(">> held", count=3)
        worker.signal(signal.SIGKILL)
        worker.process.wait()
        gate.touch()
        worker.wait_all()


def test_beat_of_the_same_worker(broker: Broker, tmp_path: Path) -> None:
    """It would send what is due, beside the beat of the worker that takes its place."""
    beat = ["-B", "-s", str(tmp_path / "schedule")]
    with Worker(APP, env=broker.env, args=beat) as worker:
        worker.wait_line(">> .* beat ")
        worker.signal(signal.SIGKILL)
        worker.wait_all()


def test_those_of_whom_the_kernel_knows_nothing(
    broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """They are told to go like other processes, as by a service manager."""
    gate = tmp_path / "gate"
    with Worker(APP, env={**broker.env, "GATE": str(gate)}).ready() as worker:
        for _ in range(2):
            app.send_task(f"{APP}.forget")
        worker.wait_line(">> .* forgot ", count=2)
        gate.touch()
        worker.wait_line(">> .* idle ", count=2)
        worker.signal(signal.SIGKILL)
        worker.process.wait()
        worker.term(group=True)
        worker.wait_all()
