"""``python -m tests.soak``: see ``make soak``.

With ``--kill`` workers are not replaced but killed with -9, and what is asked is less: a task may
run again, but each ends, and so does each chord and each `Batch`. Chords are tracked, unless
``--untracked`` says so. Nothing is repaired, and everything that stands still is looked at: never
is one missing, on this package's transport. A thousand chords, and some hundred kills, are::

    python -m tests.soak --kill --broker redis --seconds 5 --chords 250 \\
        --pool prefork --pool threads --pool gevent --pool eventlet
"""

from __future__ import annotations

import argparse
import gc
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

from celery_graceful import Batch, Graceful
from celery_graceful.batches.keys import INDEX
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.store.app_stores import find_store
from tests.servers import RabbitServer, RedisServer
from tests.support.workers import Worker

POOLS = ("prefork", "threads", "gevent")
#: What else ``--pool`` may name.
OTHER_POOLS = ("eventlet", "solo")
BROKERS = ("redis", "rabbitmq")

WORKERS, CONCURRENCY = 3, 4

#: Seconds between two deploys of one worker, as in a rolling deploy that never ends.
REPLACE_EVERY = 2.0

#: Seconds between two kills; what is dead is found a moment later.
KILL_EVERY = 2.5
TUNED = {
    "lease_ttl": 2.0,
    "heartbeat_interval": 0.5,
    "rescue_interval": 0.5,
    "poison_limit": 0,
    "batch_missing_after": 4.0,
    "batch_repair": "off",
}

#: Seconds without any progress after which what has not ended stays open.
PATIENCE = 30.0

#: Loop items of one task.
ITEMS = 20


@dataclass
class Outcome:
    """What became of the tasks of one run."""

    sent: int = 0
    chords: int = 0
    batches: int = 0
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
        self.batches: list[Batch] = []
        self.pool, self.seconds, self.folder = pool, seconds, folder
        self.rng = random.Random(f"{seed} {pool}")
        self.journal = folder / "journal"
        self.journal.touch()
        self.env = {"BROKER_URL": broker, "RESULT_URL": results, "SOAK_JOURNAL": str(self.journal)}
        if kills:
            self.env |= {f"CONF_graceful_{name}": repr(value) for name, value in TUNED.items()}
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
            self._chord(),
        ]
        if new:
            plans.append(self._one("new"))
        if self.chords:
            plans += [plans[7]] * 7
        if self.tracked and not self.rng.randrange(10):
            self._send_batch()
        plan = self.rng.choice(plans)
        result = plan.apply_async()
        if plan.task == "tests.soak.app.loop":
            self.loops.append(result.id)
        elif plan.task == "celery.chord":
            header = result.parent
            while not hasattr(header, "results"):  # the body is a chain
                header = header.parent
            self.bodies[header.id] = result.id
        self._expect(result)

    def _chord(self) -> Signature:
        """Of four; with kills some are made of more than tasks."""
        header, body = [self._work(i) for i in range(4)], self._work()
        kind = self.rng.randrange(4) if self.kills else 0
        if kind == 1:
            header[1] = chain(self._work(1), self._work())
            header[2] = self._one("tries")
            header[3].set(countdown=self.rng.uniform(0.5, 3.0))
        elif kind == 2:  # a chord in the header is Celery's own, and may be missing: see the docs
            body = chain(body, self._work())
        elif kind == 3:
            header[1] = chain(self._work(1), group(self._work() for _ in range(2)), self._work())
        return chord(group(header), body)

    def _send_batch(self) -> None:
        batch = Batch(on_success=self._one("called"), on_complete=self._one("called"), app=self.app)
        members = [self._work(1) for _ in range(3)]
        members += [self._one("tries"), self._one("plain"), chain(self._work(1), self._work())]
        members.append(self._work(1).set(countdown=self.rng.uniform(0.5, 3.0)))
        batch.apply_async(members)
        self.batches.append(batch)

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
            ended = {task_id for kind in kinds for task_id, _ in self._lines(kind)}
            if ended >= set(self.expected) and not self._unfinished():
                return
            if self.journal.stat().st_size != size:
                size, since = self.journal.stat().st_size, time.monotonic()
            time.sleep(0.2)

    def _unfinished(self) -> list[str]:
        """Batches, and chords, that the ledger waits for."""
        store = find_store(self.app) if self.tracked else None
        if store is None:
            return []
        left: list[str] = store.execute("ZRANGE", [INDEX], [0, -1])
        return left

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
        self.outcome.faults += [f"{one} failed: {text}" for one, text in self._lines("F")]
        for one in self._unfinished():
            self.outcome.faults.append(f"the ledger waits for {self._counter(one)}")
        self._judge_batches()
        for log in self.folder.iterdir():
            missing = [line for line in log.read_text().splitlines() if " missing (" in line]
            self.outcome.faults += [f"worker {log.name}: {line}" for line in missing]

    def _judge_batches(self) -> None:
        self.outcome.batches = len(self.batches)
        called = Counter(batch_id for batch_id, _ in self._lines("C"))
        for batch in self.batches:
            status = batch.status()
            if not status.finished or status.succeeded != status.total:
                self.outcome.faults.append(f"batch {batch.id}: {status}")
            if called[batch.id] < 2:
                self.outcome.faults.append(f"batch {batch.id} was told {called[batch.id]} times")
            self.outcome.again += max(0, called[batch.id] - 2)

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
    parser.add_argument("--pool", action="append", choices=POOLS + OTHER_POOLS)
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
                print(
                    f"  {outcome.chords} chords, {outcome.batches} batches; bodies and callbacks "
                    f"that ran again: {outcome.again}"
                )
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
                outcome = Soak(pool, rabbit.url(vhost), server.url(), **how).run()
                left = rabbit.queue_length("celery", vhost)
                if left and not kills:
                    outcome.faults.append(f"{left} messages left in the queue")
        if not kills:
            outcome.faults += [f"left in Redis: {key}" for key in left_in_redis(client)]
        gc.collect()  # results that unsubscribe when they are collected; here somebody answers
    return outcome, folder


if __name__ == "__main__":
    sys.exit(main())
