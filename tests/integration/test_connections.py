"""Connections to Redis: whatever fails on one, the next question gets its own answer."""

from __future__ import annotations

import subprocess
import uuid
from contextlib import contextmanager

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_graceful import Graceful
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.connections import sentinel_pools
from celery_graceful.store.store import StoreAway
from tests.servers import RedisServer, SentinelServers
from tests.support.processes import free_port
from tests.support.workers import Worker, wait_until

#: Seconds: many times what an answer takes.
PATIENCE = 60.0

KINDS = ["plain", "tls", "unix", "sentinel", "backend", "backend by sentinel"]


def make_certificate(folder):
    key, cert = folder / "key.pem", folder / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {
        "tls-port": str(free_port()),
        "tls-cert-file": str(cert),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(cert),
        "tls-auth-clients": "no",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One Redis that is reached in three ways."""
    folder = tmp_path_factory.mktemp("redis")
    options = {"unixsocket": str(folder / "socket"), **make_certificate(folder)}
    with RedisServer(options=options) as server:
        yield server


@contextmanager
def made_with(kind, request):
    """A store of that kind, and the server that answers it."""
    if "sentinel" in kind:
        sentinels = request.getfixturevalue("start_server")(SentinelServers)
        server, url, options = sentinels.master, sentinels.url(), sentinels.options
    else:
        server, options = request.getfixturevalue("server"), {}
        server.ensure_running()
        url = {
            "tls": f"rediss://127.0.0.1:{server.options['tls-port']}/3",
            "unix": f"redis+socket://{server.options['unixsocket']}?virtual_host=3",
        }.get(kind, server.url(3))
    app = Celery(uuid.uuid4().hex, set_as_current=False)
    if "backend" in kind:
        app.conf.update(broker_url="memory://", result_backend=url)
        app.conf.result_backend_transport_options = options
    else:
        app.conf.update(broker_url="memory://", graceful_store=url)
        app.conf.graceful_store_options = options
    if kind == "tls":
        app.conf.graceful_store_options = {"ssl": {"ssl_cert_reqs": "none"}}
    yield find_store(app), server


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_gets_the_answer_to_another_question(kind, request, monkeypatch):
    with made_with(kind, request) as (store, server):

        def ask(word, **options):
            return store.execute("ECHO", [], [word], insist=True, **options)

        assert ask("first", timeout=PATIENCE) == "first"
        client = store._client(PATIENCE)
        (connection,) = client.connection_pool._available_connections
        wait_for(0.5, connection)
        server.pause()
        with pytest.raises(StoreAway, match="TimeoutError"):
            ask("too late", timeout=PATIENCE)
        connection.socket_timeout = PATIENCE  # when it connects again
        server.resume()
        for number in range(5):
            assert ask(f"next {number}", timeout=PATIENCE) == f"next {number}"

        # What comes from outside may come at any moment: before the answer is waited for, too.
        with monkeypatch.context() as patched:
            patched.setattr(client, "parse_response", raise_interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.execute("BLPOP", ["nothing"], [0.2], insist=True, timeout=PATIENCE)
        assert ask("after an interrupt", timeout=PATIENCE) == "after an interrupt"
        with monkeypatch.context() as patched:
            (connection,) = client.connection_pool._available_connections
            patched.setattr(connection._parser, "read_response", raise_interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.execute("BLPOP", ["nothing"], [0.2], insist=True, timeout=PATIENCE)
        assert ask("after another", timeout=PATIENCE) == "after another"


def wait_for(seconds, connection):
    """Let it wait for an answer no longer."""
    connection.socket_timeout = seconds
    connection._parser.on_connect(connection)  # which keeps it
    connection._sock.settimeout(seconds)


def raise_interrupt(*args, **options):
    raise KeyboardInterrupt


def test_a_store_that_is_closed_leaves_no_connection_to_a_sentinel(sentinels):
    with Celery("closed", broker=sentinels.url(), set_as_current=False) as app:
        app.conf.broker_transport_options = sentinels.options
        store = find_store(app)
        assert store.execute("PING", [])
        pools = [sentinel_pools(client.connection_pool) for client in store._clients.values()]
        asked = [one for some in pools for pool in some for one in pool._available_connections]
        assert any(one._sock for one in asked)
        store.disconnect()
        assert not any(one._sock for one in asked)


def test_the_store_follows_to_the_new_master(sentinels):
    """Also where the old one hangs: no connection to it breaks. In the worker and in its child."""
    env = {
        "BROKER_URL": sentinels.url(),
        "CONF_broker_transport_options": repr(sentinels.options),
    }
    with Worker("tests.apps.resuming", concurrency=1, env=env) as worker:
        worker.ready()
        with Celery("resuming", broker=sentinels.url()) as app:
            app.conf.broker_transport_options = sentinels.options
            app.send_task("tests.apps.resuming.count", [10_000])
        old = sentinels.master
        with old.client() as client:
            wait_until(lambda: client.keys("graceful:checkpoint:*"), "a checkpoint")
        sentinels.wait_until_copied()
        old.pause()
        new = sentinels.wait_failover(old)
        with new.client() as client:
            wait_until_written(client, "graceful:lease:*")
            wait_until_written(client, "graceful:checkpoint:*")
        told = worker.count("The store .* does not work: TimeoutError: .*shop of Sentinel")
        assert told <= 2 + worker.count("The store .* is back"), "once by each process"


def wait_until_written(client, keys):
    """Written to by somebody: one that only expires is not."""
    before = {key: client.dump(key) for key in client.keys(keys)}

    def written():
        found = {key: client.dump(key) for key in client.keys(keys)}
        return any(text not in (None, before.get(key)) for key, text in found.items())

    wait_until(written, f"{keys} is written to the new master")


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_worker_outlives_a_master_that_is_none_any_more(pool, start_server):
    """Behind one address, as managed servers have it: the worker connects until there is one."""
    server = start_server(RedisServer)
    with Worker("tests.apps.resuming", pool=pool, env={"BROKER_URL": server.url()}) as worker:
        worker.ready()
        with server.client() as client, Celery("resuming", broker=server.url()) as app:
            client.execute_command("REPLICAOF", "127.0.0.1", free_port())
            worker.wait_line("Connection to broker lost")
            worker.wait_line("The store .* does not work: ConnectionError: no master any more")
            client.execute_command("REPLICAOF", "NO", "ONE")
            app.send_task("tests.apps.resuming.short", [1])
        worker.wait_line(">> .*short 1")


def test_a_channel_that_is_closed_while_something_is_sent(server):
    """kombu sends it over the next one; who may not wait for that hears of a lost connection."""
    server.ensure_running()
    app = Celery("sends", broker=server.url(4), set_as_current=False)
    Graceful(app)
    with app, app.connection_for_write() as connection, server.client(4) as client:
        producer = app.amqp.Producer(connection)
        declare, losses = producer.maybe_declare, ["once"]

        def declare_and_lose(*args, **kwargs):
            answer = declare(*args, **kwargs)
            if losses:
                losses.pop()
                connection.collect()
            return answer

        producer.maybe_declare = declare_and_lose
        sent = app.send_task("one", producer=producer, queue="celery")
        assert (losses, client.llen("celery")) == ([], 1)
        losses.append("again")
        with pytest.raises(OperationalError, match="the connection was lost"):
            app.send_task("one", producer=producer, queue="celery", retry=False)
        assert sent.id in client.lindex("celery", 0)
