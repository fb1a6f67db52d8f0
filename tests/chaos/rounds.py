"""Rounds of chaos: a fleet that works, what hits it, and what came of that."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from celery import Celery
from kombu.utils.json import loads

from celery_graceful.poison import quarantine
from celery_graceful.store.app_stores import find_workers_store
from tests.chaos.fleet import Fleet
from tests.chaos.verdict import Blow, Verdict, judge, read
from tests.servers import RedisServer

__all__ = ["POOLS", "WHOLE", "Round", "rounds"]

POOLS = ("prefork", "threads", "gevent")

#: Tasks of a whole run, for each pool.
SHORT, LONG = 5000, 200

#: At so many kills in all, a run is a whole one; fewer get a share of the tasks.
WHOLE = 1000

#: Chances that something else happens with a kill.
CUT, PAUSE, RESTART = 0.10, 0.08, 0.06

#: Seconds without any progress after which what is open stays open; of plain Celery, some always
#: does.
PATIENCE, PLAIN_PATIENCE = 60.0, 10.0


class Chaos:
    """One pool, with celery_graceful or without.

    Args:
        pool: The pool.
        plain: Without.
        kills: How many times a process is killed.
        seed: Of all that is random.
        folder: For journal and logs.
    """

    def __init__(self, pool: str, *, plain: bool, kills: int, seed: int, folder: Path) -> None:
        self.kills, self.rng = kills, random.Random(f"{seed} {pool}")
        self.plain, self.pool, self.folder = plain, pool, folder
        self.journal = folder / "journal"
        self.journal.touch()
        self.server = RedisServer(appendonly=True)
        self.blows: list[Blow] = []
        self.sent: list[str] = []

    def run(self, short: int, long: int) -> Verdict:
        """All of it."""
        seconds = [self.rng.uniform(0.001, 0.03) for _ in range(short)]
        seconds += [self.rng.uniform(0.5, 3.0) for _ in range(long)]
        self.rng.shuffle(seconds)
        with self.server:
            self.app = Celery("chaos", broker=self.server.url(), set_as_current=False)
            env = {"BROKER_URL": self.server.url(), "CHAOS_JOURNAL": str(self.journal)}
            if self.plain:
                env["CHAOS_PLAIN"] = "1"
            fleet = Fleet(self.pool, env)
            try:
                fleet.ready()
                self._havoc(fleet, seconds)
                self._settle()
            finally:
                fleet.stop(self.folder)
            lines = [f"{blow}\n" for blow in self.blows]
            (self.folder / "blows").write_text("".join(lines))
            return judge(self.sent, self.journal, self.blows, self._quarantined(), self._held())

    def _havoc(self, fleet: Fleet, seconds: list[float]) -> None:
        done = 0
        while done < self.kills:
            self._send(seconds[: 1 + len(seconds) // (self.kills - done)])
            del seconds[: 1 + len(seconds) // (self.kills - done)]
            self._disturb()
            killed = False
            while not killed:
                time.sleep(self.rng.uniform(0.0, 1.2))
                blow = fleet.kill_one(self.rng, self.folder)
                if blow is not None:
                    self.blows.append(blow)
                    killed = True
            done += 1
        self._send(seconds)

    def _send(self, seconds: list[float]) -> None:
        for one in seconds:
            task_id = f"{self.pool}-{len(self.sent)}"
            self.app.send_task("tests.chaos.app.work", [one], task_id=task_id)
            self.sent.append(task_id)
        self.app.close()  # no connection of ours is cut

    def _disturb(self) -> None:
        """Now and then something happens to the server."""
        chance, began = self.rng.random(), time.monotonic()
        kind = ""
        if chance < CUT:
            kind = "cut connections"
            with self.server.client() as client:
                own = client.client_id()
                for other in client.client_list():
                    if int(other["id"]) != own:
                        client.client_kill_filter(_id=other["id"])
        elif chance < CUT + PAUSE:
            kind = "pause the server"
            self.server.pause()
            time.sleep(self.rng.uniform(0.2, 8.0))  # also for longer than a lease
            self.server.resume()
        elif chance < CUT + PAUSE + RESTART:
            kind = "restart the server"
            if self.rng.random() < 0.5:
                self.server.kill()
                time.sleep(self.rng.uniform(0.0, 3.0))
                self.server.start()
            else:
                self.server.restart()
        if kind:
            self.blows.append(Blow(kind, began, time.monotonic()))

    def _settle(self) -> None:
        """Wait until all has ended, or nothing happens any more."""
        size, since = 0, time.monotonic()
        while time.monotonic() - since < (PLAIN_PATIENCE if self.plain else PATIENCE):
            ended = {i for i, runs in read(self.journal).items() if any(r.end for r in runs)}
            if ended | self._quarantined() >= set(self.sent):
                return
            if self.journal.stat().st_size != size:
                size, since = self.journal.stat().st_size, time.monotonic()
            time.sleep(0.2)

    def _quarantined(self) -> set[str]:
        store = find_workers_store(self.app)
        return set() if self.plain or not store else {one.id for one in quarantine.entries(store)}

    def _held(self) -> set[str]:
        """What is still at the broker, wherever."""
        held: list[Any] = []
        with self.server.client() as client:
            for key in client.scan_iter("*"):
                kind = client.type(key)
                if kind == "list" and not key.startswith("graceful:"):  # not rings of ours
                    held += client.lrange(key, 0, -1)
                elif kind == "hash" and key.startswith("unacked"):
                    held += [loads(entry)[0] for entry in client.hvals(key)]
                elif kind == "hash" and key.startswith("graceful:claims:"):
                    held += [claim.partition("\0")[2] for claim in client.hvals(key)]
        found = set()
        for message in held:
            headers = (loads(message) if isinstance(message, str) else message).get("headers", {})
            found.add(headers.get("id"))
        return found


class Round(NamedTuple):
    """What came of one pool.

    Attributes:
        pool: It.
        plain: Without celery_graceful.
        blows: How often something was hit: ``kill``, ``cut``, ``pause``, ``restart``.
        verdict: What became of the tasks.
        seconds: How long it took.
        folder: Where journal and logs are.
    """

    pool: str
    plain: bool
    blows: Counter[str]
    verdict: Verdict
    seconds: float
    folder: Path


def rounds(
    kills: int, seed: int, pools: Sequence[str] = POOLS, without: Collection[str] = ()
) -> Iterator[Round]:
    """Each pool in turn, with celery_graceful and without.

    Args:
        kills: How many times a process is killed, in all pools together.
        seed: Of all that is random.
        pools: Which.
        without: ``plain`` or ``graceful``: not these.
    """
    share = min(1.0, max(1 / 3, kills / WHOLE))
    for pool in pools:
        for plain in (False, True):
            if ("plain" if plain else "graceful") in without:
                continue
            each = max(1, round(kills / len(pools)))
            if plain:
                each = max(min(each, 17), each // 10)
            folder = Path(tempfile.mkdtemp(prefix=f"chaos-{pool}-"))
            chaos = Chaos(pool, plain=plain, kills=each, seed=seed, folder=folder)
            began = time.monotonic()
            factor = share * (each * len(pools) / kills if plain else 1)
            verdict = chaos.run(round(SHORT * factor), round(LONG * factor))
            blows = Counter(blow.kind.split()[0] for blow in chaos.blows)
            yield Round(pool, plain, blows, verdict, time.monotonic() - began, folder)
