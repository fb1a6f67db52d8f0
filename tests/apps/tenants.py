"""An app whose messages say which tenant they are of: added while they are sent, as many do."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any

import redis
from celery import chain, chord
from celery.signals import before_task_publish, task_postrun, task_prerun

from celery_graceful import Batch, Graceful
from tests.apps import make_app

app = make_app("tenants")
app.conf.graceful_batch_headers = "tests.apps.tenants:headers"
app.conf.graceful_track_chords = True
Graceful(app)
client = redis.Redis.from_url(os.environ.get("EFFECTS", "redis://"), decode_responses=True)

#: Of the request, in a web process; workers know of none but in a task.
tenant: ContextVar[str] = ContextVar("tenant", default="public")


def headers() -> dict[str, Any]:
    return {"tenant": tenant.get()}


@before_task_publish.connect
def say_whose(headers: Any = None, **_: Any) -> None:
    headers["tenant"] = tenant.get()


@task_prerun.connect
def take_over(task: Any = None, **_: Any) -> None:
    tenant.set(task.request.headers["tenant"])


@task_postrun.connect
def forget(**_: Any) -> None:
    tenant.set("public")


@app.task(name="note", bind=True)
def note(self: Any, *args: Any) -> Any:
    client.rpush("noted", f"{args[-1]} of {self.request.headers['tenant']}")
    return args[-1]


@app.task(name="again", bind=True)
def again(self: Any, name: str) -> None:
    client.rpush("noted", f"{name} of {self.request.headers['tenant']}")
    if not self.request.retries:
        raise self.retry(countdown=0.01)


def main(whose: str, what: str) -> None:
    """As a web process: what it sends is of a tenant."""
    tenant.set(whose)
    if what == "chord":
        chord([note.s("header") for _ in range(3)], note.si("body")).apply_async()
        return
    members = [note.si("member"), again.si("again"), chain(note.si("first"), note.si("last"))]
    if what == "members":
        members = members[::2]
    batch = Batch(
        on_complete=note.si("complete"), on_success=chain(note.si("success"), note.si("after"))
    )
    print(batch.apply_async(members).id)
