"""Children that end after so many tasks, and what waits in the pool for them when the worker stops.

Celery hands more to such a pool than it has children: the end of each makes room for one more.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from celery import Celery

from tests.support.broker import Broker
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

#: Seconds. What is no test of a deadline does not wait for one.
GRACE = 60.0

#: Prefetched at most, and sent.
PREFETCHED, SENT = 20, 40


def start(broker: Broker, **conf: object) -> Worker:
    env = {f"CONF_{key}": repr(value) for key, value in conf.items()}
    env.update(
        **broker.env,
        GRACE=str(GRACE),
        CONF_task_track_started="True",
        CONF_worker_prefetch_multiplier=str(PREFETCHED // 2),
    )
    return Worker("tests.apps.lifecycle", env=env).ready()


def send(app: Celery, kind: str, count: int) -> list[str]:
    name = f"tests.apps.lifecycle.{kind}"
    return [str(app.send_task(name).id) for _ in range(count)]


@pytest.mark.parametrize("tasks", [1, 4])
def test_what_waits_in_the_pool_is_back_at_once(tasks: int, broker: Broker, app: Celery) -> None:
    with start(broker, worker_max_tasks_per_child=tasks) as worker:
        sent = send(app, "short", SENT)
        worker.wait_line(">> .* finished", count=3 * tasks)
        worker.term()
        assert worker.wait() == 0
        assert worker.took < GRACE / 2
        finished = {found[1] for found in worker.find(r">> \S+ finished (\S+)")}
        queued = broker.drain_queue(app, at_least=SENT - len(finished))
        assert sorted([*finished, *queued]) == sorted(sent)
        assert {app.AsyncResult(task_id).state for task_id in finished} == {"SUCCESS"}
        for task_id in queued:  # the stop may have come when it was about to begin
            assert app.AsyncResult(task_id).state in ("INTERRUPTED", "PENDING")
        assert worker.count(r"Stopped: .* 0 given up") == 1
        assert worker.count("Traceback|exited with") == 0


@pytest.mark.parametrize("how", ["quiet", "term"])
def test_what_waits_behind_long_tasks_does_not_wait_for_them(
    how: str, broker: Broker, app: Celery
) -> None:
    """All that was fetched lies in the pool; its children are busy until the soft deadline."""
    with start(broker, worker_pool_putlocks=False) as worker:
        first = send(app, "shielded", 2)
        for task_id in first:
            worker.wait_line(f">> .* started shielded {task_id}")
        waiting = send(app, "short", PREFETCHED - 2)
        worker.wait_line("short.* received", count=len(waiting))
        if how == "quiet":
            wait_until_heard(app)
            app.control.broadcast("quiet")
        else:
            worker.term()
        back: list[str] = []
        wait_until(lambda: back.extend(broker.drain_queue(app)) or len(back) >= len(waiting))
        assert sorted(back) == sorted(waiting)
        assert worker.process.poll() is None  # the long ones run
        assert {app.AsyncResult(task_id).state for task_id in waiting} == {"PENDING"}
        if how == "quiet":
            worker.term()
        else:
            assert time.monotonic() - worker.stopped_at < GRACE / 2
        worker.signal(signal.SIGQUIT)
        assert worker.wait() == 0
        assert worker.count(">> .* started short") == 0


@pytest.mark.usefixtures("whole_files")
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_what_no_child_has_read_is_not_given_up(broker: Broker, tmp_path: Path) -> None:
    """Without an event loop all children read one pipe: what lies in there has not begun."""
    files = Broker("filesystem", "filesystem://", broker.backend_url, broker.client)
    folder = str(tmp_path)
    options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder}
    with files.app() as app:
        app.conf.broker_transport_options = options
        conf = {"broker_transport_options": options, "graceful_hard_deadline": 3.0}
        with start(files, worker_pool_putlocks=False, **conf) as worker:
            stuck = send(app, "stuck", 2)
            worker.wait_line(">> .* started stuck", count=2)
            waiting = send(app, "short", 4)  # files have no order
            worker.wait_line("short.* received", count=len(waiting))
            worker.term()
            worker.wait()
            assert worker.count("Stopped: 0 finished, 0 interrupted, 2 given up, 4 released") == 1
        assert {app.AsyncResult(task_id).state for task_id in stuck} == {"INTERRUPTED"}
        assert {app.AsyncResult(task_id).state for task_id in waiting} == {"PENDING"}


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_child_is_replaced_as_soon_as_it_has_ended(
    broker: Broker, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each child lives for one task: a missed end would cost 5 s, a late one half a minute."""
    monkeypatch.setenv("LONG_SECOND", "1")
    with start(broker, worker_max_tasks_per_child=1) as worker:
        send(app, "short", 16)
        worker.wait_line(">> .* finished", count=16)
        begun = sorted(float(found[1]) for found in worker.find(r">> (\S+) started"))
        gaps = sorted(b - a for a, b in zip(begun, begun[2:], strict=False))  # two children
        # Of the quickest quarter: what takes longest is for the machine to say.
        assert gaps[len(gaps) // 4] < 4  # 0.4 s


def test_what_a_task_forks_does_not_keep_the_connection_of_a_dead_worker(
    broker: Broker, app: Celery, tmp_path: Path
) -> None:
    """The child has it that was started while the worker was connected."""
    env = {**broker.env, "GRACE": str(GRACE), "CONF_worker_max_tasks_per_child": "1"}
    with Worker("tests.apps.ended", concurrency=1, env=env) as worker:
        worker.ready()
        app.send_task("tests.apps.ended.nothing").get(timeout=TIMEOUT)
        held = app.send_task("tests.apps.ended.forking_meanwhile", [str(tmp_path / "go")])
        forked = int(worker.wait_line(">> .* forked").split()[-1])
        worker.signal(signal.SIGKILL)
        worker.process.wait(TIMEOUT)
        os.kill(forked, 0)  # it writes where the worker did: that has not ended
        if broker.name == "redis":  # what it waited for would go to nobody
            clients, db = broker.client.client_list, broker.url.rpartition("/")[2]
            wait_until(
                lambda: ("brpop", db) not in [(one["cmd"], one["db"]) for one in clients()],
                "its command has ended",
            )
        else:
            assert broker.drain_queue(app, at_least=1) == [held.id]
        (tmp_path / "go").touch()
