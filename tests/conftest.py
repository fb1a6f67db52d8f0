"""Fixtures for all tests: real servers.

A test may pause, kill or restart those of its pytest process (xdist worker): the next test finds
them running. The RabbitMQ that all processes share is left alone.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import hypothesis
import pytest
import redis
from celery import _state
from celery.app import builtins  # noqa: F401  what all apps have, before the first test
from celery.result import AsyncResult

from tests.servers import (
    AnyServer,
    RabbitNode,
    RabbitServer,
    RedisServer,
    SentinelServers,
    SharedRabbit,
    Startable,
)
from tests.support import whole_file
from tests.support.forkserver import ForkServer
from tests.support.patience import has_patience
from tests.support.peers import KentServer, Project
from tests.support.workers import ROOT, WatchedProcess, environment

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in the background ignores Ctrl-C, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, or to make one, says more of the machine than of the code.
hypothesis.settings.register_profile(
    "untimed",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


@functools.cache
def fork_server() -> ForkServer:
    """Of this process of tests."""
    return ForkServer(environment({}), ROOT)


#: Of how many tests one starts its workers as users do, which takes twice as long; 0: none does.
FRESH = int(os.environ.get("TEST_FRESH", 0))


def fork_server_of_this_test() -> ForkServer | None:
    """None where it starts them as users do: always the same tests, whoever runs them."""
    test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")
    is_fresh = FRESH and zlib.crc32(test.encode()) % FRESH == 0
    return None if is_fresh else fork_server()


if hasattr(os, "pidfd_open"):
    WatchedProcess.server = fork_server_of_this_test

#: Tests that are over.
_over: list[str] = []


def pytest_runtest_logfinish(nodeid: str) -> None:
    _over.append(nodeid)


@pytest.fixture(scope="session", autouse=True)
def results_of_tests_that_are_over() -> None:
    """They ask nobody for anything: collected late, they unsubscribe from servers that are gone.

    Celery would try that for 20 s each, in the middle of another test.
    """
    begin, end = AsyncResult.__init__, AsyncResult.__del__

    @functools.wraps(begin)
    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        self._of_test = len(_over)
        begin(self, *args, **kwargs)

    @functools.wraps(end)
    def ends(self: Any) -> None:
        if getattr(self, "_of_test", None) == len(_over):
            end(self)

    AsyncResult.__init__, AsyncResult.__del__ = noted, ends


@pytest.fixture(autouse=True)
def apps_of_this_test() -> Iterator[None]:
    """Its apps are not those of the next one.

    Celery keeps the last that was made for the current one, and gives the tasks of each to all
    that are made later.
    """
    tasks, app = _state._on_app_finalizers.copy(), _state._tls.current_app
    yield
    _state._on_app_finalizers.intersection_update(tasks)
    _state._tls.current_app = app


MARKERS = {"redis_server": "redis", "sentinels": "redis", "rabbit_server": "rabbitmq"}
MARKERS["own_rabbit_server"] = "rabbitmq"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKERS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKERS[fixture])


def pytest_collection_finish() -> None:
    # Some thousand tests: the collector would look through all of them again and again.
    gc.collect()
    gc.freeze()


def require(kind: type[Startable]) -> None:
    """Skip the test where the server is not installed; fail it in CI."""
    missing = kind.missing()
    if missing:
        report = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        report(f"not installed: {', '.join(missing)} (scripts/ensure-servers tells how)")


@dataclass(frozen=True)
class RedisDB:
    """Two empty databases of the test's own: for broker and store, and for results."""

    url: str
    backend_url: str
    client: redis.Redis


@dataclass(frozen=True)
class RabbitVhost:
    """A virtual host of the test's own."""

    name: str
    url: str
    server: RabbitNode

    def connections(self) -> list[dict[str, Any]]:
        """What the broker knows of its connections."""
        path = f"vhosts/{self.name}/connections"
        return cast("list[dict[str, Any]]", json.loads(self.server.api("GET", path)))

    def cut(self) -> int:
        """Close its connections, as an operator does; how many the broker knew of.

        One that ends meanwhile is no error: 404, or 500 where it does while the broker closes it.
        """
        found = self.connections()
        for one in found:
            try:
                self.server.api("DELETE", f"connections/{quote(one['name'], safe='')}")
            except OSError as exc:
                if not re.search(": (404|500) ", str(exc)):
                    raise
        return len(found)

    def queue_length(self, queue: str) -> int:
        """How many messages wait in the queue: those that a consumer holds do not count."""
        return self.server.queue_length(queue, self.name)


@pytest.fixture
def start_server() -> Iterator[Callable[..., Any]]:
    """Starts servers for one test alone: `start_server(RedisServer, appendonly=True)`."""
    with ExitStack() as stack:

        def start(kind: type[AnyServer], **options: Any) -> AnyServer:
            require(kind)
            server = kind(**options)
            stack.callback(server.close)
            server.start()
            return server

        yield start


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis of the test's own is away when it is stopped, and not when it takes its time."""
    has_patience(monkeypatch)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """The interpreter goes from thread to thread as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process sends by kombu's file transport is there as a whole."""
    monkeypatch.setattr("kombu.transport.filesystem.Channel._put", whole_file.put)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    require(RedisServer)
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_db(redis_server: RedisServer) -> Iterator[RedisDB]:
    redis_server.ensure_running()
    db, backend_db = redis_server.fresh_db(), redis_server.fresh_db()
    with redis_server.client(db) as client:
        yield RedisDB(redis_server.url(db), redis_server.url(backend_db), client)


@pytest.fixture
def sentinels(start_server: Callable[..., Any]) -> SentinelServers:
    """A master, a replica and three sentinels of the test's own."""
    servers: SentinelServers = start_server(SentinelServers)
    return servers


@pytest.fixture(scope="session")
def kent() -> Iterator[KentServer]:
    with KentServer() as server:
        yield server


@pytest.fixture
def project(kent: KentServer) -> Project:
    """A Sentry project of the test's own."""
    return kent.project()


@pytest.fixture(scope="session")
def rabbit_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RabbitNode:
    """The RabbitMQ of all processes of the run."""
    require(RabbitServer)
    folder = tmp_path_factory.getbasetemp()
    shared = SharedRabbit(folder.parent if hasattr(request.config, "workerinput") else folder)
    # Not at the end of a test, whose time limit is not meant for waiting for others.
    request.config.add_cleanup(shared.leave)
    return shared.join()


@pytest.fixture(scope="session")
def own_rabbit_server() -> Iterator[RabbitServer]:
    """One of the process's own."""
    require(RabbitServer)
    with RabbitServer() as server:
        yield server


@pytest.fixture
def rabbit_vhost(rabbit_server: RabbitNode) -> Iterator[RabbitVhost]:
    name = rabbit_server.vhost()
    yield RabbitVhost(name, rabbit_server.url(name), rabbit_server)
    rabbit_server.delete_vhost(name)
