"""What a worker answers, piece by piece: its health, its file, its port, its service manager."""

from __future__ import annotations

import gc
import inspect
import os
import re
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from celery.worker.loops import synloop

import celery_graceful_probe
from celery_graceful.exceptions import SettingsError
from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.probes import health as health_module
from celery_graceful.probes.endpoint import MOST, Endpoint, Page, _Client
from celery_graceful.probes.file import ProbeFile
from celery_graceful.probes.health import Health
from celery_graceful.probes.systemd import Systemd
from celery_graceful.probes.thread import Probes
from celery_graceful.settings import Settings
from celery_graceful.system.process import Owner
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.grace_period import Deadlines
from celery_graceful.worker.loop import SYNLOOP
from tests.support.processes import free_port
from tests.support.workers import ROOT, TIMEOUT, wait_until


class ALoop:
    """One that turned so many seconds ago."""

    def __init__(self, turned: float = 0.0, *, alive: bool = True, left: float | None = None):
        self.alive, self.pause = alive, 0.0
        self._turned, self._left = turned, left

    @property
    def turned_at(self) -> float:
        return health_module.time.monotonic() - self._turned

    @property
    def left_at(self) -> float | None:
        return None if self._left is None else health_module.time.monotonic() - self._left

    def ring(self) -> None:
        self._turned = 0.0


def health(
    loop: ALoop,
    board: Board | None = None,
    *,
    busy: bool = False,
    heard: bool = True,
    cut_off: bool = False,
    **conf: Any,
) -> Health:
    return Health(
        Settings(**conf),
        board or Board.create(),
        loop,
        busy=lambda: busy,
        heard=lambda: heard,
        cut_off=lambda: cut_off,
        running=lambda: 2,
    )


@pytest.mark.parametrize(
    ("loop", "options", "not_live", "not_ready"),
    [
        (ALoop(), {}, "", ""),
        (ALoop(59), {}, "", ""),
        (ALoop(999), {}, "has not turned for 999 s", "has not turned for 999 s"),
        (ALoop(999), {"busy": True}, "", ""),
        (ALoop(999), {"cut_off": True, "heard": False}, "", "has not answered for 10 s"),
        (ALoop(999, alive=False), {}, "", "has not connected to its broker yet"),
        (ALoop(999, alive=False, left=5), {}, "", ""),
        (ALoop(999, alive=False, left=11), {}, "", "has been away for 11 s"),
        (ALoop(), {"heard": False}, "", "has not answered for 10 s"),
    ],
)
def test_health(
    loop: ALoop,
    options: dict[str, Any],
    not_live: str,
    not_ready: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "time", Mock(monotonic=lambda: 10_000.0))
    asked = health(loop, **options)
    for said, expected in ((asked.not_live(), not_live), (asked.not_ready(), not_ready)):
        assert expected in said
        assert bool(said) is bool(expected)


def test_health_on_the_way_to_a_stop() -> None:
    board = Board.create()
    asked = health(ALoop(), board)
    assert asked.status() == "Ready"
    board.enter(Phase.QUIET)
    assert (asked.not_live(), asked.not_ready()) == ("", "it is quiet")
    board.begin_stop(Deadlines(30.0, 16.0, 20.0, "a test"), InterruptReason.SHUTDOWN)
    assert (asked.not_live(), asked.not_ready()) == ("", "it stops")
    says = r"Stopping: 2 tasks run, (20|1?\d) s until they are given up"
    assert re.fullmatch(says, asked.status())


def test_how_often_a_loop_without_a_hub_goes_round() -> None:
    source = inspect.getsource(synloop)
    assert re.findall(r"drain_events\(timeout=(.*?)\)", source) == [str(SYNLOOP)]


class TestFile:
    def test_what_it_answers(self, tmp_path: Path) -> None:
        file = ProbeFile(str(tmp_path / "probe"), 60.0)
        assert self.asked(file, "live") == (3, f"{file.path} was not written by a worker")
        file.write("", "")
        assert self.asked(file, "live") == (0, "live")
        assert self.asked(file, "ready") == (0, "ready")
        file.write("", "it stops")
        assert self.asked(file, "live") == (0, "live")
        assert self.asked(file, "ready") == (1, "not ready: it stops")
        os.utime(file.path, (time.time() - 71, time.time() - 71))
        for question in ("live", "ready"):
            status, said = self.asked(file, question)
            assert (status, said[:44]) == (1, "not live: its event loop has not turned for ")
        file.write("", "")
        assert self.asked(file, "ready") == (0, "ready")
        file.remove()
        assert self.asked(file, "ready")[0] == 3

    @staticmethod
    def asked(file: ProbeFile, question: str) -> tuple[int, str]:
        return celery_graceful_probe.look(question, file.path)

    def test_what_is_not_live_is_not_touched(self, tmp_path: Path) -> None:
        file = ProbeFile(str(tmp_path / "probe"), 60.0)
        file.write("", "")
        touched = os.stat(file.path).st_mtime
        time.sleep(0.02)
        file.write("it hangs", "it hangs")
        assert os.stat(file.path).st_mtime == pytest.approx(touched, abs=1e-3)
        file.remove()

    def test_nobody_shares_one(self, tmp_path: Path) -> None:
        path = str(tmp_path / "probe")
        file = ProbeFile(path, 60.0)
        with pytest.raises(SettingsError, match="another worker has that file"):
            ProbeFile(path, 60.0)
        file.remove()
        again = ProbeFile(path, 60.0)
        again.close_inherited()  # as a kill would
        ProbeFile(path, 60.0).remove()

    def test_what_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="No such file or directory"):
            ProbeFile(str(tmp_path / "none" / "probe"), 60.0)
        (tmp_path / "link").symlink_to(tmp_path / "other")
        with pytest.raises(SettingsError, match="graceful_probe_file"):
            ProbeFile(str(tmp_path / "link"), 60.0)


