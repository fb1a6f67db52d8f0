"""Each cleanup runs once, in the processes that it should, after their last task, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict

import pytest
from celery import Celery

from tests.support.command import CELERY
from tests.support.workers import ROOT, TIMEOUT, Worker, wait_until_heard

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
    env = {"BROKER_URL": redis_db.url, "GRACE": "60", **env}
    env["CONF_graceful_exit_timeout"] = "15.0"  # by default 5 s: the machine may be slow
    return Worker(APP, pool=pool, concurrency=concurrency, env=env, args=args)


class Client:
    def __init__(self, redis_db):
        self.app = Celery(broker=redis_db.url)

    def send(self, task, *args):
        return self.app.send_task(NAME + task, args).id

    def broadcast(self, command, **arguments):
        wait_until_heard(self.app)
        self.app.control.broadcast(command, arguments=arguments)

    def terminate(self, task_id):
        wait_until_heard(self.app)
        self.app.control.revoke(task_id, terminate=True)


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
        self.beat = {pid for what, name, pid in self.lines if (what, name) == ("BEAT", "started")}
        self.children = {pid for what, _, pid in self.lines if what == "CHILD"} - {self.main}

    def check(self, *, killed=0):
        """The whole promise. `killed`: so many children had no chance."""
        for pid in self.beat:
            assert self.ends.pop(pid) == TROUBLE, self.output
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
        runs = len(self.children) - killed + 1 + len(self.beat)
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


OF_ONE = ["TERM", "remote", "SIGINT"]
ENDS = [*OF_ONE, "group TERM"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "end", "busy"),
    [
        *((pool, end, "busy") for pool in FORKING for end in ENDS),
        # Without children a signal to the group is one to the worker.
        *((pool, end, "busy") for pool in ("threads", "gevent") for end in OF_ONE),
        ("eventlet", "TERM", "busy"),
        *(("solo", end, "busy") for end in ("TERM", "SIGINT")),  # busy, it hears nobody
        *((pool, end, "") for pool in FORKING for end in ("TERM", "group TERM")),
        *((pool, "TERM", "") for pool in POOLS[2:]),
        ("solo", "remote", ""),
    ],
)
def test_after_the_last_task(redis_db, client, pool, end, busy):
    with start(redis_db, pool).ready() as worker:
        if busy:
            client.send("work", "a")
            worker.wait_line("TASK a")
        stop(worker, client, end)
        assert worker.wait() == 0
    Story(worker).check()
    if busy and end == "TERM":
        assert worker.took < 45


@pytest.mark.parametrize("pool", POOLS)
def test_at_the_hard_deadline_what_can_still_run_runs(redis_db, client, pool):
    # Much room after it: the machine may be slow.
    with start(redis_db, pool, GRACE="60", CONF_graceful_hard_deadline="3.0").ready() as worker:
        client.send("stuck")
        worker.wait_line("TASK stuck")
        worker.term()
        assert worker.wait() == 0
    assert worker.took < 60
    Story(worker).check(killed=1 if pool in FORKING else 0)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet", "solo"])
def test_a_worker_that_fails_at_start_up(redis_db, pool):
    with start(redis_db, pool, FAIL="1") as worker:
        assert worker.wait() != 0
        assert "cannot start" in worker.output
    Story(worker).check()


def leave_one_by_one(worker, count):
    """Wait until so many children have run all of their cleanups."""
    worker.wait_line("CLOSE client", count=count)


@pytest.mark.parametrize("pool", FORKING)
def test_children_that_leave_while_the_worker_runs(redis_db, client, pool, tmp_path):
    args = ["--max-memory-per-child=1" if pool == "spawn" else "--max-tasks-per-child=1"]
    if pool == "prefork":  # a spawned scheduler may not even import the app's module
        args += ["-B", "-s", str(tmp_path / "schedule")]
    conf = {"CONF_worker_pool_restarts": "True"}
    with start(redis_db, pool, 1, args, **conf).ready() as worker:
        if pool == "prefork":
            worker.wait_line("BEAT started")
        client.send("touch")
        leave_one_by_one(worker, 1)
        running = client.send("work", "a")
        worker.wait_line("TASK a")
        client.terminate(running)
        leave_one_by_one(worker, 2)
        worker.wait_line("CHILD started", count=3)
        client.broadcast("pool_restart")
        leave_one_by_one(worker, 3)
        worker.wait_line("CHILD started", count=4)
        worker.term()
        assert worker.wait() == 0
    story = Story(worker)
    assert len(story.beat) == (pool == "prefork")
    story.check()


def test_children_that_are_too_many(redis_db, client):
    with start(redis_db, args=["--autoscale=2,1"], AUTOSCALE_KEEPALIVE="1").ready() as worker:
        client.send("both", 2)
        client.send("both", 2)
        leave_one_by_one(worker, 1)
        assert worker.count("Scaling down") == 1
        worker.term()
        assert worker.wait() == 0
    story = Story(worker)
    assert len(story.children) == 2
    story.check()


@pytest.mark.usefixtures("whole_files")
def test_the_pool_of_brokers_without_an_event_loop(tmp_path):
    folders = ("data_folder_in", "data_folder_out", "control_folder")
    options = dict.fromkeys(folders, str(tmp_path))
    app = Celery(broker="filesystem://")
    app.conf.broker_transport_options = options
    env = {"BROKER_URL": "filesystem://", "CONF_broker_transport_options": repr(options)}
    with Worker(APP, env={**env, "GRACE": "20"}).ready() as worker:
        app.send_task(NAME + "work", ["a"])
        worker.wait_line("TASK a")
        worker.term()
        assert worker.wait() == 0
    Story(worker).check()


# -- processes that are no workers ---------------------------------------------------


def ends_of(output, pid):
    return [
        line.split()[3]
        for line in output.splitlines()
        if line.startswith(">> ") and line.split()[2] in ("EXIT", "CLOSE") and line.endswith(pid)
    ]


def test_a_script():
    process = subprocess.run(
        [sys.executable, "-m", APP], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert process.returncode == 3, process.stderr
    assert ends_of(process.stderr, "") == [*TROUBLE, *RESOURCES], process.stderr
    assert "hangs did not end within 0.5 s" in process.stderr


def terminated_at(text, redis_db, argv, status, number=signal.SIGTERM):
    """Run a program, tell it to stop when it says `text`; its id, and all it said."""
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "BROKER_URL": redis_db.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        seen = ""
        for line in process.stderr:
            seen += line
            if text in line:
                process.send_signal(number)
        assert process.wait(TIMEOUT) == status, seen
    return process.pid, seen


def test_beat(redis_db, tmp_path):
    argv = [*CELERY, "-A", APP, "beat", "-s", str(tmp_path / "schedule")]
    pid, seen = terminated_at("BEAT started", redis_db, argv, status=0)
    assert ends_of(seen, str(pid)) == TROUBLE, seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_beat_in_which_somebody_swallows_that_it_has_to_end(redis_db, number):
    argv = [*CELERY, "-A", APP, "beat", "-S", f"{APP}:Swallows", "--pidfile="]
    pid, seen = terminated_at("BEAT ticks", redis_db, argv, status=0, number=number)
    assert ends_of(seen, str(pid)) == TROUBLE, seen
    assert seen.count("BEAT ticks") == 1


PROGRAM = """
import atexit, os, sys, weakref
from celery_graceful import Graceful
from tests.apps import make_app, say

