"""States that many threads store at a time: each is stored, and nobody waits for ever."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
from celery import Celery, states
from celery.backends.redis import RedisBackend as CelerysBackend
from kombu.exceptions import EncodeError
from redis import ConnectionPool, CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from celery_graceful import Graceful
from celery_graceful.results.one_trip import _asking
from celery_graceful.store import together
from celery_graceful.store.together import Together, TornAway
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.distance import half_open

#: Seconds; many times what anything here takes.
TIMEOUT = 60.0

THREADS, EACH = 10, 100


class Hit(Exception):
    """From outside, anywhere."""


#: What becomes of it: while a result is encoded, this is what kombu makes of it.
HITS = Hit, EncodeError


@pytest.fixture
def app(redis_db: RedisDB) -> Iterator[Celery]:
    app = Celery("results", broker=redis_db.url, backend=redis_db.url, set_as_current=False)
    app.conf.redis_socket_timeout = TIMEOUT
    Graceful(app)
    yield app
    app.close()


@pytest.fixture
def asking(redis_db: RedisDB) -> Iterator[Together]:
    pool = ConnectionPool.from_url(redis_db.url, socket_timeout=TIMEOUT)
    yield Together(pool, patience=TIMEOUT)
    pool.disconnect()


def echo(word: str) -> bytes:
    return f"*2\r\n$4\r\nECHO\r\n${len(word)}\r\n{word}\r\n".encode()


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


class Passwords(CredentialProvider):
    """That of who needs none."""

    def get_credentials(self) -> tuple[str, str]:
        return "default", ""


class Storing:
    """Threads that store one state after the other, each until it is stored."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.escaped: list[BaseException] = []
        self.ids = [[f"{thread}-{one}" for one in range(EACH)] for thread in range(THREADS)]
        self.threads = [threading.Thread(target=self._run, args=(ids,)) for ids in self.ids]

    def _run(self, ids: list[str]) -> None:
        todo = list(ids)
        while todo:  # one may come where another one is caught
            try:
                while todo:
                    try:
                        self._store(todo)
                    except HITS:
                        pass
            except HITS:
                pass
            except BaseException as exc:
                self.escaped.append(exc)
                return

    def _store(self, todo: list[str]) -> None:
        while todo:
            backend = self.app.backend
            backend.store_result(todo[-1], {"pid": 1}, states.STARTED)
            backend.store_result(todo[-1], todo[-1], states.SUCCESS)
            todo.pop()

    @property
    def alive(self) -> list[threading.Thread]:
        return [thread for thread in self.threads if thread.is_alive()]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self.threads:
            thread.start()
        yield
        end = time.monotonic() + TIMEOUT
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not self.alive
        assert self.escaped == []
        plain = CelerysBackend(app=self.app, url=self.app.conf.result_backend)
        for one in chain(*self.ids):
            meta = plain.get_task_meta(one, cache=False)
            assert (meta["status"], meta["result"]) == (states.SUCCESS, one)


def test_threads_share_a_connection(app: Celery, redis_db: RedisDB) -> None:
    def connections() -> int:
        return int(redis_db.client.info("stats")["total_connections_received"])

    before = connections()
    with Storing(app).running():
        pass
    assert connections() - before <= 3  # and that which looks


def test_passwords_by_a_provider(app: Celery) -> None:
    app.conf.redis_backend_credential_provider = f"{__name__}:Passwords"
    with Storing(app).running():
        pass
    app.backend.store_result("last", 7, states.SUCCESS)
    assert len(_asking[app]) == 1


def test_what_comes_meanwhile_is_asked_in_one(
    asking: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking.ask(echo("first"))
    kind, sent = asking._source.connection_class, []
    send = kind.send_packed_command

    def sends(self: Any, command: Any, *args: Any) -> Any:
        sent.append(command)
        return send(self, command, *args)

    monkeypatch.setattr(kind, "send_packed_command", sends)
    answers: dict[str, Any] = {}

    def ask(word: str) -> None:
        answers[word] = asking.ask(echo(word))

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(THREADS)]
    with asking._turn:
        for thread in threads:
            thread.start()
        wait_until(lambda: len(asking._waiting) == THREADS)
    asking._pass_on([])
    for thread in threads:
        thread.join(TIMEOUT)
    assert answers == {str(number): str(number).encode() for number in range(THREADS)}
    assert len(sent) == 1


def test_each_hears_its_own_refusal(asking: Together) -> None:
    with pytest.raises(ResponseError, match="unknown command"):
        asking.ask(b"*1\r\n$3\r\nFOO\r\n")
    assert asking.ask(echo("on")) == b"on"


