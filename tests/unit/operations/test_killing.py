"""A worker is killed where it runs, and nobody in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from celery_graceful.operations.killing import CannotKill, check, kill
from celery_graceful.operations.records import Worker
from celery_graceful.system.process_identity import identity_of, is_of_here
from tests.unit.cli.test_tables import worker as worker_of


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(argv) as process:
        yield process
        process.kill()


@pytest.fixture
def worker(process: subprocess.Popen[bytes]) -> Worker:
    return worker_of("w1@a", pid=process.pid, process=identity_of(process.pid))


def test_it_is_killed(worker: Worker, process: subprocess.Popen[bytes]) -> None:
    kill(worker)
    assert identity_of(worker.pid) == "", "it has ended, and its parent has not heard of it"
    with pytest.raises(CannotKill, match="is not w1@a any more"):
        kill(worker)
    assert process.wait(60) == -signal.SIGKILL
    with pytest.raises(CannotKill, match="is not w1@a any more"):
        kill(worker)


def test_who_is_not_killed(worker: Worker, process: subprocess.Popen[bytes]) -> None:
    here, _, start = worker.process.rpartition(":")
    init = identity_of(1)
    others = {
        "On a: kill -9": replace(worker, process=""),
        "another machine": replace(worker, process="else" + worker.process),
        "is not w1@a any more": replace(worker, process=f"{here}:{int(start) + 1}"),
        "kill the container": replace(worker, pid=1, process=init),
    }
    for why, other in others.items():
        for refuses in (check, kill):
            with pytest.raises(CannotKill, match=why):
                refuses(other)
    assert process.poll() is None


def test_a_process_is_known_again() -> None:
    mine = identity_of(os.getpid())
    assert mine == identity_of(os.getpid())
    assert is_of_here(mine)
    assert not is_of_here("x" + mine)
    assert identity_of(2**22 + 1) == ""
