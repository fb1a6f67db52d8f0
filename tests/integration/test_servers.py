"""The servers of the other tests do what those count on, and leave nothing behind."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
from pathlib import Path

import amqp.exceptions
import psutil
import pytest
import redis
from kombu import Connection

from tests.conftest import require
from tests.servers import RabbitServer, RedisServer
from tests.support.workers import wait_until

KINDS = [RedisServer, pytest.param(RabbitServer, marks=[pytest.mark.rabbitmq, pytest.mark.slow])]
START_AND_HANG = """
import sys, time
from tests import servers
server = getattr(servers, sys.argv[1])()
server.start()
print(server.folder, flush=True)
time.sleep(600)
"""


def processes_in(folder):
    """All processes that work in the folder: those of a server, with their children."""
    return [p for p in psutil.process_iter(["cwd"]) if str(folder) in (p.info["cwd"] or "")]


def connections_of(process):
    """Those of one that has ended are none: RabbitMQ starts some for a moment."""
    try:
        return process.net_connections()
    except psutil.NoSuchProcess:
        return []


def publish(url, queue, count):
    connection = Connection(url, transport_options={"confirm_publish": True})
    with connection, connection.SimpleQueue(queue) as simple:
        for number in range(count):
            simple.put(number)


@pytest.mark.parametrize("run", [1, 2])
def test_redis_db_is_empty(redis_db, run):
    assert redis_db.client.dbsize() == 0
    assert redis_db.url != redis_db.backend_url
    redis_db.client.set("key", "left behind")


def test_redis_pause_and_resume(redis_server, redis_db):
    redis_db.client.set("key", "value")
    impatient = redis_server.client(timeout=0.1)
    redis_server.pause()
    with pytest.raises(redis.TimeoutError):
        impatient.ping()
    redis_server.resume()
    assert redis_db.client.get("key") == "value"


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize(("appendonly", "kept"), [(True, "value"), (False, None)])
def test_redis_comes_back(start_server, end, appendonly, kept):
    server = start_server(RedisServer, appendonly=appendonly)
    client = server.client()
    client.set("key", "value")
    getattr(server, end)()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    assert client.get("key") == kept


@pytest.mark.parametrize("harm", ["pause", "stop", "kill"])
def test_redis_is_running_again_after_harm(redis_server, redis_db, harm):
    getattr(redis_server, harm)()
    redis_server.ensure_running()
    assert redis_server.client().ping()


@pytest.mark.parametrize("run", [1, 2])
def test_rabbit_vhost_is_empty(rabbit_vhost, run):
    with pytest.raises(amqp.exceptions.NotFound):
        rabbit_vhost.queue_length("queue")
    publish(rabbit_vhost.url, "queue", 3)
    assert rabbit_vhost.queue_length("queue") == 3


def pauses_and_resumes(server):
    vhost = server.vhost()
    server.pause()
    with pytest.raises(TimeoutError):
        server.connection(timeout=0.2).connect()
    server.resume()
    publish(server.url(vhost), "queue", 1)
    assert server.queue_length("queue", vhost) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_only_loopback_and_nothing_left(start_server, kind):
    server = start_server(kind)
    processes = processes_in(server.folder)
    assert server.pid in [process.pid for process in processes]
    for process in processes:
        for connection in connections_of(process):
            # Erlang opens one, and sends nothing, when it asks for the name of the host.
            is_erlang_s = connection.type == socket.SOCK_DGRAM and kind is RabbitServer
            loopback = ipaddress.ip_address(connection.laddr.ip).is_loopback
            assert loopback or (is_erlang_s and not connection.raddr), connection

    if kind is RabbitServer:  # which takes seconds to start: one serves for this as well
        pauses_and_resumes(server)
        keeps_durable_messages_over_a_kill(server)
        processes += processes_in(server.folder)
    server.close()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    # RabbitMQ starts some for a moment, in groups of their own, that end when they see that it has.
    wait_until(lambda: not processes_in(server.folder), "nothing is left")
    assert not server.folder.exists()


def keeps_durable_messages_over_a_kill(server):
    publish(server.url(), "queue", 3)
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        server.connection().connect()
    server.start()
    assert server.queue_length("queue") == 3


def test_sentinels_let_the_replica_take_the_masters_place(sentinels):
    processes = [p for one in (*sentinels.nodes, *sentinels.sentinels) for p in one.processes]
    assert len(processes) == 5
    old = sentinels.master
    with old.client() as client:
        client.set("key", "1")
        client.wait(1, 30_000)
    new = sentinels.failover()
    assert {new, old} == set(sentinels.nodes)
    assert sentinels.replica is old
    with new.client() as client:
        assert client.get("key") == "1"
        client.set("key", "2")

    sentinels.close()
    assert not any(process.alive() for process in processes)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_left_when_the_starter_is_killed(kind):
    require(kind)
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_HANG, kind.__name__], stdout=subprocess.PIPE, text=True
    ) as starter:
        folder = Path(starter.stdout.readline().strip())
        processes = [*processes_in(folder), *psutil.Process(starter.pid).children()]
        starter.kill()

    assert len(processes) > 1
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert not folder.exists()


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_missing_server_skips_at_home_and_fails_in_ci(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(RedisServer, "programs", ("no-such-server",))
    with pytest.raises(outcome, match="no-such-server"):
        require(RedisServer)


def test_no_two_processes_get_the_same_port():
    """Also if they think of the same numbers, long before a server listens there."""
    code = (
        "import random; from tests.support.processes import free_port; random.seed(7);"
        "print(*[free_port() for _ in range(50)], flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ports = [port for process in processes for port in process.stdout.readline().split()]
    for process in processes:
        process.communicate("\n")
    assert len(ports) == len(set(ports)) == 100
