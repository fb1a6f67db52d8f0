"""Members of batches in real workers: whoever is held somewhere is never missing."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_graceful import Batch, Graceful
from tests.conftest import RabbitVhost, RedisDB
from tests.support.json_forms import AWKWARD
from tests.support.workers import Worker, end_leases, wait_until, wait_until_heard

Start = Callable[..., Worker]

#: How often a worker is killed in the test of that: 50 by hand.
KILLS = int(os.environ.get("MISSING_KILLS", 4))

#: Everything is looked for all the time.
EAGER = {
    "CONF_graceful_batch_missing_after": "1",
    "CONF_graceful_lease_ttl": "15",
    "CONF_graceful_heartbeat_interval": "0.2",
    "CONF_graceful_rescue_interval": "0.2",
}


class Site:
    """A broker, a store, and an app that sends."""

    def __init__(self, broker: str, db: RedisDB) -> None:
        self.broker, self.db = broker, db
        self.app = Celery("site", broker=broker, set_as_current=False)
        self.app.conf.graceful_store = db.url if broker != db.url else None
        Graceful(self.app)
        self.stack = ExitStack()

    def start(self, pool: str = "threads", concurrency: int = 2, **env: str) -> Worker:
        store = {} if self.broker == self.db.url else {"CONF_graceful_store": repr(self.db.url)}
        env = {"BROKER_URL": self.broker, "GRACE": "60", **store, **EAGER, **env}
        worker = Worker("tests.apps.ghost", pool=pool, concurrency=concurrency, env=env)
        return self.stack.enter_context(worker)

    def batch(self, *members: Any) -> Batch:
        return Batch(on_complete=self.app.signature("ghost.called"), app=self.app).apply_async(
            members
        )

    def wait_looks(self, batch: Batch, count: int) -> None:
        """Wait until it was looked at so often."""
        seen: set[Any] = set()

        def looked() -> bool:
            seen.add(self.db.client.zscore("graceful:batches:looked", batch.id))
            return len(seen - {None}) >= count

        wait_until(looked, "it is looked at again and again")


def kill(worker: Worker, db: RedisDB) -> None:
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    end_leases(db.client, worker)


@pytest.fixture(params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, redis_db: RedisDB) -> Iterator[Site]:
    vhost: RabbitVhost | None = None
    if request.param == "rabbitmq":
        vhost = request.getfixturevalue("rabbit_vhost")
    one = Site(redis_db.url if vhost is None else vhost.url, redis_db)
    with one.stack:
        yield one
    one.app.close()


def test_who_is_held_is_not_missing(site: Site, tmp_path: Path) -> None:
    """For longer than it takes to look: it runs, or waits for its ETA or its turn."""
    gate = str(tmp_path / "gate")
    batch = site.batch(  # before anybody looks: a member is known for a moment and not sent yet
        site.app.signature("ghost.hold_early", (gate,)),
        site.app.signature("ghost.hold", (gate,)),
        site.app.signature("ghost.hold", countdown=600),
        *[site.app.signature("ghost.hold") for _ in range(4)],
    )
    worker = site.start()
    worker.wait_line(">> .* started", 2)
    site.wait_looks(batch, 4)
    assert batch.status().missing == 0
    assert not worker.count(r"Batch .* missing \(")
    Path(gate).touch()
    wait_until(lambda: batch.status().pending == 1)
    site.wait_looks(batch, 2)
    assert batch.status().missing == 0


@pytest.mark.parametrize("site", ["redis"], indirect=True)
def test_who_waits_under_an_awkward_id_is_not_missing(site: Site) -> None:
    """Nobody consumes their queue: found missing they would be sent again and again."""
    task = site.app.signature("ghost.hold")
    batch = site.batch(*[task.clone().set(task_id=id_, queue="other") for id_ in AWKWARD])
    site.start()
    site.wait_looks(batch, 4)
    assert batch.status().missing == 0
    assert site.db.client.llen("other") == len(AWKWARD), "each was sent once"


def test_who_was_acknowledged_early_by_a_dead_worker_is(site: Site, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    first = site.start().ready()
    batch = site.batch(site.app.signature("ghost.hold_early", (gate,)))
    first.wait_line(">> .* started")
    for _ in range(2):  # the loop has gone round: it is acknowledged at the broker
        wait_until_heard(site.app)
    wait_until(lambda: not site.db.client.keys("graceful:claims:*"), "it is acknowledged")
    site.wait_looks(batch, 2)
    kill(first, site.db)
    second = site.start()
    wait_until(lambda: batch.status().missing == 1)
    second.wait_line(r"1 missing .*: 1 left alone")
    second.term()
    assert second.wait() == 0
    third = site.start(CONF_graceful_batch_repair="'resend'")
    third.wait_line(">> .* started")
    Path(gate).touch()
    third.wait_line(">> .* called")
    wait_until(lambda: batch.status().finished)
    assert batch.status().succeeded == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_who_is_rescued_is_never_missing(pool: str, redis_db: RedisDB) -> None:
    """Workers are killed under load, and a batch stands still all the time."""
    site = Site(redis_db.url, redis_db)
    rng = random.Random(pool)
    with site.stack:
        naps = [
            site.app.signature("ghost.nap", (rng.uniform(0.1, 1.5),)) for _ in range(12 * KILLS)
        ]
        batches = [site.batch(*naps[start : start + 6]) for start in range(0, len(naps), 6)]
        sturdy = {"CONF_graceful_poison_limit": "0"}  # one of them may die again and again
        workers = [site.start(pool, **sturdy) for _ in range(2)]
        everyone = list(workers)
        for worker in workers:
            worker.ready()
        for number in range(KILLS):
            until = time.monotonic() + 1
            while time.monotonic() < until:
                for batch in batches:
                    assert batch.status().missing == 0
            kill(workers[number % 2], redis_db)
            workers[number % 2] = site.start(pool, **sturdy)
            everyone.append(workers[number % 2])
        for batch in batches:
            wait_until(lambda batch=batch: batch.status().finished)
            assert batch.status().succeeded == 6
        assert not [one for one in everyone if one.count(r"Batch .* missing \(")]
    site.app.close()
