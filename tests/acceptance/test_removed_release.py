"""A deploy that removes the old release while its workers drain: they need no file of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.servers import RedisServer
from tests.support.workers import ROOT, WatchedProcess, wait_until

SHOP = """
import os
from celery import Celery
from celery_graceful import Graceful, GracefulTask, Interrupted

app = Celery("shop", broker=os.environ["BROKER_URL"])
app.conf.worker_pool_start_method = os.environ["START_METHOD"]
app.conf.worker_proc_alive_timeout = 60.0
app.conf.update(graceful_grace_period=60, graceful_lease_ttl=60)
Graceful(app)


@app.task(base=GracefulTask, bind=True, name="rows", acks_late=True)
def rows(self):
    self.checkpoint({"row": 300})
    print("is at row 300", flush=True)
    try:
        self.sleep(600)
    except Interrupted:
        self.checkpoint({"row": 301})
        raise
"""


@pytest.mark.parametrize("pool", ["prefork", "spawn", "solo"])
def test_what_is_held_goes_back(
    pool: str, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    release, server = tmp_path / "release", start_server(RedisServer)
    shutil.copytree(ROOT / "celery_graceful", release / "celery_graceful")
    shutil.copy(ROOT / "celery_graceful_probe.py", release)
    (release / "shop.py").write_text(SHOP, encoding="utf-8")
    method = "spawn" if pool == "spawn" else "fork"
    own = {"BROKER_URL": server.url(), "START_METHOD": method, "PYTHONPATH": str(release)}
    pool = "prefork" if pool == "spawn" else pool
    argv = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-l", "INFO", "-P", pool]
    with WatchedProcess([*argv, "-c", "1"], env={**os.environ, **own}, cwd=release) as worker:
        app = Celery("shop", broker=server.url(), set_as_current=False)
        worker.wait_line(r"ready\.$")
        with server.client() as client:
            for options in ({"countdown": 600}, {}):  # solo fetches nothing beside a run
                app.send_task("rows", **options)
                wait_until(lambda: not client.llen("celery"), "it is claimed")
            worker.wait_line("is at row 300")
            shutil.rmtree(release)
            worker.term()
            assert worker.wait() == 0
            assert client.llen("celery") == 2
            assert client.keys("graceful:claims:*") == []
            (saved,) = client.keys("graceful:checkpoint:*")
            assert "301" in str(client.hgetall(saved))
    app.close()
    assert worker.count("No such file|Traceback|Error") == 0
    assert worker.count("1 interrupted, 0 given up, 1 released") == 1
