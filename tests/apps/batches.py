"""Members of every kind, and callbacks that write down what they were told."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Task, chain, chord, group

from celery_graceful import Batch, BatchFinished, Graceful, GracefulTask, current_batch
from tests.apps import make_app, say, wait_for_file

app = make_app("batches")
Graceful(app)
client = redis.Redis.from_url(os.environ.get("EFFECTS", "redis://"), decode_responses=True)


@app.task(name="work")
def work(*args: Any) -> Any:
    client.rpush("worked", str(args[-1]) if args else "")
    return args[-1] if args else None


@app.task(name="late", base=GracefulTask, bind=True)
def late(self: Any, path: str, name: str = "") -> None:
    say("started", name)
    while not os.path.exists(path):
        self.sleep(0.02)


@app.task(name="seldom", rate_limit="1/h")
def seldom(name: str) -> None:
    client.rpush("worked", name)


@app.task(name="ends_slowly", base=GracefulTask, bind=True)
def ends_slowly(self: Any, path: str, name: str) -> None:
    try:
        say("started", name)
        self.sleep(3600)
    finally:
        say("ends", name)
        wait_for_file(path)
        say("ended", name)


@app.task(name="plain_late", base=Task, acks_late=True)
def plain_late(path: str, name: str = "") -> None:
    say("started", name)
    wait_for_file(path)


@app.task(name="fails")
def fails(*args: Any) -> None:
    raise LookupError("no such thing")


@app.task(name="hands_on", bind=True)
def hands_on(self: Any, times: int) -> None:
    """Passes its headers on, as that of a tenant is; the next try has its own ones still."""
    fails.apply_async(headers=self.request.headers).get(
        disable_sync_subtasks=False, propagate=False
    )
    if self.request.retries < times:
        raise self.retry(countdown=0.01)
    client.rpush("worked", json.dumps([self.request.headers, current_batch() is not None]))


@app.task(name="fails_until", bind=True, max_retries=0)
def fails_until(self: Any, path: str) -> None:
    if not os.path.exists(path):
        raise LookupError("not yet")


@app.task(name="retries", bind=True)
def retries(self: Any, times: int) -> None:
    if self.request.retries < times:
        raise self.retry(countdown=0.01)
    client.rpush("worked", "retried")


@app.task(name="replaced", bind=True)
def replaced(self: Any, how: str) -> Any:
    last = work.si(f"replaced by {how}")
    kinds = {
        "task": last,
        "chain": chain(work.si("first"), last),
        "group": group(work.si("one"), last),
        "chord": chord([work.si("header")], last),
    }
    raise self.replace(kinds[how])


@app.task(name="graceful_replaced", base=GracefulTask, bind=True)
def graceful_replaced(self: Any, how: str) -> Any:
    raise self.replace(work.si(f"replaced by {how}"))


@app.task(name="adds")
def adds(depth: int) -> None:
    batch = current_batch()
    assert batch is not None
    if depth:
        batch.add(adds.s(depth - 1) for _ in range(2))
    client.rpush("worked", f"depth {depth}")


@app.task(name="adds_batch")
def adds_batch(count: int) -> None:
    """A batch inside of the one that this is in."""
    kid = Batch(on_complete=told.s("kid"), description="kid")
    kid.add(work.s(n) for n in range(count))
    batch = current_batch()
    assert batch is not None
    batch.add(kid)


@app.task(name="adds_to")
def adds_to(batch_id: str) -> None:
    """To one that this is in, or not."""
    try:
        Batch.load(batch_id).add(work.s("added"))
    except BatchFinished as exc:
        client.rpush("refused", str(exc))


@app.task(name="waits_for_itself")
def waits_for_itself() -> None:
    batch = current_batch()
    assert batch is not None
    batch.wait()


@app.task(name="told")
def told(summary: dict[str, Any], name: str = "", *args: Any) -> None:
    client.rpush(f"told:{name}", json.dumps(summary))


@app.task(name="told_nothing")
def told_nothing(*args: Any) -> None:
    client.rpush("told:nothing", json.dumps(args))


@app.task(name="pass_on")
def pass_on(summary: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.05)
    return summary
