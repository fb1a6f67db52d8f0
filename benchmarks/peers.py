"""Other queues of Python's, side by side: what they send and run in a second, and lose at a kill.

They are installed into an environment of their own (the extra ``peers``), so that nothing that is
tested depends on them. All run the same task, on the same Redis, at the same concurrency.
"""

from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks.tables import table
from benchmarks.waiting import Stuck
from tests.servers import RedisServer
from tests.support.processes import ProcessGroup

__all__ = ["peers"]

_ROOT = Path(__file__).parent.parent
_VENV = _ROOT / "build/peers"

#: Seconds: the limit of each wait; and after the last kill until what has not run counts as lost.
#: dramatiq takes a worker for dead after a minute.
TIMEOUT, SETTLE = 300.0, 90.0

#: Of each kill: tasks that are sent, seconds that each takes, and how many ran before it.
SENT, TAKES, BEFORE = 40, 0.05, 10


@dataclass(frozen=True)
class Peer:
    """One worker.

    Attributes:
        name: For the table.
        app: Its module in ``benchmarks.peer_apps``.
        command: After ``python -m``.
        env: More environment.
    """

    name: str
    app: str
    command: str
    env: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.app == "with_celery" else _VENV / "bin/python"


_CELERY = "celery -A benchmarks.peer_apps.with_celery worker -l ERROR --without-gossip -P "
_PLAIN, _STREAM = {"BENCH_PLAIN": "1"}, {"BENCH_STREAM": "1"}
_DRAMATIQ = "dramatiq benchmarks.peer_apps.with_dramatiq "
_HUEY = "huey.bin.huey_consumer benchmarks.peer_apps.with_huey.huey -q "
_TASKIQ = "taskiq worker benchmarks.peer_apps.with_taskiq:broker --log-level ERROR "

#: By what can be compared: ten tasks at once in one process, and two processes with one each.
PEERS: Mapping[str, tuple[Peer, ...]] = {
    "1 x 10": (
        Peer("plain Celery, threads", "with_celery", f"{_CELERY}threads -c 10", _PLAIN),
        Peer("celery_graceful, threads", "with_celery", f"{_CELERY}threads -c 10"),
        Peer("dramatiq", "with_dramatiq", f"{_DRAMATIQ}-p 1 -t 10"),
        Peer("huey, threads", "with_huey", f"{_HUEY}-w 10 -k thread"),
        Peer("taskiq, list", "with_taskiq", f"{_TASKIQ}-w 1 --max-async-tasks 10"),
        Peer("taskiq, stream", "with_taskiq", f"{_TASKIQ}-w 1 --max-async-tasks 10", _STREAM),
        Peer("arq", "with_arq", "arq benchmarks.peer_apps.with_arq.Settings"),
    ),
    "2 x 1": (
        Peer("plain Celery, prefork", "with_celery", f"{_CELERY}prefork -c 2", _PLAIN),
        Peer("celery_graceful, prefork", "with_celery", f"{_CELERY}prefork -c 2"),
        Peer("dramatiq", "with_dramatiq", f"{_DRAMATIQ}-p 2 -t 1"),
        Peer("huey, processes", "with_huey", f"{_HUEY}-w 2 -k process"),
        Peer("taskiq, list", "with_taskiq", f"{_TASKIQ}-w 2 --max-async-tasks 1"),
        Peer("taskiq, stream", "with_taskiq", f"{_TASKIQ}-w 2 --max-async-tasks 1", _STREAM),
        Peer("RQ", "with_rq", "rq.cli worker-pool -q -n 2 -u {url}"),
    ),
}


class Round(NamedTuple):
    """Figures of one round: sent and run in a second, and microseconds of the processor a task."""

    sent: float
    ran: float
    cpu: float


def peers(redis: RedisServer, *, quick: bool) -> str:
    """Beside other queues: sent and run in a second, medians; and what ``kill -9`` takes away.

    ``BENCH_KILLS`` says how often each is killed (3).
    """
    install()
    tasks, rounds = (300, 2) if quick else (2000, 5)
    kills = int(os.environ.get("BENCH_KILLS", "3"))
    head = ("at once, queue", "sent /s", "tasks/s", "to plain", "CPU us/task", "kills", "not back")
    rows = []
    for setup, some in PEERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = _throughput(redis, some, Path(folder), tasks, rounds)
        with tempfile.TemporaryDirectory() as folder:
            lost = _losses(redis, some, Path(folder), kills)
        plain = found[some[0]]
        for peer in some:
            mine = found[peer]
            rows.append(
                (
                    f"{setup}, {peer.name}",
                    f"{median(one.sent for one in mine):.0f}",
                    f"{median(one.ran for one in mine):.0f}",
                    f"{median(a.ran / b.ran for a, b in zip(mine, plain, strict=True)):.2f}",
                    f"{median(one.cpu for one in mine):.0f}",
                    f"{kills}",
                    f"{lost[peer]} of {kills * SENT}",
                )
            )
    return f"{table(head, rows)}\n\nNot back: {SETTLE:g} s after the last kill."


