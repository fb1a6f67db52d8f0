"""Each end of a task ends the member that it is, once, and nothing else does; in every pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery.app.task
import pytest
import redis
from celery import Celery, chain, chord, group

from celery_graceful import Batch
from celery_graceful.poison import quarantine
from celery_graceful.store.app_stores import find_workers_store
from tests.support.batches import Made
from tests.support.broker import Broker
from tests.support.workers import Worker, wait_until

POOLS = ["prefork", "threads", "gevent", "solo"]
KINDS = ["graceful", "plain", "late"]

CALLBACKS = ("on_success", "on_complete", "on_failure")


BROKERS = ["redis", "redis with another store", "rabbitmq"]

#: Each pool, and each broker. How ends are written by all pools to all brokers: see `test_ends`.
EACH = pytest.mark.parametrize(
    ("pool", "broker"),
    [*((pool, "redis") for pool in POOLS), *(("threads", broker) for broker in BROKERS[1:])],
    indirect=["broker"],
)


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, make_broker: Callable[[str], Broker]) -> Broker:
    return make_broker(request.param)


@pytest.fixture
def app(broker: Broker, app: Celery) -> Celery:
    if broker.name != "redis":
        app.conf.graceful_store = broker.backend_url
    return app


def start(broker: Broker, pool: str, *args: str, **env: str) -> Worker:
    if broker.name != "redis":
        env["CONF_graceful_store"] = repr(broker.backend_url)
    return Worker(
        "tests.apps.members",
        pool=pool,
        args=args,
        env={
            **broker.env,
            "EFFECTS": broker.backend_url,
            **env,
        },
    )


@pytest.fixture
def store(broker: Broker) -> Iterator[redis.Redis]:
    """Where effects are noted."""
    with redis.Redis.from_url(broker.backend_url, decode_responses=True) as client:
        yield client


def do(app: Celery, kind: str, *args: Any) -> Any:
    return app.signature(kind, args=args)


def ended_by_themselves(app: Celery, made: Made, kind: str) -> dict[str, str]:
    """Members by what is to become of them."""
    again = do(app, kind, "succeed")
    return {
        f"succeeded {kind}": made.send(do(app, kind, "succeed")),
        f"failed {kind}": made.send(do(app, kind, "fail")),
        f"succeeded {kind} after retries": made.send(do(app, kind, "retry", 2)),
        f"failed {kind} after retries": made.send(do(app, kind, "retry_too_often")),
        f"succeeded {kind} ignored": made.send(do(app, kind, "ignore")),
        f"failed {kind} rejected": made.send(do(app, kind, "reject")),
        f"succeeded {kind} replaced": made.send(do(app, kind, "replace", again)),
        f"failed {kind} replaced": made.send(do(app, kind, "replace", do(app, kind, "fail"))),
        f"failed {kind} replaced by a group": made.send(
            do(app, kind, "replace", group([again, do(app, kind, "fail")]))
        ),
        f"succeeded {kind} replaced by a chain": made.send(
            do(app, kind, "replace", chain(again, app.signature("add")))
        ),
        f"succeeded {kind} chain": made.send(chain(again, app.signature("add"))),
        f"failed {kind} chain": made.send(chain(do(app, kind, "fail"), app.signature("add"))),
        f"succeeded {kind} chord": made.send(chord([again, again], app.signature("add", args=[1]))),
        f"failed {kind} chord": made.send(
            chord([again, do(app, kind, "fail")], app.signature("add", args=[1]))
        ),
    }


def check(made: Made, members: dict[str, str]) -> None:
    expected = {name: name.partition(" ")[0] for name in members}
    try:
        made.wait(pending=0)
    finally:  # who is still pending, if so
        assert made.outcomes(members) == expected


@pytest.mark.parametrize("pool", POOLS)
def test_ends(pool: str, broker: Broker, app: Celery, store: redis.Redis) -> None:
    with start(broker, pool).ready() as worker:
        made = Made(app, *CALLBACKS)
        members = {}
        if broker.name != "rabbitmq":  # what expires in the queue, RabbitMQ drops, and tells nobody
            times = {"expires": 1, "countdown": 2}
            members = {
                f"revoked {kind} expired": made.send(do(app, kind, "succeed"), **times)
                for kind in KINDS
            }
        for kind in KINDS:
            members.update(ended_by_themselves(app, made, kind))
            # A plain one is acknowledged at its start: it does not come again.
            becomes = "failed" if kind == "plain" else "succeeded"
            members[f"{becomes} {kind} requeued"] = made.send(do(app, kind, "requeue"))
        made.sent()
        check(made, members)
        wait_until(lambda: made.status.finished, "its end")
        effects = {name: store.lrange(f"effects:{made.id}:{name}", 0, -1) for name in CALLBACKS}
        assert {name: len(found) for name, found in effects.items()} == {
            "on_success": 0,
            "on_complete": 1,
            "on_failure": 1,
        }
        worker.term()
        worker.wait()


def marker(tmp_path: Path, name: str) -> str:
    """Of a task that does something only once."""
    return str(tmp_path / name)


def test_deaths_and_limits(broker: Broker, app: Celery, tmp_path: Path) -> None:
    """Of children of a pool of processes; what comes again ends when it does."""
    env = {"CONF_graceful_poison_limit": "2", "CONF_task_reject_on_worker_lost": "False"}
    with start(broker, "prefork", **env).ready() as worker:
        made = Made(app, *CALLBACKS)
        members = {}
        for kind in ("graceful", "plain", "late"):
            limited = f"{kind}_limited"
            members[f"failed {kind} at its hard limit"] = made.send(do(app, limited, "hang"))
        members |= {
            # Rejected to come again, twice: the second death takes it to quarantine.
            "failed graceful poison": made.send(do(app, "graceful", "exit")),
            "failed late death": made.send(do(app, "late", "exit")),
            "failed plain death": made.send(do(app, "plain", "exit")),
            "succeeded graceful after a death": made.send(
                do(app, "graceful", "exit_once", marker(tmp_path, "once"))
            ),
        }
        put_back = do(app, "put_back", "hang_once", marker(tmp_path, "limit"))
        members["succeeded after a hard limit that puts it back"] = made.send(put_back)
        if "retry_on_worker_lost" in vars(celery.app.task.Task):  # since Celery 5.7
            lost = app.signature("lost", args=[marker(tmp_path, "lost")])
            members["succeeded by a retry after a death"] = made.send(lost)
        made.sent()
        check(made, members)
        worker.term()
        worker.wait()


@EACH
def test_revoked(pool: str, broker: Broker, app: Celery, tmp_path: Path) -> None:
    """What waits for its time ends at once; what runs, and what waits in the pool, when it can."""
    gate = tmp_path / "gate"
    with start(broker, pool).ready():
        made = Made(app, *CALLBACKS)
        running = {}
        if pool != "solo":
            running = {
                "revoked running": made.send(app.signature("nap", args=[600])),
                "succeeded waits for it": made.send(do(app, "graceful", "wait", str(gate))),
            }
        later = {
            f"revoked {kind} at its time": made.send(do(app, kind, "succeed"), countdown=3600)
            for kind in KINDS
        }
        waiting = {}
        if pool != "solo":
            wait_until(lambda: app.control.inspect().active(), "a worker that answers")
            waiting = {"revoked waiting": made.send(do(app, "late", "succeed"))}
        made.sent()
        wait_until(lambda: _held(app) >= len(running) + len(waiting) + len(later), "all are there")
        app.control.revoke([*later.values(), *waiting.values()])
        wait_until(lambda: set(made.outcomes(later).values()) == {"revoked"}, "those that wait")
        runs = [m for n, m in running.items() if n == "revoked running"]

        def has_ended() -> bool:
            app.control.revoke(runs, terminate=True)  # a broadcast may be lost
            return bool(made.status.pending <= len(waiting) + len(running) // 2)

        wait_until(has_ended, "that runs", pause=1.0)
        gate.touch()
        check(made, {**running, **later, **waiting})


@EACH
def test_groups_of_one(pool: str, broker: Broker, app: Celery, store: redis.Redis) -> None:
    """Their task ends a member, or a callback, as one does that is in none."""
    with start(broker, pool).ready():
        last = [group(do(app, kind, "succeed").set(immutable=True)) for kind in KINDS]
        effect = app.signature("effect", args=["on_complete"])
        batch = Batch(
            on_success=chord([do(app, "late", "succeed").set(immutable=True)], last[0]),
            on_complete=group([group([effect])]),
            app=app,
        )
        batch.apply_async(chord([do(app, "late", "succeed")], body) for body in last)
        wait_until(lambda: batch.status().finished, "its end")
        assert batch.status().succeeded == len(KINDS)
        assert store.lrange(f"effects:{batch.id}:on_complete", 0, -1) == ["0 0 0"]


def _held(app: Celery) -> int:
    inspect = app.control.inspect()
    found = [inspect.active(), inspect.reserved(), inspect.scheduled()]
    return sum(len(some) for answer in found for some in (answer or {}).values())


def test_quarantined_for_other_reasons(broker: Broker, app: Celery) -> None:
    """What nobody knows, and what nobody can read."""
    env = {"CONF_graceful_unknown_task_patience": "1.0"}
    with start(broker, "threads", **env).ready():
        made = Made(app, *CALLBACKS)
        members = {
            "failed unknown": made.send(do(app, "nobody_knows", "succeed")),
            "succeeded": made.send(do(app, "late", "succeed")),
        }
        broken = made.send(do(app, "late", "succeed"), shadow=7)
        made.sent()
        check(made, members)
        assert made.outcome(broken) in ("failed", "succeeded")


def test_a_callback_comes_back_from_quarantine(broker: Broker, app: Celery, tmp_path: Path) -> None:
    """It counts as ended there; sent again it runs, whatever is said of copies."""
    with start(broker, "prefork", CONF_graceful_poison_limit="1").ready():
        args = ["exit_once", marker(tmp_path, "once")]
        callback = app.signature("graceful", args=args, immutable=True)
        batch = Batch(on_complete=callback, app=app)
        batch.apply_async([])
        wait_until(lambda: batch.status().finished, "its end")
        store = find_workers_store(app)
        assert store is not None
        wait_until(lambda: list(quarantine.entries(store)), "the quarantine")
        (kept,) = quarantine.entries(store)
        assert quarantine.send_again(app, store, kept)
        wait_until(lambda: app.AsyncResult(kept.id).state == "SUCCESS", "its run")


@EACH
def test_cancelled(pool: str, broker: Broker, app: Celery, store: redis.Redis) -> None:
    """What runs is revoked, what has not begun is left out, and `on_complete` comes once."""
    with start(broker, pool).ready() as worker:
        made = Made(app, *CALLBACKS)
        naps = [made.send(app.signature("nap", args=[600])) for _ in range(pool != "solo" and 2)]
        worker.wait_line("started .* nap", count=len(naps)) if naps else None
        later = [made.send(do(app, "late", "succeed"), countdown=3600)]
        if naps:
            later += [made.send(do(app, kind, "succeed")) for kind in KINDS for _ in range(4)]
            wait_until(lambda: _held(app) > len(naps), "some wait")
        else:
            wait_until(lambda: _held(app), "it waits")
        made.register("late")
        made.sent()
        Batch.load(made.id, app=app).cancel()
        later.append(made.send_registered(do(app, "late", "succeed"), "late"))
        status = made.wait(pending=0)
        assert status.state.value == "cancelled"
        # One by one they may be forgotten by now: it is at its end.
        revoked = len(naps) + len(later)
        assert (status.succeeded, status.failed, status.revoked) == (0, 0, revoked)
        wait_until(lambda: made.status.finished, "its end")
        assert store.llen(f"effects:{made.id}:on_complete") == 1
        assert store.get("effects") == "1"
        assert not worker.count("started .* succeed")
