"""``python -m tests.soak``: see ``make soak``.

With ``--kill`` workers are not replaced but killed with -9, and what is asked is less: a task may
run again, but each ends, and so does each chord. They are tracked, unless ``--untracked`` says so.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from celery_graceful import Graceful
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.store.store import find_store
from tests.servers import RabbitServer, RedisServer
from tests.support.workers import Worker

POOLS = ("prefork", "threads", "gevent")
BROKERS = ("redis", "rabbitmq")

WORKERS, CONCURRENCY = 3, 4

#: Seconds between two deploys of one worker, as in a rolling deploy that never ends.
REPLACE_EVERY = 2.0

#: Seconds between two kills; what is dead is found a moment later.
KILL_EVERY = 2.5
TUNED = {"lease_ttl": 2.0, "heartbeat_interval": 0.5, "rescue_interval": 0.5, "poison_limit": 0}

#: Seconds without any progress after which what has not ended stays open.
PATIENCE = 30.0

#: Loop items of one task.
ITEMS = 20


@dataclass
class Outcome:
    """What became of the tasks of one run."""

    sent: int = 0
    chords: int = 0
    stops: int = 0
    #: Bodies that ran again.
    again: int = 0
    slowest_stop: float = 0.0
    faults: list[str] = field(default_factory=list)


class Soak:
    """One pool on one broker.

    Args:
        pool: The pool.
        broker: URL of the broker.
        results: URL of the Redis for results; of the store as well, where the broker is none.
        seconds: How long tasks are sent.
        seed: Of all that is random.
        folder: For journal and logs.
        kills: Workers are killed.
        tracked: Chords are in the ledger of batches.
        chords: Go on until so many were sent.
    """

    def __init__(
        self,
        pool: str,
        broker: str,
        results: str,
        *,
        seconds: float,
        seed: int,
        folder: Path,
        kills: bool = False,
        tracked: bool = False,
        chords: int = 0,
    ) -> None:
        self.kills, self.tracked, self.chords = kills, tracked, chords
        #: Group and body of each.
        self.bodies: dict[str, str] = {}
        self.pool, self.seconds, self.folder = pool, seconds, folder
        self.rng = random.Random(f"{seed} {pool}")
        self.journal = folder / "journal"
        self.journal.touch()
        self.env = {"BROKER_URL": broker, "RESULT_URL": results, "SOAK_JOURNAL": str(self.journal)}
        if kills:
            self.env |= {f"CONF_graceful_{name}": str(value) for name, value in TUNED.items()}
        self.app = Celery("soak", broker=broker, backend=results, set_as_current=False)
        if tracked:
            self.env["CONF_graceful_track_chords"] = "True"
            self.app.conf.graceful_track_chords = True
            if not broker.startswith("redis"):
                self.app.conf.graceful_store = results
                self.env["CONF_graceful_store"] = repr(results)
            Graceful(self.app)
        self.expected: Counter[str] = Counter()
        self.loops: list[str] = []
        self.outcome = Outcome()
        self._knows_new = False
        self._started = itertools.count(1)
        self.workers = [self._start(new=False) for _ in range(WORKERS)]

    def run(self) -> Outcome:
        """All of it."""
        try:
            for worker in self.workers:
                worker.wait_line("READY")
            self._deploys()
            self._settle()
            for worker in list(self.workers):
                self._end(worker)
            self._judge()
        finally:
            for worker in self.workers:
                worker.kill()
        return self.outcome

    def _start(self, *, new: bool) -> Worker:
        env = {**self.env, **({"SOAK_NEW": "1"} if new else {})}
        self._knows_new |= new
        name = f"{self.pool}-{next(self._started)}"
        return Worker(
            "tests.soak.app",
            pool=self.pool,
            concurrency=CONCURRENCY,
            env=env,
            hostname=f"{name}@soak",
        )

    def _deploys(self) -> None:
        began = time.monotonic()
        end, half, replace_at = began + self.seconds, began + self.seconds / 2, began
        while (now := time.monotonic()) < end or len(self.bodies) < self.chords:
            new = now > half
            self._send(new)
            if now >= replace_at and all(worker.count("READY") for worker in self.workers):
                replace_at = now + (KILL_EVERY if self.kills else REPLACE_EVERY)
                old = self.workers.pop(0)
                old.signal(signal.SIGKILL if self.kills else signal.SIGTERM, group=self.kills)
                self.workers.append(self._start(new=new))
                if self.kills:
                    self._note_end(old)
                else:
                    self._end(old)
            time.sleep(0.1)
        if not self._knows_new:  # a short run: somebody has to
            self.workers.append(self._start(new=True))

    def _end(self, worker: Worker) -> None:
        worker.term()
        status = worker.wait()
        self.outcome.stops += 1
        self.outcome.slowest_stop = max(self.outcome.slowest_stop, worker.took)
        if status != 0:
            self.outcome.faults.append(f"worker {worker.pid} ended with status {status}")
        if not self.kills:
            for line in worker.find(r".*(Traceback|CRITICAL|ERROR).*"):
                self.outcome.faults.append(f"worker {worker.pid}: {line.group(0)[:160]}")
        self._keep_log(worker)

    def _note_end(self, worker: Worker) -> None:
        worker.wait()
        self.outcome.stops += 1
        self._keep_log(worker)
        worker.kill()

    def _keep_log(self, worker: Worker) -> None:
        (self.folder / str(worker.pid)).write_text(worker.output)

    # -- load --------------------------------------------------------------------------

    def _one(self, name: str, *args: object, **options: object) -> Signature:
        kwargs = options.pop("kwargs", {})
        return self.app.signature(f"tests.soak.app.{name}", args=args, kwargs=kwargs, **options)

    def _work(self, *args: object) -> Signature:
        return self._one("work", *args, kwargs={"seconds": self.rng.uniform(0.01, 0.4)})

    def _send(self, new: bool) -> None:
        """One of each kind."""
        plans = [
            self._work(1),
            self._one("stubborn", kwargs={"seconds": self.rng.uniform(0.1, 0.8)}),
            self._one("plain"),
            self._one("tries"),
            self._one("loop", ITEMS),
            self._work(1).set(countdown=self.rng.uniform(0.5, 5.0)),
            chain(self._work(1), self._work(), self._work()),
            chord(group(self._work(i) for i in range(4)), self._work()),
        ]
        if new:
            plans.append(self._one("new"))
        if self.chords:
            plans += [plans[7]] * 7
        plan = self.rng.choice(plans)
        result = plan.apply_async()
        if plan.task == "tests.soak.app.loop":
            self.loops.append(result.id)
        elif plan.task == "celery.chord":
            self.bodies[result.parent.id] = result.id
        self._expect(result)

    def _expect(self, result: object) -> None:
        """Ids of all tasks that a result stands for."""
        todo, seen = [result], set()
        while todo:
            one = todo.pop()
            if one is None or one.id in seen:
                continue
            seen.add(one.id)
            members = getattr(one, "results", None)
            if members is None:
                self.expected[one.id] += 1
            todo += [*(members or ()), one.parent]
        self.outcome.sent = sum(self.expected.values())

    # -- what came of it ---------------------------------------------------------------

    def _lines(self, kind: str) -> list[list[str]]:
        lines = self.journal.read_text().splitlines()
        return [line.split(" ", 2)[1:] for line in lines if line.startswith(f"{kind} ")]

    def _settle(self) -> None:
        size, since = -1, time.monotonic()
        while time.monotonic() - since < PATIENCE:
            kinds = ("E", "F") if self.kills else ("E",)
            if {task_id for kind in kinds for task_id, _ in self._lines(kind)} >= set(
                self.expected
            ):
                return
            if self.journal.stat().st_size != size:
                size, since = self.journal.stat().st_size, time.monotonic()
            time.sleep(0.2)

    def _judge(self) -> None:
        if self.kills:
            self._judge_kills()
            return
        faults = self.outcome.faults
        ended = Counter(task_id for task_id, _ in self._lines("E"))
        for task_id in self.expected:
            if ended[task_id] != 1:
                faults.append(f"{task_id} ended {ended[task_id]} times")
        faults += [f"{task_id} failed: {text}" for task_id, text in self._lines("F")]
        faults += [f"{i} ended, and was not sent" for i in ended if i not in self.expected]
        rows = Counter((task_id, row) for task_id, row in self._lines("R"))
        for task_id in self.loops:
            if [rows[task_id, str(item)] for item in range(ITEMS)] != [1] * ITEMS:
                faults.append(f"{task_id} did some of its rows twice, or not at all")

    def _judge_kills(self) -> None:
        """Each chord has ended; what ran twice was killed before anybody knew that it had ended."""
        self.outcome.chords = len(self.bodies)
        over = {task_id for kind in "EF" for task_id, _ in self._lines(kind)}
        for chord_id, body in self.bodies.items():
            if body not in over and not self.app.AsyncResult(body).ready():
                self.outcome.faults.append(
                    f"chord {chord_id} has not ended: {self._counter(chord_id)}"
                )
        bodies = set(self.bodies.values())
        ran = Counter(task_id for task_id, _ in self._lines("E"))
        self.outcome.faults += [
            f"{one} has not ended" for one in self.expected if one not in over and one not in bodies
        ]
        self.outcome.again = sum(ran[body] - 1 for body in bodies if ran[body] > 1)

    def _counter(self, chord_id: str) -> str:
        """What Celery's counter and the ledger know of it."""
        backend, found = self.app.backend, {}
        for end in (".j", ".t", ".s", ".c"):
            key = backend.get_key_for_group(chord_id, end)
            kind = backend.client.type(key)
            found[end] = backend.client.get(key) if kind == b"string" else backend.client.zcard(key)
        if not self.tracked:
            return f"{found}"
        store = find_store(self.app)
        assert store is not None
        try:
            return f"{found}, {BatchLedger(store).status(chord_id)}"
        except Exception as exc:
            return f"{found}, {exc!r}"


