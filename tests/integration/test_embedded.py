"""Workers in threads of somebody else's program: `start_worker`, and Celery's pytest fixtures."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import RedisDB
from tests.support.workers import ROOT, TIMEOUT

#: A test file as users of Celery write it.
USERS_TESTS = """
import time

import pytest

from celery_graceful import Graceful, GracefulTask
from celery_graceful.timeline import worker_state


@pytest.fixture(scope="session")
def celery_config():
    return {{"broker_url": {broker!r}, "result_backend": {results!r}}}


@pytest.fixture(scope="session")
def celery_worker_pool():
    return {pool!r}


PATIENCE = {{"ping_task_timeout": 60, "shutdown_timeout": 60}}


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return PATIENCE


@pytest.fixture(scope="session")
def celery_session_app(celery_session_app):
    Graceful(celery_session_app)
    return celery_session_app


@pytest.fixture
def celery_app(celery_app):
    Graceful(celery_app)
    return celery_app


def add_to(app):
    @app.task(base=GracefulTask, bind=True, name="add", shared=False)
    def add(self, a, b):
        assert not self.interrupted
        return a + b

    return add


@pytest.mark.parametrize("number", range(3))
def test_with_a_worker_of_its_own(celery_app, celery_worker, number):
    add = add_to(celery_app)
    celery_worker.reload()
    assert add.delay(number, 1).get(timeout=60) == number + 1


def test_the_next_starts_where_nothing_is_left():
    assert worker_state.board.value is None


@pytest.mark.parametrize("number", range(3))
def test_with_that_of_the_session(celery_session_app, celery_session_worker, number):
    add = add_to(celery_session_app)
    celery_session_worker.reload()
    assert add.delay(number, 1).get(timeout=60) == number + 1
"""

#: Solo has no way to end what keeps its thread; a prefork worker has no other than its own loop.
WHAT = {
    "solo": "stop,end_asleep,remote,as_it_was,two_at_once,watched",
    "threads": "stop,end,remote,as_it_was,two_at_once,watched",
    "prefork": "stop,end,remote,as_it_was,watched",
}


def run(redis_db: RedisDB, *args: str, timeout: float = 5 * TIMEOUT) -> str:
    env = {**os.environ, "BROKER_URL": redis_db.url, "RESULT_URL": redis_db.backend_url}
    env["PYTHONPATH"] = str(ROOT)
    try:
        done = subprocess.run(
            [sys.executable, *args],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as exc:
        print(exc.stdout)
        raise
    print(done.stdout)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("pool", WHAT)
def test_one_after_the_other_and_two_at_once(redis_db: RedisDB, pool: str) -> None:
    output = run(redis_db, "-m", "tests.apps.embedded", WHAT[pool], pool)
    assert output.count("ok ") == WHAT[pool].count(",") + 1


@pytest.mark.parametrize("pool", WHAT)
def test_twenty_leave_nothing_behind(redis_db: RedisDB, pool: str) -> None:
    """Of theirs: plain Celery's are counted in the same run, and leave as much or more."""
    args = ["-m", "tests.apps.embedded", "leaves_nothing", pool]
    assert "ok leaves_nothing" in run(redis_db, *args, timeout=5 * TIMEOUT)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_fixtures_of_celery(redis_db: RedisDB, pool: str, tmp_path) -> None:
    tests = tmp_path / "test_users.py"
    options = {"broker": redis_db.url, "results": redis_db.backend_url, "pool": pool}
    tests.write_text(USERS_TESTS.format(**options))
    args = ["-m", "pytest", "-q", "-p", "celery.contrib.pytest", "-p", "no:cacheprovider"]
    assert "7 passed" in run(redis_db, *args, "-c", os.devnull, str(tests))
