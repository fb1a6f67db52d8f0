"""Fixtures for pytest, which loads this in each of its runs: so it stands outside of the package.

The package is imported by whoever asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from celery_graceful.testing.fake_monitor import FakeMonitor
    from celery_graceful.testing.workers import Workers

__all__ = [
    "assert_survives_interruptions",
    "fake_monitor",
    "graceful_broker",
    "graceful_redis",
    "graceful_run",
    "graceful_worker",
]


@pytest.fixture(name="graceful_run")
def graceful_run() -> Callable[..., Any]:
    """``celery_graceful.testing.graceful_run``."""
    from celery_graceful.testing import graceful_run

    return graceful_run


@pytest.fixture(name="assert_survives_interruptions")
def assert_survives_interruptions() -> Callable[..., None]:
    """``celery_graceful.testing.assert_survives_interruptions``."""
    from celery_graceful.testing import assert_survives_interruptions

    return assert_survives_interruptions


@pytest.fixture(scope="session")
def graceful_redis() -> Iterator[str]:
    """The URL of a redis-server of this process of pytest's; without one, its tests are skipped."""
    from celery_graceful.testing.redis_server import MISSING, RedisServer, is_installed

    if not is_installed():
        pytest.skip(MISSING)
    server = RedisServer()
    yield server.url
    server.close()


@pytest.fixture
def graceful_broker() -> str:
    """The URL of the broker for ``graceful_worker``: override it to name one of yours.

    Empty: ``graceful_redis``.
    """
    return ""


@pytest.fixture
def graceful_worker(
    graceful_broker: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workers]:
    """Starts real workers, which end with the test: ``worker = graceful_worker(app)``."""
    from celery_graceful.testing.workers import Workers

    url = graceful_broker or request.getfixturevalue("graceful_redis")
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    if url.startswith("redis"):
        monkeypatch.setenv("CELERY_RESULT_BACKEND", url)
    workers = Workers(url, ours=not graceful_broker)
    yield workers
    workers.close()


@pytest.fixture
def fake_monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMonitor]:
    """Takes check-ins: ``sentry_sdk.init()`` without a DSN finds it by ``SENTRY_DSN``."""
    from celery_graceful.testing.fake_monitor import FakeMonitor

    monitor = FakeMonitor()
    monkeypatch.setenv("SENTRY_DSN", monitor.dsn)
    yield monitor
    monitor.close()
