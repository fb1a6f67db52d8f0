"""Batches as users write them, with real workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError

from celery_graceful import Batch, BatchFinished, Graceful
from celery_graceful.batches.model import State
from celery_graceful.batches.status import Status
from tests.conftest import RabbitVhost, RedisDB
from tests.support.workers import TIMEOUT, Worker, wait_until, wait_until_heard

POOLS = ("prefork", "threads", "gevent", "solo")


class Project:
    """An app with workers, and what its tasks have done."""

    def __init__(self, db: RedisDB, broker: str, stack: ExitStack) -> None:
        self.db = db
        self._stack = stack
        self.env = {"BROKER_URL": broker, "RESULT_URL": db.backend_url, "EFFECTS": db.url}
        self.app = Celery("batches", broker=broker, backend=db.backend_url, set_as_current=False)
        if broker != db.url:
            self.app.conf.graceful_store = db.url
            self.env["CONF_graceful_store"] = repr(db.url)
        Graceful(self.app)

    def worker(self, pool: str = "threads", concurrency: int = 4, **env: str) -> Worker:
        worker = Worker(
            "tests.apps.batches", pool=pool, concurrency=concurrency, env={**self.env, **env}
        )
        return self._stack.enter_context(worker).ready()

    def s(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.signature(task, args=args, **options)

    def batch(self, **options: Any) -> Batch:
        names = ("success", "complete", "failure")
        callbacks = {f"on_{name}": self.s("told", name) for name in names}
        return Batch(app=self.app, **{**callbacks, **options})

    def told(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.db.client.lrange(f"told:{name}", 0, -1)]

    def worked(self) -> list[str]:
        return self.db.client.lrange("worked", 0, -1)  # type: ignore[return-value]

    def check_ended(self, batch: Batch, *, failed: int = 0, total: int) -> Status:
        """It ends so, and each callback has run as often as it should."""
        status = batch.wait(timeout=TIMEOUT)
        assert (status.state, status.total, status.pending) == (State.DONE, total, 0)
        assert (status.failed, status.succeeded) == (failed, total - failed)
        (summary,) = self.told("complete")
        assert (summary["id"], summary["total"], summary["failed"]) == (batch.id, total, failed)
        assert len(self.told("success")) == (not failed)
        assert len(self.told("failure")) == bool(failed)
        return status


@pytest.fixture
def project(redis_db: RedisDB) -> Iterator[Project]:
    with ExitStack() as stack:
        yield Project(redis_db, redis_db.url, stack)


@pytest.fixture
def on_rabbitmq(redis_db: RedisDB, rabbit_vhost: RabbitVhost) -> Iterator[Project]:
    with ExitStack() as stack:
        yield Project(redis_db, rabbit_vhost.url, stack)


@pytest.fixture
def gate(tmp_path: Path) -> Callable[[], str]:
    """The file that tasks wait for; called, it is made."""
    path = tmp_path / "gate"

    class Gate(str):
        def __call__(self) -> str:
            path.touch()
            return str(path)

    return Gate(path)


def check_members_of_every_kind(project: Project, pool: str) -> None:
    project.worker(pool)
    s = project.s
    batch = project.batch(description="all kinds", properties={"month": 5})
    batch.add(s("work", "before"))
    batch.apply_async(
        [
            s("work", "plain"),
            s("work", "immutable", immutable=True),
            s("work", "later").set(countdown=0.1),
            s("retries", 2),
            *(s("replaced", how) for how in ("task", "chain", "group", "chord")),
            s("graceful_replaced", "graceful"),
            chain(s("work", "c1"), s("work", "c2"), s("replaced", "chain", immutable=True)),
            chord([s("work", "h1"), chain(s("work", "h2"), s("work", "h3"))], s("work", "body")),
            chain(group(s("work", "g1"), s("work", "g2")), s("work", "after the group")),
            group(s("work", "grouped 1"), group(s("work", "grouped 2"))),
            s("work", "linked").set(link=[s("work", "by a link")]),
            s("work", "headers").set(headers={"mine": 1}, priority=5),
        ]
    )
    status = project.check_ended(batch, total=17)
    # What is linked to a member is no part of the batch, which does not wait for it.
    wait_until(lambda: "by a link" in project.worked(), "what is linked runs")
    assert (status.description, status.properties) == ("all kinds", {"month": 5})
    said = project.worked()
    for what in ("before", "later", "retried", "body", "by a link", "after the group"):
        assert said.count(what) == 1, said
    for how in ("task", "group", "chord", "graceful"):
        assert said.count(f"replaced by {how}") == 1, said
    assert said.count("replaced by chain") == 2


@pytest.mark.parametrize("pool", POOLS)
def test_members_of_every_kind(project: Project, pool: str) -> None:
    check_members_of_every_kind(project, pool)


def test_members_of_every_kind_on_rabbitmq(on_rabbitmq: Project) -> None:
    check_members_of_every_kind(on_rabbitmq, "threads")


def test_a_chain_ends_with_its_first_failure(project: Project) -> None:
    s = project.s
    project.worker()
    batch = project.batch().apply_async(
        [
            chain(s("work", 1), s("fails"), s("work", "never")),
            chord([s("work", 2), s("fails")], s("work", "never")),
            s("work", 3),
        ]
    )
    project.check_ended(batch, total=3, failed=2)
    assert "never" not in project.worked()


def test_a_failed_one_that_is_run_again_succeeds(project: Project, gate: Any) -> None:
    s = project.s
    project.worker()
    batch = project.batch().apply_async([s("fails_until", gate).set(task_id="once more")])
    project.check_ended(batch, total=1, failed=1)
    gate()
    headers = {"graceful_batch": f"{batch.id}/once more"}
    s("fails_until", gate).apply_async(task_id="once more", headers=headers)
    wait_until(lambda: project.told("success"))
    assert batch.wait(timeout=TIMEOUT).succeeded == 1
    assert len(project.told("failure")) == len(project.told("complete")) == 1


def test_callbacks_of_every_kind(project: Project) -> None:
    s = project.s
    project.worker()
    batch = Batch(
        on_success=chain(s("pass_on"), s("told", "chain")),
        on_complete=chord([s("pass_on"), s("pass_on")], s("told_nothing")),
        app=project.app,
    )
    batch.apply_async([s("work", 1)])
    batch.wait(timeout=TIMEOUT)
    assert [one["total"] for one in project.told("chain")] == [1]
    assert len(project.told("nothing")) == 1
    immutable = Batch(on_success=s("told_nothing", "mine", immutable=True), app=project.app)
    immutable.apply_async([s("work", 1)]).wait(timeout=TIMEOUT)
    assert project.told("nothing")[1] == ["mine"]


def test_without_results(project: Project) -> None:
    """Neither members nor callbacks need a result backend."""
    project.worker(CONF_task_ignore_result="True", CONF_result_backend="None")
    project.app.conf.update(task_ignore_result=True, result_backend=None)
    batch = project.batch().apply_async(project.s("work", n) for n in range(20))
    project.check_ended(batch, total=20)


def test_an_empty_batch_completes_at_once_and_once(project: Project) -> None:
    batch = project.batch().apply_async()
    project.worker()
    project.check_ended(batch, total=0)


def test_a_failed_callback_has_ended(project: Project) -> None:
    project.worker()
    batch = Batch(on_complete=project.s("fails"), app=project.app)
    assert batch.apply_async([project.s("work", 1)]).wait(timeout=TIMEOUT).state is State.DONE


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_added_from_inside(project: Project, pool: str) -> None:
    project.worker(pool)
    batch = project.batch().apply_async([project.s("adds", 4)])
    project.check_ended(batch, total=2**5 - 1)
    with pytest.raises(BatchFinished):
        batch.add(project.s("work", 1))


def test_added_from_outside_is_refused(project: Project, gate: Any) -> None:
    project.worker()
    batch = project.batch().apply_async([project.s("late", gate)])
    with pytest.raises(BatchFinished, match="nothing can be added to it from outside"):
        batch.add(project.s("work", 1))
    project.s("adds_to", batch.id).apply_async()
    wait_until(lambda: project.db.client.lrange("refused", 0, -1))
    gate()
    project.check_ended(batch, total=1)


def test_a_callback_adds(project: Project) -> None:
    project.worker()
    batch = Batch(on_complete=project.s("adds", 2, immutable=True), app=project.app)
    status = batch.apply_async([project.s("work", 1)]).wait(timeout=TIMEOUT)
    assert (status.total, status.succeeded) == (1 + 2 + 4, 7)


def test_inside_of_each_other(project: Project, gate: Any) -> None:
    """A parent waits for the callbacks of what is in it."""
    project.worker()
    s = project.s
    parent = project.batch()
    kid = Batch(on_success=s("late", gate, immutable=True), app=project.app)
    kid.add(s("work", "in the kid"), s("adds_to", parent.id), s("adds_batch", 3))
    parent.apply_async([kid, s("work", "beside")])
    wait_until(lambda: kid.status().callbacks["on_success"] == "published")
    wait_until(lambda: parent.status().pending == 1)
    assert not project.told("complete")
    gate()
    project.check_ended(parent, total=3)  # the kid, and two beside it
    assert sorted(project.worked()) == ["0", "1", "2", "added", "beside", "in the kid"]
    assert [one["parent"] for one in project.told("kid")] == [kid.id]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_cancelled(project: Project, gate: Any, pool: str) -> None:
    """What runs is revoked, what waits does not run, for whatever it waits; callbacks once."""
    s = project.s
    worker = project.worker(pool, 2)
    wait_until_heard(project.app)
    batch = project.batch().apply_async(
        [
            s("late", gate, "one"),
            s("late", gate, "two"),
            s("work", "next year").set(countdown=300_000),
            *(s("work", "never") for _ in range(20)),
        ]
    )
    worker.wait_line("started two")
    batch.cancel()
    status = batch.wait(timeout=TIMEOUT)
    assert (status.state, status.revoked, status.pending) == (State.CANCELLED, 23, 0)
    wait_until(lambda: project.told("complete"))
    assert not project.worked()
    assert not project.told("success")
    assert not project.told("failure")


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_cancelled_before_a_worker_has_them(project: Project, pool: str) -> None:
    """Nobody tells a worker that starts later, which asks: long before the batch stands still."""
    members = [
        project.s("work", "next year").set(countdown=300_000),
        *(project.s("seldom", n) for n in range(3)),
    ]
    batch = project.batch().apply_async(members)
    batch.cancel()
    project.worker(pool, 2, CONF_graceful_batch_missing_after="3600")
    assert batch.wait(timeout=TIMEOUT).revoked == 4
    assert not project.worked()


def test_told_twice_that_it_was_cancelled(project: Project, gate: Any) -> None:
    """What cleans up meanwhile is not ended by force."""
    worker = project.worker("prefork", 1)
    wait_until_heard(project.app)
    batch = project.batch().apply_async([project.s("ends_slowly", gate, "one")])
    worker.wait_line("started one")
    batch.cancel()
    worker.wait_line("ends one")
    for _ in range(2):
        told = project.app.control.broadcast(
            "cancel_batches", arguments={"batches": [batch.id]}, reply=True, limit=1
        )
        assert told
    gate()
    worker.wait_line("ended one")
    assert batch.wait(timeout=TIMEOUT).revoked == 1
    assert not worker.count("exited prematurely")


def test_cancelled_while_plain_tasks_run(project: Project, gate: Any) -> None:
    worker = project.worker("prefork", 1)
    wait_until_heard(project.app)
    batch = project.batch().apply_async([project.s("plain_late", gate, "one")])
    worker.wait_line("started one")
    batch.cancel()
    assert batch.wait(timeout=TIMEOUT).revoked == 1


def test_cancelled_where_nothing_ends_a_plain_task(project: Project, gate: Any) -> None:
    """What runs goes on, as the log says of it, and of nothing else."""
    worker = project.worker("threads", 1)
    wait_until_heard(project.app)
    members = [project.s("plain_late", gate, "one"), *(project.s("work", n) for n in range(20))]
    batch = project.batch().apply_async(members)
    worker.wait_line("started one")
    batch.cancel()
    worker.wait_line("goes on, though its batch was cancelled")
    gate()
    status = batch.wait(timeout=TIMEOUT)
    assert (status.succeeded, status.revoked) == (1, 20)
    assert worker.count("goes on, though") == 1


def test_waiting(project: Project, gate: Any) -> None:
    worker = project.worker()
    batch = project.batch(description="slow ones")
    batch.apply_async([project.s("late", gate), project.s("waits_for_itself")])
    worker.wait_line("waits for this task, which cannot wait for it")
    wait_until(lambda: batch.status().pending == 1, "its end is known")
    why = r"has not ended in 0\.2 s: 1 of 2 members are pending, 0 are missing; it is sent"
    with pytest.raises(TimeoutError, match=why):
        batch.wait(timeout=0.2)
    gate()
    project.check_ended(batch, total=2, failed=1)


@pytest.mark.parametrize("pool", POOLS[:-1])
def test_what_a_member_sends_with_its_headers_is_none(project: Project, pool: str) -> None:
    """A child that nobody waits for fails, and has been given all headers that its parent has."""
    project.worker(pool)
    batch = project.batch()
    batch.apply_async([project.s("hands_on", n).set(headers={"tenant": n}) for n in range(2)])
    project.check_ended(batch, total=2)
    assert not project.told("failure")
    assert sorted(project.worked()) == ['[{"tenant": 0}, true]', '[{"tenant": 1}, true]']
