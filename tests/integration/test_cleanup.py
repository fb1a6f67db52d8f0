"""Each cleanup runs once, in the processes that it should, after their last task, in order."""

from __future__ import annotations

import signal
from collections import defaultdict

import pytest
from celery import Celery

from tests.workers import Worker

APP = "tests.apps.cleanup"
NAME = "tests.apps.cleanup."

TROUBLE = ["hangs", "raises", "everywhere"]
RESOURCES = ["db", "client"]
CHILD = ["process-last", *TROUBLE, "process-first", *RESOURCES]
MAIN = [*TROUBLE, "worker-last", "worker-first"]
ONLY = ["process-last", *TROUBLE, "process-first", "worker-last", "worker-first", *RESOURCES]

POOLS = ["prefork", "spawn", "threads", "gevent", "eventlet", "solo"]
FORKING = ("prefork", "spawn")


def start(redis_db, pool="prefork", concurrency=2, args=(), **env):
    env = {"BROKER_URL": redis_db.url, "GRACE": "20", **env}
    return Worker(APP, pool=pool, concurrency=concurrency, env=env, args=args)


class Client:
    def __init__(self, redis_db):
        self.app = Celery(broker=redis_db.url)

    def send(self, task, *args):
        self.app.send_task(NAME + task, args)

    def broadcast(self, command, **arguments):
        self.app.control.broadcast(command, arguments=arguments)


@pytest.fixture
def client(redis_db):
    return Client(redis_db)


class Story:
    """What the processes of one worker said: who did what, in which order."""

    def __init__(self, worker):
        self.main = worker.pid
        self.output = worker.output
        self.lines = []
        for line in worker.lines:
            if line.startswith(">> "):
                _, _, what, name, pid = line.split()
                self.lines.append((what, name, int(pid)))
        self.ends = defaultdict(list)
        self.opened = defaultdict(list)
        for what, name, pid in self.lines:
            if what in ("EXIT", "CLOSE"):
                self.ends[pid].append(name)
            elif what == "OPEN":
                self.opened[pid].append(name)
        self.children = {pid for what, _, pid in self.lines if what == "CHILD"} - {self.main}

    def check(self, *, killed=0):
        """The whole promise. `killed`: so many children had no chance."""
        for pid in self.children | {self.main}:
            mine = [what for what, _, of in self.lines if of == pid]
            ends = [i for i, what in enumerate(mine) if what in ("EXIT", "CLOSE")]
            assert not ends or "TASK" not in mine[ends[0] :], self.output
        if self.children:
            assert self.ends.pop(self.main) == MAIN, self.output
            ended = [ends for ends in self.ends.values() if ends]
            assert len(ended) == len(self.children) - killed, self.output
            for ends in ended:
                assert ends == CHILD, self.output
            mine = [i for i, line in enumerate(self.lines) if line[2] == self.main]
            assert min(mine) == len(self.lines) - len(mine), self.output
        else:
            assert dict(self.ends) == {self.main: ONLY}, self.output
        for pid, opened in self.opened.items():
            assert pid in self.children | {self.main}
            assert opened == ["client", "db"]
        runs = len(self.children) - killed + 1
        assert self.output.count("cleanup.hangs did not end within") == runs, self.output
        assert self.output.count("cleanup.raises raised") == runs, self.output
        assert "cancelled" not in self.output


def stop(worker, client, how):
    if how == "remote":
        worker.stopped_at = 0.0
        client.broadcast("shutdown")
    elif how == "SIGINT":
        worker.signal(signal.SIGINT)
    else:
        worker.term(group=how == "group TERM")


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_last_task(redis_db, client, pool):
    with start(redis_db, pool).ready() as worker:
        client.send("work", "a")
        worker.wait_line("TASK a")
        worker.term()
        assert worker.wait() == 0
    Story(worker).check()
    assert worker.took < 15


ENDS = ["TERM", "group TERM", "remote", "SIGINT"]


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("pool", POOLS)
def test_table(redis_db, client, pool, end, busy):
    with start(redis_db, pool).ready() as worker:
        if busy:
            client.send("work", "a")
            worker.wait_line("TASK a")
        stop(worker, client, end)
        assert worker.wait() == 0
    Story(worker).check()


@pytest.mark.parametrize("pool", POOLS)
def test_at_the_hard_deadline_what_can_still_run_runs(redis_db, client, pool):
    with start(redis_db, pool, GRACE="5").ready() as worker:
        client.send("stuck")
        worker.wait_line("TASK stuck")
        worker.term()
        assert worker.wait() == 0
    assert worker.took < 5
    Story(worker).check(killed=1 if pool in FORKING else 0)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_that_fails_at_start_up(redis_db, pool):
    with start(redis_db, pool, FAIL="1") as worker:
        assert worker.wait() != 0
        assert "cannot start" in worker.output
    Story(worker).check()