app = make_app("program")
Graceful(app)

class Last:
    def __del__(self, write=os.write):
        write(2, b">> TAKEN APART\\n")

last = Last()
atexit.register(say, "ATEXIT", "first")
atexit.register(say, "ATEXIT", "second")
weakref.finalize(last, say, "FINALIZED")

if __name__ == "__main__":
    app.worker_main(["worker", "-P", "solo", "-l", "INFO"])
    say("GOES ON")
    sys.exit(3)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    return tmp_path / "program.py"


def words(output):
    said = [line.split()[1:] for line in output.splitlines() if line.startswith(">> ")]
    return [" ".join(word for word in line if "." not in word) for line in said]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_is_gone_when_its_exit_handlers_have_run(redis_db, program, pool):
    """The interpreter's own end takes long, and nobody can hold the grace in it."""
    with Worker("program", pool=pool, env={"BROKER_URL": redis_db.url}) as worker:
        worker.ready()
        worker.term()
        assert worker.wait() == 0
    assert words(worker.output) == ["FINALIZED", "ATEXIT second", "ATEXIT first"]


FORKS = """
import os
import billiard
from tests.apps import say
from tests.apps.cleanup import app, db

@app.task
def forks():
    process = billiard.Process(target=body)
    process.start()
    process.join()
    say("TASK", "joined", os.getpid())

def body():
    db.get()
    say("FORK", "of", os.getpid())
"""


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_what_a_task_forks_by_billiard(redis_db, program, pool):
    """It is in the scope of nobody but itself, and the worker's own processes do as ever."""
    program.write_text(FORKS)
    env = {"BROKER_URL": redis_db.url, "CONF_graceful_exit_timeout": "15.0"}
    with Worker("program", pool=pool, concurrency=1, env=env).ready() as worker:
        Client(redis_db).app.send_task("program.forks")
        worker.wait_line("TASK joined")
        worker.term()
        assert worker.wait() == 0
    story = Story(worker)
    (forked,) = (pid for what, _, pid in story.lines if what == "FORK")
    joined = [line[:2] for line in story.lines].index(("TASK", "joined"))
    assert story.ends.pop(forked) == [*TROUBLE, *RESOURCES], worker.output
    assert all(pid == forked for what, _, pid in story.lines[:joined] if what in ("EXIT", "CLOSE"))
    assert sorted(story.ends.values()) == ([MAIN, CHILD] if pool == "prefork" else [ONLY])


def test_a_script_goes_on_after_its_worker(redis_db, program):
    """And ends as it likes: its exit status is not the worker's."""
    _, seen = terminated_at("ready.\n", redis_db, [sys.executable, str(program)], status=3)
    assert words(seen) == ["GOES ON", "FINALIZED", "ATEXIT second", "ATEXIT first", "TAKEN APART"]


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["plain", "xdist"])
def test_pytest(tmp_path, options):
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n"
        "from tests.apps.cleanup import db\n"
        "@pytest.mark.parametrize('number', range(4))\n"
        "def test_it(number):\n"
        "    assert db.get() is db.get()\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *options, str(test)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
    )
    assert process.returncode == 0, process.stdout
    opened = [line.split()[-1] for line in process.stderr.splitlines() if "OPEN db" in line]
    assert len(opened) == len(set(opened)) >= 1, process.stderr
    for pid in opened:
        assert ends_of(process.stderr, pid) == [*TROUBLE, *RESOURCES], process.stderr
