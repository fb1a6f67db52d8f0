"""The projects in `examples/`: started, drained and killed, each goes on where it stood."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery

from tests.conftest import RedisDB
from tests.support.command import CELERY, SLOW_WHILE
from tests.support.installed import require_modules, require_program
from tests.support.workers import ROOT, TIMEOUT, WatchedProcess, end_leases, environment, wait_until

EXAMPLES = ROOT / "examples"

#: Enough for twenty seconds, in which two workers in turn are stopped. The last one hurries.
ROWS = 400


@dataclass(frozen=True)
class Example:
    """A project.

    Attributes:
        folder: Its name.
        app: What ``celery -A`` finds it by.
        needs: Modules that have to be installed.
        start: Sends its task as its web side does, and prints the id.
        rows: What was done so far, in the order and as often as it was.
    """

    folder: str
    app: str
    needs: tuple[str, ...]
    start: str
    rows: Callable[[Path, Sequence[WatchedProcess]], list[int]]


def billed(folder: Path, workers: Sequence[WatchedProcess]) -> list[int]:
    if not (folder / "db.sqlite3").exists():
        return []
    with sqlite3.connect(folder / "db.sqlite3", timeout=TIMEOUT) as db:
        found = db.execute("SELECT id, bills FROM orders_order ORDER BY id").fetchall()
    return [number - 1 for number, bills in found for _ in range(bills)]


def exported(folder: Path, workers: Sequence[WatchedProcess]) -> list[int]:
    path = folder / "export.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def printed(folder: Path, workers: Sequence[WatchedProcess]) -> list[int]:
    return [int(found[1]) for worker in workers for found in worker.find(r"row (\d+)$")]


DJANGO = f"""
import shop, django
from django.core.management import call_command
django.setup()
call_command("migrate", verbosity=0)
from orders.models import Order
from orders.tasks import bill
Order.objects.bulk_create(Order() for _ in range({ROWS}))
print(bill.delay().id)
"""

FLASK = f"""
from shop import create_app
client = create_app().test_client()
answer = client.post("/exports/", data={{"rows": {ROWS}}})
assert answer.status_code == 202
assert client.get("/exports/" + answer.json["id"]).json["state"] != "FAILURE"
print(answer.json["id"])
"""

FASTAPI = f"""
import asyncio, httpx
from main import api

async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://api") as web:
        answer = await web.post("/exports", params={{"rows": {ROWS}}})
        assert answer.status_code == 202
        state = await web.get("/exports/" + answer.json()["id"])
        assert state.json()["state"] != "FAILURE"
        print(answer.json()["id"])

asyncio.run(ask())
"""

PROJECTS = [
    Example("django", "shop", ("django",), DJANGO, billed),
    Example("flask", "make_celery", ("flask",), FLASK, exported),
    Example("fastapi", "tasks", ("fastapi", "httpx"), FASTAPI, printed),
]
EACH = pytest.mark.parametrize("example", PROJECTS, ids=lambda example: example.folder)


@EACH
def test_it_goes_on_where_it_stood(example: Example, redis_db: RedisDB, tmp_path: Path) -> None:
    require_modules(*example.needs)
    slow = tmp_path / "slow"
    slow.touch()
    env = environment(
        {
            "CELERY_BROKER_URL": redis_db.url,
            "CELERY_RESULT_BACKEND": redis_db.backend_url,
            "DATABASE": str(tmp_path / "db.sqlite3"),
            "FLASK_EXPORT_FILE": str(tmp_path / "export.txt"),
            SLOW_WHILE: str(slow),
        }
    )
    argv = [*CELERY, "-A", example.app, "worker", "--loglevel", "INFO", "--concurrency", "1"]
    argv += ["--without-mingle", "--without-gossip"]  # a second each
    workers: list[WatchedProcess] = []

    def worker() -> WatchedProcess:
        workers.append(WatchedProcess(argv, env=env, cwd=EXAMPLES / example.folder))
        return workers[-1]

    def wait_rows(more: int) -> int:
        number = len(example.rows(tmp_path, workers)) + more
        wait_until(lambda: len(example.rows(tmp_path, workers)) >= number, f"{number} rows")
        return number

    # Before there is a worker: who sends may be slow to end, and the task would not wait for that.
    sent = subprocess.run(
        [sys.executable, "-c", example.start],
        env=env,
        cwd=EXAMPLES / example.folder,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    task_id = sent.stdout.split()[-1]
    with worker() as drained:
        wait_rows(3)
        drained.term()
        assert drained.wait() == 0
        assert drained.count(rf"{task_id}\] interrupted: it goes back") == 1
    with worker() as killed:
        wait_rows(3)
        killed.signal(signal.SIGKILL, group=True)
        assert killed.wait() == -signal.SIGKILL
    end_leases(redis_db.client)
    slow.unlink()
    with worker() as last:
        last.wait_line(rf"{task_id}\] succeeded")
        last.term()
        assert last.wait() == 0

    rows = example.rows(tmp_path, workers)
    assert sorted(set(rows)) == [*range(ROWS)]
    assert len(rows) <= ROWS + 1, "the row in hand at the kill may come twice"
    app = Celery(broker=redis_db.url, backend=redis_db.backend_url)
    assert app.AsyncResult(task_id).state == "SUCCESS"
    left = [key for key in redis_db.client.keys("*") if re.match("celery$|graceful:c", key)]
    assert not left


@EACH
def test_its_difference_from_a_plain_project(example: Example, tmp_path: Path) -> None:
    require_program("git")
    folder = tmp_path / example.folder
    shutil.copytree(
        EXAMPLES / example.folder, folder, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3")
    )

    def apply(*args: str) -> None:
        subprocess.run(["git", "apply", *args, "graceful.diff"], cwd=folder, check=True)

    def texts() -> dict[Path, str]:
        files = [path for path in folder.rglob("*.*") if path.suffix in (".py", ".txt")]
        return {path: path.read_text() for path in files}

    added = re.findall(r"(?im)^\+.*graceful.*$", (folder / "graceful.diff").read_text())
    others = ("import sources", "+celery_graceful")  # of its task, of requirements.txt
    assert len([line for line in added if not line.endswith(others)]) == 3, "lines of the app"

    example_now = texts()
    apply("--reverse")
    assert not [path for path, text in texts().items() if re.search("graceful|self.iter", text)]
    apply()
    assert texts() == example_now