def test_the_command_imports_next_to_nothing(tmp_path: Path) -> None:
    file = ProbeFile(str(tmp_path / "probe"), 60.0)
    file.write("", "it is quiet")
    code = (
        "import sys, os, time; before = {*sys.modules}; import celery_graceful_probe as p;"
        "print(p.main(['live']), p.main(['ready']), p.main(['ready', '--file', '/none']),"
        "p.main(['--file', '/none', 'ready']), p.main(['--file', 'ready']));"
        "print(p.main(['alive']), sorted({*sys.modules} - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, celery_graceful_probe.ENVIRON: file.path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    *said, statuses, last = done.stdout.splitlines()
    assert said[:2] == ["live", "not ready: it is quiet"]
    assert statuses == "0 1 3 3 2"
    assert last == "2 ['celery_graceful_probe']"
    assert "GRACEFUL_PROBE_FILE" in done.stderr
    file.remove()


def turn(endpoint: Endpoint) -> None:
    poller = select.poll()
    for fd, events in endpoint.waits_for().items():
        poller.register(fd, events)
    endpoint.go_on([fd for fd, _ in poller.poll(10)])


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr("celery_graceful.probes.endpoint.PATIENCE", TIMEOUT)
    endpoint = Endpoint("127.0.0.1", 0, {"/live": lambda: Page(200, "live\n" * 100_000)})
    yield endpoint
    endpoint.close()


@pytest.fixture
def asked(endpoint: Endpoint) -> Callable[..., str]:
    """Asks an endpoint, one turn at a time in this thread."""

    def ask(*parts: bytes) -> str:
        with socket.create_connection(("127.0.0.1", endpoint.port), TIMEOUT) as client:
            for part in parts:
                client.sendall(part)
                turn(endpoint)
                turn(endpoint)
            client.setblocking(False)
            answer = b""

            def has_ended() -> bool:
                nonlocal answer
                turn(endpoint)
                try:
                    data = client.recv(1 << 20)
                except BlockingIOError:
                    return False
                except ConnectionResetError:
                    return True
                answer += data
                return not data

            wait_until(has_ended, "an answer", 0)
            return answer.decode()

    return ask


@pytest.mark.parametrize(
    ("parts", "status", "body"),
    [
        ([b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"], "200 OK", "live\n" * 100_000),
        ([b"GET /li", b"ve?x=1 HTTP/1.0\r", b"\n\r\n"], "200 OK", "live\n" * 100_000),
        ([b"HEAD /live HTTP/1.1\r\n\r\n"], "200 OK", ""),
        ([b"POST /live HTTP/1.1\r\n\r\n"], "405 Method Not Allowed", "GET, or HEAD\n"),
        ([b"GET / HTTP/1.1\r\n\r\n"], "404 Not Found", "/live\n"),
        ([b"\r\n\r\n"], "405 Method Not Allowed", "GET, or HEAD\n"),
        ([b"GET \r\n\r\n"], "404 Not Found", "/live\n"),
        ([b"GET /\xff HTTP/1.1\r\n\r\n"], "404 Not Found", "/live\n"),
    ],
)
def test_http(asked: Callable[..., str], parts: list[bytes], status: str, body: str) -> None:
    head, _, said = asked(*parts).partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\n")
    assert said == body


def test_who_asks_for_too_much(asked: Callable[..., str]) -> None:
    assert asked(b"x" * 9000) == ""


def test_who_asks_for_too_long(asked: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_graceful.probes.endpoint.PATIENCE", 0.05)
    assert asked(b"GET /live HTTP/1.1\r\n") == ""


def test_who_says_nothing_keeps_nobody_waiting(
    asked: Callable[..., str], endpoint: Endpoint
) -> None:
    with ExitStack() as stack:
        for _ in range(3 * MOST):
            silent = socket.create_connection(("127.0.0.1", endpoint.port), TIMEOUT)
            stack.enter_context(silent).sendall(b"GET /li")
            turn(endpoint)
        assert len(endpoint.waits_for()) == MOST + 1
        assert asked(b"GET /live HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 200 OK")


def test_an_answer_ends_whoever_else_has_the_connection(
    asked: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that was forked when it had just been made."""
    had: list[int] = []

    def client(sock: Any) -> _Client:
        had.append(os.dup(sock.fileno()))
        return _Client(sock)

    monkeypatch.setattr("celery_graceful.probes.endpoint._Client", client)
    assert asked(b"GET /live HTTP/1.1\r\n\r\n").endswith("live\n")
    os.close(*had)


def test_without_a_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_graceful.probes.endpoint.AGAIN", TIMEOUT)
    endpoint = Endpoint("127.0.0.1", 0, {})
    (fd,) = endpoint.waits_for()
    with socket.create_connection(("127.0.0.1", endpoint.port), TIMEOUT):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, limits[1]))
        try:
            fill = []
            with suppress(OSError):
                while True:
                    fill.append(os.dup(0))
            endpoint.go_on([fd])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for each in fill:
                os.close(each)
        assert endpoint.waits_for() == {}, "it does not turn in circles"
        monkeypatch.setattr(endpoint, "_deaf_until", 0.0)
        endpoint.go_on([fd])
        assert len(endpoint.waits_for()) == 2
    endpoint.close()


def test_nobody_shares_a_port() -> None:
    endpoint = Endpoint("127.0.0.1", free_port(), {})  # nobody else takes it in between
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:\d+.*give each worker of a host its"):
        Endpoint("127.0.0.1", endpoint.port, {})
    endpoint.close()
    Endpoint("127.0.0.1", endpoint.port, {}).close()


def test_a_port_that_another_has_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a worker that drains, on a machine where the next one starts meanwhile."""
    other, owner = Endpoint("127.0.0.1", free_port(), {}), Owner()
    asked = probes(tmp_path, owner, probe_port=other.port, probe_stale=0.5)
    asked.start({"/more": lambda: ("more", "text/plain")})
    assert caplog.text.count("give each worker of a host its own") == 1
    other.close()

    def answers() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", other.port), TIMEOUT) as to:
            to.sendall(b"GET /more HTTP/1.0\r\n\r\n")
            return to.makefile("rb").read().endswith(b"more")
        return False

    wait_until(answers, "it answers", 0.05)
    asked.end()
    assert not answers()


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd(tmp_path: Path, abstract: bool) -> None:
    name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.setblocking(False)
        systemd = Systemd.announced(environ)
        assert systemd is not None
        assert systemd.every == 1000.0
        systemd.tell("", "Not ready: it starts", True)
        systemd.tell("READY=1", "Ready", True)
        systemd.tell("READY=1", "Ready", True)
        systemd.tell("STOPPING=1", "Stopping", False)
        heard = [manager.recv(4096).decode() for _ in range(3)]
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    assert heard == [
        "STATUS=Not ready: it starts\nWATCHDOG=1",
        "READY=1\nSTATUS=Ready",
        "STOPPING=1\nSTATUS=Stopping",
    ]
    systemd.tell("", "to nobody", True)


def test_a_manager_that_does_not_listen_holds_up_nobody(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    systemd = Systemd(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        for number in range(10_000):  # more than any buffer holds
            systemd.tell("", str(number), True)
        manager.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                manager.recv(4096)
        systemd.tell("READY=1", "Ready", True)
        assert manager.recv(4096) == b"READY=1\nSTATUS=Ready", "it is said again"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_systemd(environ: dict[str, str]) -> None:
    assert Systemd.announced(environ) is None


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "²"},
        {"WATCHDOG_USEC": ""},
    ],
)
def test_without_a_watchdog(watchdog: dict[str, str]) -> None:
    """It is that of another process, or there is none."""
    systemd = Systemd.announced({"NOTIFY_SOCKET": "/x", **watchdog})
    assert systemd is not None
    assert systemd.every == float("inf")


def probes(tmp_path: Path, owner: Owner, **conf: Any) -> Probes:
    asked = health(ALoop(), **conf)
    return Probes(Settings(**conf), "w@h", asked, owner, embedded=False, restarts=lambda: False)


def test_nothing_is_paid_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_graceful.system.native.start_thread", None)
    gc.collect()  # what other tests have left closes nothing meanwhile
    files = len(os.listdir("/proc/self/fd"))
    nothing = probes(tmp_path, Owner())
    nothing.start()
    nothing.on_phase()
    assert len(os.listdir("/proc/self/fd")) <= files
    nothing.end()


def test_its_life(tmp_path: Path) -> None:
    """From its start, over a fork, to its end."""
    owner = Owner()
    asked = probes(tmp_path, owner, probe_file=str(tmp_path / "%n"), probe_port=0, probe_stale=1.0)
    asked.start()
    path = str(tmp_path / "w")
    wait_until(lambda: os.path.exists(path) and celery_graceful_probe.look("live", path)[0] == 0)
    before = {*os.listdir("/proc/self/fd")}
    pid = os.fork()
    if pid == 0:
        # Closed are the file, the port and the bell.
        os._exit(len(before - {*os.listdir("/proc/self/fd")}))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) >= 2
    assert os.path.exists(path)
    asked.end()
    asked.end()
    assert not os.path.exists(path)
