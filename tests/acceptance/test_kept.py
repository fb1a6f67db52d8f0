"""Brokers that know of no acknowledgements: what a worker holds is in its memory alone."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery

from tests.support.workers import TIMEOUT, Worker

pytestmark = pytest.mark.slow

#: Seconds. Much room after the hard deadline: the machine may be slow.
GRACE, HARD = 60.0, 2.0


def make(kind: str, folder: Path) -> tuple[str, dict[str, str]]:
    """A broker's URL and transport options."""
    if kind == "sqla":
        return f"sqla+sqlite:///{folder}/broker.db", {"connect_args": {"timeout": TIMEOUT}}
    queues, control = str(folder / "queues"), str(folder / "control")
    os.mkdir(queues)
    os.mkdir(control)
    return "filesystem://", {
        "data_folder_in": queues,
        "data_folder_out": queues,
        "control_folder": control,
    }


def start(url: str, options: dict[str, str], pool: str, **env: str) -> Worker:
    env = {"GRACE": str(GRACE), **env}
    env |= {"BROKER_URL": url, "RESULT_URL": "cache+memory://"}
    env |= {"CONF_graceful_hard_deadline": str(HARD)}
    env |= {"CONF_broker_transport_options": repr(options)}
    env |= {"CONF_worker_enable_remote_control": "False"}
    return Worker("tests.apps.hard_times", pool=pool, concurrency=3, env=env)


@pytest.mark.usefixtures("whole_files")
@pytest.mark.parametrize(("kind", "pool"), [("sqla", "prefork"), ("filesystem", "threads")])
def test_a_stop_sends_it_back(kind: str, pool: str, tmp_path: Path) -> None:
    """However a task ends: interrupted, given up, acknowledged at its start, or not started."""
    url, options = make(kind, tmp_path)
    with Celery(broker=url) as app, start(url, options, pool) as worker:
        app.conf.broker_transport_options = options
        worker.ready()
        assert worker.count("It knows of no acknowledgements: .*kill -9 loses it") == 1
        ids = []
        for name in ("swallowing", "early_swallowing", "waiting"):
            ids.append(app.send_task(f"tests.apps.hard_times.{name}").id)
            worker.wait_line(f">> .* started {name}")
        ids += [app.send_task("tests.apps.hard_times.waiting").id for _ in range(2)]
        # The loop waits for room in a pool of processes.
        worker.wait_line(r"waiting\[.*received", 2 if pool == "prefork" else 3)
        worker.term()
        assert worker.wait() == 0
        assert worker.took < 30, "of 60 s of grace"
        assert worker.count("2 given up") == 1 or pool == "prefork"  # it may have one more
        found = []
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            while (message := channel.basic_get("celery", no_ack=True)) is not None:
                found.append(message.headers["id"])
    assert sorted(found) == sorted(ids)


def test_what_cannot_be_sent_back_in_time_is_an_error(tmp_path: Path) -> None:
    """Somebody holds the database; one thread or another waits for it when the worker leaves."""
    url, options = make("sqla", tmp_path)
    # A part of the grace is for a broker that may answer yet.
    grace = {"GRACE": "20"}
    with Celery(broker=url) as app, start(url, {}, "threads", **grace) as worker:
        app.conf.broker_transport_options = options  # for the lock
        worker.ready()
        for name in ("early_swallowing", "waiting"):
            app.send_task(f"tests.apps.hard_times.{name}")
            worker.wait_line(f">> .* started {name}")
        with closing(sqlite3.connect(tmp_path / "broker.db", timeout=30)) as db:
            db.execute("BEGIN EXCLUSIVE")
            worker.term()
            assert worker.wait() == 1
        assert worker.took < 20
        for name in ("early_swallowing", "waiting"):
            assert worker.count(f"CRITICAL.* Lost: .*hard_times.{name}") == 1


def test_what_ends_with_the_worker_is_an_error() -> None:
    """Queues in memory."""
    with start("memory://", {}, "prefork", SEND="swallowing") as worker:
        worker.wait_line(">> .* started swallowing")
        assert worker.count("Its queues are in this process, and end with it") == 1
        worker.term()
        assert worker.wait() == 1
        assert worker.count("CRITICAL.* Lost: .*swallowing.*its queue ends") == 1
