"""The manifests in `examples/deploy/`: they are valid, their sums are right, their commands run.

Each command is started with the Django project, where it runs a task, and stopped as its platform
does: the worker is gone in time, and the task is back in its queue.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml
from celery import Celery

from celery_graceful.doctor.entry_point import in_front
from celery_graceful.timeline.grace_period import detect
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.command import CELERY
from tests.support.installed import require_modules
from tests.support.manifests import DEPLOY, READERS, Started
from tests.support.workers import ROOT, TIMEOUT, WatchedProcess, environment, wait_until

PROJECT = ROOT / "examples" / "django"
EACH = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
OF_THIS_MACHINE = ("GRACEFUL_GRACE_PERIOD", "TERMINATION_GRACE_PERIOD_SECONDS", "NOTIFY_SOCKET")


@EACH
def test_its_worker_knows_its_grace(read: Callable[[], Started], tmp_path: Path) -> None:
    it = read()
    if not it.asks:
        assert detect({**it.env, **it.platform}, root=tmp_path).seconds == it.grace


@EACH
def test_no_shell_stands_in_front(read: Callable[[], Started]) -> None:
    assert in_front(read().argv, PROJECT) is None


class Supervisor:
    """What systemd listens at."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{name}")
        self.socket.settimeout(TIMEOUT)
        self.env = {"NOTIFY_SOCKET": f"@{name}"}

    def wait_for(self, line: str) -> None:
        while line not in self.socket.recv(4096).decode().splitlines():
            pass


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    one = Supervisor(f"celery-graceful-{os.getpid()}")
    yield one
    one.socket.close()


def says_yes(probe: Sequence[str], env: Mapping[str, str]) -> bool:
    _, *options = probe
    return subprocess.run([sys.executable, *options], env=env, timeout=TIMEOUT).returncode == 0


@EACH
def test_its_command_runs_and_stops(
    read: Callable[[], Started], redis_db: RedisDB, tmp_path: Path, supervisor: Supervisor
) -> None:
    require_modules("django")
    it = read()
    with sqlite3.connect(tmp_path / "db.sqlite3") as db:
        db.execute("CREATE TABLE orders_order (id INTEGER PRIMARY KEY, bills INTEGER)")
        db.executemany("INSERT INTO orders_order VALUES (?, 0)", [(n,) for n in range(9999)])
    env = {key: value for key, value in environment({}).items() if key not in OF_THIS_MACHINE}
    env |= {"DATABASE": str(tmp_path / "db.sqlite3")}
    env |= {**it.env, **it.platform, **(supervisor.env if it.asks else {})}
    env |= {"CELERY_BROKER_URL": redis_db.url, "CELERY_RESULT_BACKEND": redis_db.backend_url}
    if it.probes:
        env["GRACEFUL_PROBE_FILE"] = str(tmp_path / "worker")
    program, *options = it.argv
    assert Path(program).name == "celery"
    task = Celery(broker=redis_db.url).send_task("orders.tasks.bill")
    with WatchedProcess([*CELERY, *options], env=env, cwd=PROJECT) as worker:
        worker.wait_line(r"order \d+ has its bill")
        for probe in it.probes:
            wait_until(partial(says_yes, probe, env), str(probe), 0.1)
        if it.asks:
            supervisor.wait_for("READY=1")
        else:
            worker.wait_line(f"Grace period: {it.grace:g} s ")
        worker.signal(signal.Signals[it.signal], group=it.to_group)
        assert worker.wait(it.grace) == 0
    if it.asks:
        supervisor.wait_for("STOPPING=1")
    assert worker.count(r"Stopped: 0 finished, 1 interrupted, 0 given up") == 1
    (message,) = redis_db.client.lrange("celery", 0, -1)
    assert json.loads(message)["headers"]["id"] == task.id


def test_kubernetes_takes_it() -> None:
    require_modules("kubernetes_validate")
    import kubernetes_validate

    found = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_systemd_takes_it(tmp_path: Path) -> None:
    unit = tmp_path / "shop-worker.service"
    text = (DEPLOY / "worker.service").read_text()
    unit.write_text(text.replace("/srv/shop/.venv/bin/celery", sys.executable))
    try:
        told = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
    except FileNotFoundError:
        return  # it was parsed, as the others
    of_ours = [line for line in told.stdout.splitlines() if "shop-worker" in line]
    assert not of_ours, told.stdout


def test_the_doctor_finds_nothing(start_server: Callable[..., RedisServer]) -> None:
    require_modules("django")
    redis = start_server(RedisServer, appendonly=True)
    env = environment({"GRACEFUL_GRACE_PERIOD": "120"})
    env |= {"CELERY_BROKER_URL": redis.url(0), "CELERY_RESULT_BACKEND": redis.url(1)}
    argv = [*CELERY, "-A", "shop", "graceful", "doctor", "--dockerfile", "../deploy/Dockerfile"]
    told = subprocess.run(
        [*argv, "--json"], env=env, cwd=PROJECT, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    )
    said = json.loads(told.stdout)
    # How far away Redis is depends on how busy this machine is.
    assert not [one for one in said["findings"] if one["code"] != "CG206"]
    assert not said["unchecked"]
    assert told.returncode == 0
