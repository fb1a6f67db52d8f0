"""Commands of ours, from `celery control` and for those who read its help."""

from __future__ import annotations

import os
import subprocess

import pytest
from celery import Celery

from tests.conftest import RedisDB
from tests.support.command import CELERY
from tests.support.workers import ROOT, TIMEOUT, Worker, wait_until_heard

APP = "tests.apps.lifecycle"
NAME = "one@test"


def celery(redis_db: RedisDB, *args: str) -> str:
    done = subprocess.run(
        [*CELERY, "-A", APP, "-b", redis_db.url, *args],
        cwd=ROOT,
        env={**os.environ, "BROKER_URL": redis_db.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_from_the_shell(redis_db: RedisDB, pool: str) -> None:
    env = {"BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url}
    with Worker(APP, pool=pool, env=env, hostname=NAME).ready() as worker:
        wait_until_heard(Celery(broker=redis_db.url))
        asked = ["-t", str(TIMEOUT), "-d", NAME]
        said = celery(redis_db, "inspect", *asked, "graceful_status")
        assert f"{NAME}: OK" in said
        assert "tasks" in said
        for number, name in enumerate(("quiet", "graceful_quiet"), 1):
            assert f"{NAME}: OK" in celery(redis_db, "control", *asked, name)
            worker.wait_line("Quiet, asked for by remote control", number)
            assert f"{NAME}: OK" in celery(redis_db, "control", *asked, "graceful_resume")
            worker.wait_line("it fetches", number)
        stop = {"prefork": "shutdown", "threads": "graceful_stop"}[pool]
        assert f"{NAME}: OK" in celery(redis_db, "control", *asked, stop)
        worker.wait_line("Stopping, asked for by remote")
        assert worker.wait() == 0


@pytest.mark.parametrize("option", ["--list", "--help"])
def test_in_the_help(redis_db: RedisDB, option: str) -> None:
    said = " ".join(celery(redis_db, "control", option).split())
    assert "Stop fetching; what was fetched" in said
    assert "Drain the worker" in said
    assert "quiet" in said
