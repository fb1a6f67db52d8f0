"""What an app adds to messages while it sends them: whoever sends members and callbacks then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import RedisDB
from tests.support.broker import graceful_command
from tests.support.workers import ROOT, TIMEOUT, Worker, wait_until

APP = "tests.apps.tenants"


class Site:
    """A worker that knows of no tenant, and who sends for one."""

    def __init__(self, db: RedisDB, broker: str, stack: ExitStack) -> None:
        self.db, self._stack = db, stack
        self.env = {"BROKER_URL": broker, "RESULT_URL": db.backend_url, "EFFECTS": db.url}
        if broker != db.url:
            self.env["CONF_graceful_store"] = repr(db.url)

    def worker(self, pool: str = "prefork") -> Worker:
        return self._stack.enter_context(Worker(APP, pool=pool, env=self.env)).ready()

    def send(self, what: str) -> str:
        code = f"from {APP} import main; main('acme', {what!r})"
        command = [sys.executable, "-c", code]
        env = {**os.environ, **self.env}
        return subprocess.check_output(
            command, cwd=ROOT, env=env, text=True, timeout=5 * TIMEOUT
        ).strip()

    def noted(self, **times: int) -> None:
        """Each of these tasks has run, so often, and for whom it was sent."""
        wanted = Counter({f"{name} of acme": count for name, count in times.items()})
        found: Counter[str] = Counter()

        def all_noted() -> bool:
            found.clear()
            found.update(self.db.client.lrange("noted", 0, -1))
            return found.total() >= wanted.total()

        wait_until(all_noted, f"{wanted} were noted")
        assert found == wanted


@pytest.fixture(params=["redis", "rabbitmq"])
def site(request: Any, redis_db: RedisDB) -> Iterator[Site]:
    broker = redis_db.url
    if request.param == "rabbitmq":
        broker = request.getfixturevalue("rabbit_vhost").url
    with ExitStack() as stack:
        yield Site(redis_db, broker, stack)


def test_whoever_sends_callbacks(site: Site) -> None:
    site.worker()
    site.send("batch")
    site.noted(member=1, again=2, first=1, last=1, complete=1, success=1, after=1)


def test_chords_that_are_tracked(site: Site) -> None:
    site.worker()
    site.send("chord")
    site.noted(header=3, body=1)


def test_whoever_sends_a_member_again(redis_db: RedisDB) -> None:
    with ExitStack() as stack:
        site = Site(redis_db, redis_db.url, stack)
        batch = site.send("members")
        redis_db.client.delete("celery")
        said = graceful_command(APP, "batches", "resend", batch, env=site.env)
        assert "2 sent again" in said
        site.worker("threads")
        site.noted(member=1, first=1, last=1, complete=1, success=1, after=1)
