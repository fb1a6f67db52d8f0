"""The settings of docs/howto/rabbitmq.md: what the page says of them is so."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES
from celery.utils.quorum_queues import detect_quorum_queues

from celery_graceful.operations import Operations
from tests.conftest import RabbitVhost, RedisDB
from tests.support.command import CELERY
from tests.support.doctor import graceful_app
from tests.support.doctor import run as doctor
from tests.support.workers import ROOT, WatchedProcess, environment, wait_until

pytestmark = pytest.mark.rabbitmq

of_missing_queues = pytest.mark.skipif(
    "create_missing_queue_type" not in NAMESPACES["task"], reason="since Celery 5.6"
)

PAGE = (ROOT / "docs" / "howto" / "rabbitmq.md").read_text(encoding="utf-8")

SHOP = """
from celery import Celery
from celery_graceful import Graceful, GracefulTask

app = Celery("shop")
{settings}
app.conf.task_routes = {{"shop.mail": "mail"}}
app.conf.update(graceful_lease_ttl=4.0, graceful_heartbeat_interval=0.5)
Graceful(app)


@app.task(base=GracefulTask, bind=True)
def count(self, most):
    for number in self.iterate(range(most), every=1):
        print(f">> done {{number}}", flush=True)
        self.sleep(0.1)


@app.task(base=GracefulTask)
def mail():
    print(">> mailed", flush=True)
"""


class Page:
    """An app with the settings of the page."""

    def __init__(self, vhost: RabbitVhost, db: RedisDB, folder: Path) -> None:
        block = PAGE.split("```python\n")[1].split("```")[0]
        for theirs, ours in (
            ("amqp://user:password@rabbitmq//", vhost.url),
            ("redis://redis/1", db.backend_url),
            ("redis://redis/2", db.url),
        ):
            assert theirs in block
            block = block.replace(theirs, ours)
        self.folder = folder
        (folder / "shop.py").write_text(SHOP.format(settings=block))
        self.app = graceful_app()
        exec(block, {"app": self.app})
        self.app.conf.task_routes = {"shop.mail": "mail"}

    def send(self, name: str, *args: Any, **options: Any) -> str:
        return str(self.app.send_task(f"shop.{name}", args, **options).id)

    @contextmanager
    def worker(self) -> Iterator[WatchedProcess]:
        argv = [*CELERY, "-A", "shop", "worker", "--loglevel", "INFO", "--concurrency", "1"]
        argv += ["--without-mingle", "--without-gossip", "--queues", "shop,mail"]
        with WatchedProcess(argv, env=environment({}), cwd=self.folder) as started:
            started.wait_line("ready")
            yield started


@pytest.fixture
def page(rabbit_vhost: RabbitVhost, redis_db: RedisDB, tmp_path: Path) -> Iterator[Page]:
    made = Page(rabbit_vhost, redis_db, tmp_path)
    yield made
    made.app.close()


def said(app: Celery, task_id: str) -> str:
    return " / ".join(Operations(app).why(task_id).sentences)


def test_the_doctor_finds_no_errors(page: Page) -> None:
    assert detect_quorum_queues(page.app, "amqp") == (True, "shop")
    status, output = doctor(page.app)
    assert status == 0, output


@pytest.mark.parametrize(
    "task",
    [("count", 1), pytest.param(("mail",), marks=of_missing_queues)],
    ids=["default", "routed"],
)
def test_a_countdown_waits_in_rabbitmq(page: Page, task: tuple[Any, ...]) -> None:
    """In the default queue, and in one that routes alone name."""
    with page.worker() as worker:
        waits = page.send(*task, countdown=600)
        wait_until(lambda: "in queues celery_delayed_N" in said(page.app, waits), "it waits")
        task_id = page.send(*task, countdown=2)
        worker.wait_line(rf"{task_id}\] succeeded")
        assert worker.count(rf"{task_id}\] received") == 1


def test_kill_9(page: Page) -> None:
    """Another worker has it at once, and begins when the lease of the dead one has run out."""
    with page.worker() as first:
        task_id = page.send("count", 10**6)
        first.wait_line(">> done 3")
        first.signal(signal.SIGKILL, group=True)
        assert first.wait() == -signal.SIGKILL
    with page.worker() as second:
        second.wait_line(rf"{task_id}\] received")
        second.wait_line(">> done")
        (number, *_) = re.findall(r">> done (\d+)", "\n".join(second.lines))
        assert int(number) >= 3, "it goes on"