def left_in_redis(client: redis.Redis) -> list[str]:
    """Keys that nobody should have left; results, bells and what expires are none."""
    fine = ("celery-task-meta-", "_kombu.", "graceful:bell:", "graceful:epoch", "graceful:rescuer")
    return [
        key
        for key in map(str, client.scan_iter("*"))
        if not key.startswith(fine) and not (client.ttl(key) > 0 and "checkpoint" not in key)
    ]


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    seconds = float(os.environ.get("SOAK_SECONDS") or 60)
    parser.add_argument("--seconds", type=float, default=seconds, help="for each pool and broker")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SOAK_SEED") or 0))
    parser.add_argument("--pool", action="append", choices=POOLS, help="one of them, or more")
    parser.add_argument("--broker", action="append", choices=BROKERS, help="one of them, or more")
    parser.add_argument("--kill", action="store_true", help="kill -9 instead of SIGTERM")
    parser.add_argument("--chords", type=int, default=0, help="with --kill: send so many, at least")
    parser.add_argument("--untracked", action="store_true", help="with --kill: do not track them")
    options = parser.parse_args()
    how: dict[str, Any] = {}
    if options.kill:
        how = {"kills": True, "tracked": not options.untracked, "chords": options.chords}
    seed = options.seed or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed} (again: SOAK_SEED={seed})", flush=True)
    print("broker   pool     |  sent stops slowest | faults", flush=True)
    good = True
    for name in options.broker or BROKERS:
        for pool in options.pool or POOLS:
            outcome, folder = soak(name, pool, options.seconds, seed, **how)
            print(
                f"{name:8} {pool:8} | {outcome.sent:5} {outcome.stops:5} "
                f"{outcome.slowest_stop:5.1f} s | {len(outcome.faults)}",
                flush=True,
            )
            if options.kill:
                print(f"  {outcome.chords} chords; bodies that ran again: {outcome.again}")
            if outcome.faults:
                good = False
                print(*(f"  {fault}" for fault in outcome.faults[:10]), sep="\n")
                print(f"  journal and logs: {folder}", flush=True)
    return 0 if good else 1


def soak(name: str, pool: str, seconds: float, seed: int, **how: Any) -> tuple[Outcome, Path]:
    """One pool on one broker, with servers of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-{pool}-"))
    how |= {"seconds": seconds, "seed": seed, "folder": folder}
    kills = how.get("kills", False)
    with RedisServer() as server, server.client() as client:
        if name == "redis":
            outcome = Soak(pool, server.url(), server.url(), **how).run()
        else:
            with RabbitServer() as rabbit:
                vhost = rabbit.vhost()
                outcome = Soak(
                    pool,
                    rabbit.url(vhost),
                    server.url(),
                    seconds=seconds,
                    seed=seed,
                    folder=folder,
                    **how,
                ).run()
                left = rabbit.queue_length("celery", vhost)
                if left and not kills:
                    outcome.faults.append(f"{left} messages left in the queue")
        if not kills:
            outcome.faults += [f"left in Redis: {key}" for key in left_in_redis(client)]
    return outcome, folder


if __name__ == "__main__":
    sys.exit(main())