def test_a_signal_may_come_anywhere(app: Celery) -> None:
    """That of a soft time limit, in a process of the pool."""
    hits = 0

    def hit(_: int, frame: Any) -> None:
        nonlocal hits
        # In what is ours: the locks of logging, and redis-py's connects, do not bear it.
        if frame.f_code.co_filename == together.__file__:
            hits += 1
            raise Hit
        signal.setitimer(signal.ITIMER_REAL, 1e-5)

    before = signal.signal(signal.SIGALRM, hit)
    try:
        number = 0
        while hits < 200:
            seen = hits
            try:
                signal.setitimer(signal.ITIMER_REAL, random.Random(hits).uniform(1e-5, 3e-3))
                while hits == seen:  # a finalizer may have swallowed it
                    number += 1
                    app.backend.store_result(f"{number}", number, states.SUCCESS)
            except HITS:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for one in range(1, number):
        meta = app.backend.get_task_meta(f"{one}", cache=False)
        assert meta["result"] in (one, None)  # one that was stopped is stored, or not
    app.backend.store_result("last", 7, states.SUCCESS)
    assert app.backend.get_task_meta("last", cache=False)["result"] == 7
    assert not next(iter(app.backend._asking.values())).stuck


@pytest.mark.parametrize("where", ["_gather", "_take", "_exchange", "_give_back", "_pass_on"])
def test_who_asks_for_others_may_be_stopped(
    asking: Together, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[Any] = []
    plain = getattr(asking, where)

    def stops(*args: Any) -> Any:
        answer = plain(*args)
        if not stopped:
            stopped.append(threading.current_thread())
            raise Hit
        return answer

    monkeypatch.setattr(together, "KEPT", -1.0)  # it is given back at each turn
    monkeypatch.setattr(asking, where, stops)
    ends: list[Any] = []

    def ask(word: str) -> None:
        try:
            ends.append(asking.ask(echo(word)) == word.encode())
        except (Hit, TornAway) as exc:
            ends.append(type(exc))

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(ends) == THREADS
    assert set(ends) <= {True, Hit, TornAway}
    assert ends.count(Hit) == len(stopped)
    assert asking.ask(echo("on")) == b"on"
    assert asking.ask(echo("on again")) == b"on again"


def test_who_was_taken_along_by_one_that_vanished_hears_of_it(asking: Together) -> None:
    ends: list[Any] = []

    def ask() -> None:
        try:
            ends.append(asking.ask(echo("lost")))
        except TornAway as exc:
            ends.append(exc)

    thread = threading.Thread(target=ask)
    with asking._turn:
        thread.start()
        wait_until(lambda: asking._waiting)
        asking._waiting.clear()
    thread.join(TIMEOUT)
    assert [type(one) for one in ends] == [TornAway]


def test_who_never_gets_a_turn_asks_elsewhere(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "PATIENCE", 0.05)
    monkeypatch.setattr(together, "SLICE", 0.01)
    app.backend.store_result("a", 1, states.SUCCESS)
    (stuck,) = app.backend._asking.values()
    stuck._turn.acquire()
    app.backend.store_result("b", 2, states.SUCCESS)
    app.backend.store_result("c", 3, states.SUCCESS)
    assert [app.backend.get_task_meta(one)["result"] for one in "abc"] == [1, 2, 3]
    assert stuck.stuck
    (other,) = app.backend._asking.values()
    assert other is not stuck
    assert not other.stuck


def test_only_who_has_asked_waits_for_a_connection_that_is_dead(
    redis_db: RedisDB, redis_server: RedisServer
) -> None:
    with half_open(redis_server.port) as way:
        url = redis_db.url.replace(f":{redis_server.port}/", f":{way.port}/")
        app = Celery("results", broker=url, backend=url, set_as_current=False)
        app.conf.redis_socket_timeout = 20
        Graceful(app)
        storing = Storing(app)
        app.backend.store_result("first", 1, states.SUCCESS)
        way.swallow()
        opened = way.opened
        with storing.running():  # the one, as it is stored again when it was told
            wait_until(lambda: len(storing.alive) <= 1)
            assert storing.alive, "which waits for as long as Redis may take"
            assert way.opened == opened + 1
        app.close()


def test_who_sent_too_much_leaves_no_connection_that_is_closed(
    start_server: Callable[..., RedisServer],
) -> None:
    """The server says so and closes it, or closes it while it is still sent to."""
    server = start_server(RedisServer)
    with server.client() as client:
        client.config_set("proto-max-bulk-len", "1mb")
    pool = ConnectionPool.from_url(server.url(), socket_timeout=TIMEOUT)
    asking = Together(pool, patience=TIMEOUT)
    for _ in range(20):
        with pytest.raises((ResponseError, RedisConnectionError)):
            asking.ask(echo("x" * 3_000_000))
        assert asking.ask(echo("on")) == b"on"
    # Read before it is closed.
    with pytest.raises(ResponseError, match="Protocol error"):
        asking.ask(b"*2\r\n$4\r\nECHO\r\n$3000000\r\n")
    assert asking.ask(echo("on")) == b"on"
    pool.disconnect()


def test_a_server_that_is_busy_for_a_moment(
    app: Celery, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "PATIENCE", TIMEOUT)
    app.backend.store_result("first", 1, states.SUCCESS)
    before = redis_db.client.info("stats")["total_connections_received"]
    redis_db.client.client_pause(700)
    with Storing(app).running():
        pass
    (asking,) = app.backend._asking.values()
    assert not asking.stuck
    assert redis_db.client.info("stats")["total_connections_received"] - before <= 3


def test_what_is_stored_in_the_middle_of_it_goes_celerys_way(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a finalizer, or a signal handler."""
    nested: list[bool] = []
    exchange = Together._exchange

    def nests(self: Any, asked: Any) -> None:
        if not nested:
            nested.append(True)
            app.backend.store_result("inner", 1, states.SUCCESS)
        exchange(self, asked)

    monkeypatch.setattr(Together, "_exchange", nests)
    began = time.monotonic()
    app.backend.store_result("outer", 2, states.SUCCESS)
    assert time.monotonic() - began < TIMEOUT / 2, "it has waited for nobody"
    assert [app.backend.get_task_meta(one)["result"] for one in ("inner", "outer")] == [1, 2]


def test_connections_that_are_cut_again_and_again(app: Celery, redis_db: RedisDB) -> None:
    storing = Storing(app)
    pause = 0.02
    with storing.running():
        while storing.alive:
            redis_db.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(pause)
            pause *= 1.01  # they come to an end however slow the machine is


def test_a_server_that_stands_still(
    app: Celery,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def said() -> int:
        return caplog.text.count("Connection to Redis lost")

    app.conf.redis_socket_timeout = 3
    storing = Storing(app)
    app.backend.store_result("first", 1, states.SUCCESS)
    redis_server.pause()
    began = time.monotonic()
    with storing.running():
        wait_until(lambda: said() >= THREADS)  # all of them, as soon as the first one
        took = time.monotonic() - began
        redis_server.resume()
    assert took < THREADS * 3 - 5, "one after the other"


def test_a_server_that_is_restarted(app: Celery, redis_server: RedisServer) -> None:
    for turn in range(2):
        app.backend.store_result(f"{turn}", turn, states.SUCCESS)
        redis_server.restart()
    app.backend.store_result("last", 7, states.SUCCESS)
    assert app.backend.get_task_meta("last", cache=False)["result"] == 7


SETUP = """
    import os, sys, threading, time
    from celery import Celery
    from celery_graceful import Graceful
    app = Celery("results", broker=sys.argv[1], backend=sys.argv[1])
    app.conf.redis_socket_timeout = 60
    Graceful(app)
    def store(name):
        for number in range(20):
            app.backend.store_result(f"{name}-{number}", number, "SUCCESS")
"""


def run(script: str, url: str) -> str:
    """What a process of its own says."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), url],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_child_that_is_forked_meanwhile(redis_db: RedisDB) -> None:
    script = (
        SETUP
        + """
    from celery_graceful.store.together import Together
    store("first")
    inside, forked, exchange = threading.Event(), threading.Event(), Together._exchange
    def waits(self, asked):
        inside.set()
        assert forked.wait(30)
        exchange(self, asked)
    Together._exchange = waits
    thread = threading.Thread(target=store, args=("parent",))
    thread.start()
    assert inside.wait(30)
    if not (pid := os.fork()):
        Together._exchange = exchange
        store("child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    forked.set()
    thread.join(30)
    """
    )
    run(script, redis_db.url)
    assert len(redis_db.client.keys("celery-task-meta-*")) == 3 * 20


GREEN = {
    "gevent": """
    from gevent import monkey; monkey.patch_all()
    import gevent
    from gevent import Timeout
    def run(function, names):
        gevent.joinall([gevent.spawn(function, name) for name in names], timeout=30)
    """,
    "eventlet": """
    import eventlet; eventlet.monkey_patch()
    from eventlet import Timeout
    def run(function, names):
        pool = eventlet.GreenPool()
        for name in names:
            pool.spawn(function, name)
        pool.waitall()
    """,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", GREEN)
def test_greenlets_wait_without_the_hub(kind: str, redis_db: RedisDB) -> None:
    script = (
        GREEN[kind]
        + SETUP
        + """
    def stopped(name):
        for number in range(20):
            try:
                with Timeout(0.0005 * (number % 4)):
                    app.backend.store_result(f"{name}-{number}", number, "SUCCESS")
            except Timeout:
                app.backend.store_result(f"{name}-{number}", number, "SUCCESS")
    run(store, [f"s{number}" for number in range(20)])
    run(stopped, [f"t{number}" for number in range(20)])
    from celery_graceful.results.one_trip import _asking
    assert len(_asking[app]) == 1
    """
    )
    run(script, redis_db.url)
    assert len(redis_db.client.keys("celery-task-meta-[st]*")) == 40 * 20


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", GREEN)
def test_a_real_thread_beside_greenlets_stores_by_itself(kind: str, redis_db: RedisDB) -> None:
    """As at the hard deadline, when the loop may not come round any more."""
    script = (
        GREEN[kind]
        + SETUP
        + """
    from celery_graceful.system.native import bounded
    run(store, ["greenlet"])
    failed = []
    def apart():
        try:
            app.backend.store_result("apart", 1, "SUCCESS")
        except BaseException as exc:
            failed.append(exc)
    assert bounded(apart, 30)
    assert not failed, failed
    """
    )
    run(script, redis_db.url)
    assert redis_db.client.exists("celery-task-meta-apart")