def install() -> None:
    """Make the environment of the peers, unless it is there."""
    config = configparser.ConfigParser()
    config.read(_ROOT / "setup.cfg")
    wanted = config["options.extras_require"]["peers"].split()
    done = _VENV / "installed"
    if not done.exists() or done.read_text() != "\n".join(wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", _VENV], check=True)
        pip = [_VENV / "bin/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *wanted], check=True, timeout=2 * TIMEOUT)
        done.write_text("\n".join(wanted))


class PeerWorker(ProcessGroup):
    """A worker of a peer, with a database and a list of its own of what has run.

    Args:
        peer: Whose.
        url: Of its database.
        ran: The file of what has run; as many bytes as there are tasks.
    """

    def __init__(self, peer: Peer, url: str, ran: Path) -> None:
        self.peer, self.ran = peer, ran
        self.env = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "BENCH_PEER_REDIS": url,
            "BENCH_PEER_RAN": str(ran),
            **peer.env,
        }
        command = [word.format(url=url) for word in peer.command.split()]
        self.log = ran.with_suffix(".log").open("ab")
        super().__init__(
            [str(peer.python), "-m", *command],
            cwd=_ROOT,
            env=self.env,
            stdout=self.log,
            stderr=self.log,
        )

    def send(self, first: int, count: int, seconds: float = 0.0) -> float:
        """Have tasks sent by another process; how many a second."""
        argv = [self.peer.python, "-m", "benchmarks.peer_apps.send", self.peer.app]
        argv += [str(first), str(count), str(seconds)]
        done = subprocess.run(
            argv, cwd=_ROOT, env=self.env, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT
        )
        return max(1, count - 1) / float(done.stdout)

    def count(self, first: int, count: int) -> int:
        """How many of these have run."""
        return self.ran.read_bytes()[first : first + count].count(1)

    def wait(self, first: int, count: int, least: int) -> None:
        """Wait until so many of these have run.

        Raises:
            Stuck: They have not, for too long.
        """
        until = time.monotonic() + TIMEOUT
        while self.count(first, count) < least:
            if time.monotonic() > until:
                log = self.ran.with_suffix(".log").read_text(errors="replace")[-2000:]
                ran = f"{self.count(first, count)} of {least} ran"
                raise Stuck(f"{self.peer.name}: {ran} in {TIMEOUT:g} s\n{log}")
            time.sleep(0.002)

    def cpu_seconds(self) -> float:
        """What it, its children and those that have ended have used of the processor."""
        main = psutil.Process(self.pid)
        used = 0.0
        for process in (main, *main.children(recursive=True)):
            try:
                used += sum(process.cpu_times()[:4])
            except psutil.NoSuchProcess:
                pass  # a job's own, which has just ended: its parent has its time
        return used

    def kill(self) -> None:
        super().kill()
        self.log.close()


def _start(redis: RedisServer, peer: Peer, folder: Path, tasks: int) -> PeerWorker:
    ran = folder / f"{peer.name.replace(' ', '-')}.ran"
    ran.write_bytes(bytes(tasks))
    return PeerWorker(peer, redis.url(redis.fresh_db()), ran)


def _throughput(
    redis: RedisServer, some: tuple[Peer, ...], folder: Path, tasks: int, rounds: int
) -> dict[Peer, list[Round]]:
    found: dict[Peer, list[Round]] = {peer: [] for peer in some}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_start(redis, peer, folder, (rounds + 1) * tasks)) for peer in some
        ]
        for worker in workers:  # it starts, and warms up
            worker.send(0, tasks)
            worker.wait(0, tasks, tasks)
        for turn in range(1, rounds + 1):
            for worker in workers[:: -1 if turn % 2 else 1]:
                found[worker.peer].append(_round(worker, turn * tasks, tasks))
    return found


def _round(worker: PeerWorker, first: int, tasks: int) -> Round:
    os.killpg(worker.pid, signal.SIGSTOP)  # else it would run them while they are sent
    sent = worker.send(first, tasks)
    used, began = worker.cpu_seconds(), time.monotonic()
    os.killpg(worker.pid, signal.SIGCONT)
    worker.wait(first, tasks, tasks)
    took = time.monotonic() - began
    return Round(sent, tasks / took, (worker.cpu_seconds() - used) / tasks * 1e6)


def _losses(
    redis: RedisServer, some: tuple[Peer, ...], folder: Path, kills: int
) -> dict[Peer, int]:
    """Tasks that were sent, and have not run when all has been over for a while."""
    tasks = kills * SENT
    with ExitStack() as stack:
        workers = []
        for peer in some:
            worker = _start(redis, peer, folder, tasks)
            for kill in range(kills):
                worker.send(kill * SENT, SENT, TAKES)
                worker.wait(kill * SENT, SENT, BEFORE)
                worker.kill()
                worker = PeerWorker(peer, worker.env["BENCH_PEER_REDIS"], worker.ran)
            workers.append(stack.enter_context(worker))
        until = time.monotonic() + SETTLE
        while time.monotonic() < until and any(w.count(0, tasks) < tasks for w in workers):
            time.sleep(0.1)
        return {worker.peer: tasks - worker.count(0, tasks) for worker in workers}
