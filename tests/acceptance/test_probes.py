"""What probes answer, asked as Kubernetes and systemd do: by an exec, by HTTP, over a socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from celery import Celery

import celery_graceful_probe
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.workers import ROOT, TIMEOUT, Worker, wait_until, wait_until_heard

APP = "tests.apps.probed"
LIVE, READY = "live", "ready"

#: Seconds: stale soon, for the tests' sake.
STALE, LEASE = 1.0, 1.0

#: Seconds between heartbeats that Celery publishes.
HEARTBEAT = 2.0

#: Seconds that Kubernetes waits for an answer, unless told otherwise.
KUBERNETES = 1.0


class Probed:
    """A worker with its probes."""

    def __init__(self, worker: Worker, path: Path) -> None:
        self.worker = worker
        self.path = path
        said = worker.wait_line(r"Probes: http://")
        (self.port,) = re.findall(r"127\.0\.0\.1:(\d+)/live and /ready", said)

    def file(self) -> tuple[bool, bool]:
        """Whether it is live and ready, by its file."""
        live, ready = (celery_graceful_probe.look(ask, str(self.path))[0] for ask in (LIVE, READY))
        return live == 0, ready == 0

    def exec(self) -> tuple[bool, bool] | None:
        """The same, by commands; None where one of them has seen it change."""
        module = [sys.executable, "-m", "celery_graceful_probe"]
        sh = [
            'test $(($(date +%s) - $(stat -c %Y "$0"))) -lt 2',
            'test $(($(date +%s) - $(stat -c %Y "$0"))) -lt 2 && grep -qx ready "$0"',
        ]
        told, read = [], []
        for ask, script in zip((LIVE, READY), sh, strict=True):
            command = [*module, ask, "--file", str(self.path)]
            told.append(subprocess.run(command, cwd=ROOT, timeout=TIMEOUT).returncode == 0)
            command = ["sh", "-c", script, str(self.path)]
            read.append(subprocess.run(command, timeout=TIMEOUT).returncode == 0)
        return (told[0], told[1]) if told == read else None

    def get(self, ask: str, timeout: float = TIMEOUT) -> bool | None:
        """One of them, by HTTP; None where no answer comes."""
        url = f"http://127.0.0.1:{self.port}/{ask}"
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as exc:
            return False if exc.code == 503 else None
        except OSError:
            return None

    def http(self) -> tuple[bool | None, bool | None]:
        """Both, by HTTP."""
        return self.get(LIVE), self.get(READY)

    def recovers(self) -> None:
        """Wait until it is as it was."""
        wait_until(lambda: self.file() == (True, True), "it recovers", 0.05)

    def comes_to(self, live: bool, ready: bool, *, answers: bool = True) -> None:
        """Wait until its probes say so, all of them."""
        expected = (live, ready)
        wait_until(lambda: self.file() == expected, f"the file says {expected}", 0.05)
        # What is said is said for good; but under load a loop may be late for a moment.
        wait_until(lambda: self.exec() == expected, f"commands say {expected}", 0.05)
        if answers:
            wait_until(lambda: self.http() == expected, f"HTTP says {expected}", 0.05)
        else:
            assert self.get(LIVE, KUBERNETES) is None, "nobody answers"


def start(url: str, folder: Path, pool: str, **env: str) -> Worker:
    path = folder / pool
    env = {
        "BROKER_URL": url,
        "GRACE": "3000",
        "CONF_graceful_probe_file": repr(str(path)),
        "CONF_graceful_probe_port": "0",
        "CONF_graceful_probe_stale": str(STALE),
        "CONF_graceful_lease_ttl": str(LEASE),
        "CONF_graceful_heartbeat_interval": "0.3",
        "CONF_task_default_queue": repr(pool),
        **env,
    }
    return Worker(APP, pool=pool, concurrency=2, env=env, hostname=f"{pool}@test")


def send(app: Celery, pool: str, name: str, *args: str) -> None:
    app.signature(f"{APP}.{name}", args).apply_async(queue=pool)


def test_the_table(start_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    """The table of docs/platforms.md, a row after the other."""
    server = start_server(RedisServer)
    app = Celery(broker=server.url())
    done, pipe = tmp_path / "done", tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        start(server.url(), tmp_path, "solo") as one,
        start(server.url(), tmp_path, "threads") as two,
    ):
        solo, worker = Probed(one, tmp_path / "solo"), Probed(two, tmp_path / "threads")
        send(app, "solo", "busy", str(done))

        worker.comes_to(live=True, ready=True)
        _blocked(app, worker, tmp_path / "free")
        _gil(app, worker, pipe)
        _frozen(worker)
        one.wait_line(r">> \S+ busy")  # for longer than what is stale, by now
        solo.comes_to(live=True, ready=True)

        server.pause()
        paused_at = time.monotonic()
        worker.comes_to(live=True, ready=False)
        solo.comes_to(live=True, ready=False)
        # By now the loop waits for an answer to a heartbeat of Celery's, which it publishes.
        wait_until(lambda: time.monotonic() > paused_at + HEARTBEAT + STALE + 0.5)
        worker.comes_to(live=True, ready=False)
        server.resume()
        worker.recovers()

        send(app, "threads", "busy", str(done))
        two.wait_line(r">> \S+ busy")
        two.term()
        worker.comes_to(live=True, ready=False)
        done.touch()
        assert two.wait() == 0
        assert not worker.path.exists()
        assert worker.http() == (None, None)

        one.wait_line("succeeded in")
        solo.recovers()
        server.kill()
        # It connects again and again, and says so; but a heartbeat that met the outage first waits
        # for its connection in silence, in the same thread.
        killed_at = time.monotonic()
        wait_until(lambda: time.monotonic() > killed_at + STALE + 0.5)
        solo.comes_to(live=True, ready=False)


def _blocked(app: Celery, worker: Probed, free: Path) -> None:
    wait_until_heard(app)
    app.control.broadcast("block", {"path": str(free)}, destination=["threads@test"])
    worker.worker.wait_line("blocked")
    worker.comes_to(live=False, ready=False)
    free.touch()
    worker.recovers()


def _gil(app: Celery, worker: Probed, pipe: Path) -> None:
    send(app, "threads", "hold_gil", str(pipe))
    worker.worker.wait_line("holds the GIL")
    worker.comes_to(live=False, ready=False, answers=False)
    with pipe.open("wb") as file:
        pipe.unlink()  # its lease ran out: what comes again finds nothing to wait for
        file.write(b".")
    worker.recovers()


def _frozen(worker: Probed) -> None:
    worker.worker.signal(signal.SIGSTOP)
    worker.comes_to(live=False, ready=False, answers=False)
    worker.worker.signal(signal.SIGCONT)
    worker.recovers()


def test_systemd_and_what_a_child_inherits(redis_db: RedisDB, tmp_path: Path) -> None:
    """Prefork, with an abstract socket; and a second worker that would share file or port."""
    name = f"@graceful-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:])
        systemd.settimeout(TIMEOUT)
        heard: list[str] = []

        def hear(word: str) -> None:
            while word not in heard:
                heard.extend(systemd.recv(4096).decode().splitlines())

        env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000", "RESULT_URL": redis_db.backend_url}
        with start(redis_db.url, tmp_path, "prefork", **env) as worker:
            probed = Probed(worker, tmp_path / "prefork")
            hear("READY=1")
            heard.clear()
            hear("WATCHDOG=1")
            assert "READY=1" not in heard
            wait_until(lambda: probed.http() == (True, True), "it is ready", 0.05)

            app = Celery(broker=redis_db.url, backend=redis_db.backend_url)
            found = app.signature(f"{APP}.inherited").apply_async(queue="prefork")
            assert found.get(timeout=TIMEOUT) == []

            same = {"CONF_graceful_probe_file": repr(str(probed.path))}
            with start(redis_db.url, tmp_path, "solo", **same) as second:
                assert second.wait() == 1
                assert second.count(r"graceful_probe_file = .* give each its own") == 1

            worker.term()
            hear("STOPPING=1")
            assert worker.wait() == 0
            assert heard.count("STOPPING=1") == 1
