"""What leases, epochs and tombstones say, and when they say nothing."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from functools import partial

import pytest
import redis
from celery import Celery
from kombu.transport.virtual import Message
from kombu.utils.json import dumps, loads

from celery_graceful import Graceful
from celery_graceful.claims import lease_validity
from celery_graceful.claims.claimant import Claimant
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.lease import Lease
from celery_graceful.claims.lease_validity import LeaseValidity
from celery_graceful.claims.rescue import Rescuer
from celery_graceful.claims.undelivered import Fetched
from celery_graceful.poison import redelivered
from celery_graceful.poison.redelivered import Asked
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import broker_store
from celery_graceful.store.store import StoreAway
from tests.servers import RedisServer
from tests.support.workers import TIMEOUT, wait_until

FOLLOW = 3.0

SETTINGS = Settings(lease_ttl=1.0, heartbeat_interval=0.1, rescue_interval=0.01)


def store_of(url):
    app = Celery("trust", broker=url, set_as_current=False)
    Graceful(app)
    return broker_store(app)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """A former master is left after three seconds."""
    monkeypatch.setattr(lease_validity, "FOLLOW", FOLLOW)


@pytest.fixture
def store(redis_db):
    wait_until(lambda: redis_db.client.info("server")["uptime_in_seconds"] > FOLLOW)
    return store_of(redis_db.url)


def text(number):
    return {"body": "", "headers": {"id": f"id-{number}"}, "properties": {"delivery_tag": ""}}


def dead(client, worker="dead", **about):
    """What a worker leaves behind that ran one task."""
    client.sadd("graceful:workers", worker)
    client.set(f"graceful:worker:{worker}", dumps(about))
    client.hset(f"graceful:claims:{worker}", "1", f"q\0{dumps(text(1))}")
    client.sadd(f"graceful:begun:{worker}", "1")


def hold(claims, worker, count, epoch, list_="q"):
    """Messages in memory, as requests answer for them."""
    tags = [claims.tag(worker, number, list_, epoch) for number in range(1, count + 1)]
    for tag in tags:
        payload = text(tag.number)
        payload["properties"]["delivery_tag"] = tag
        claims.held[tag] = Message(payload)
    return tags


def ids(client, queue="q"):
    return [loads(raw)["headers"]["id"] for raw in client.lrange(queue, 0, -1)[::-1]]


def look(rescuer, client):
    client.delete("graceful:rescuer")
    return rescuer.look()


def test_another_server_behind_the_name_begins_a_new_time(store, redis_db):
    """It was a replica, and has been up for long: the living were heard by its master."""
    client = redis_db.client
    assert LeaseValidity(store, 1.0).seconds() == 0
    dead(client)
    client.hset("graceful:epoch", "server", "the old master")
    long = replace(SETTINGS, lease_ttl=60.0)
    rescuer = Rescuer(Claims(store_of(redis_db.url)), long, lambda *_: set())
    assert look(rescuer, client) == 0
    assert FOLLOW < rescuer.lease_validity.seconds() <= FOLLOW + 60.0
    # Who comes later finds the same.
    assert FOLLOW < LeaseValidity(store_of(redis_db.url), 1.0).seconds() <= FOLLOW + 60.0
    # Nobody has to know it to be held up by it: the script looks as well.
    rescuer.lease_validity._until = 0.0
    assert look(rescuer, client) == 0
    assert client.sismember("graceful:workers", "dead")
    client.hset("graceful:epoch", "trust", "0")
    rescuer.lease_validity._until = 0.0
    assert look(rescuer, client) == 1


@pytest.mark.usefixtures("patient")
def test_a_young_server_was_restarted_unless_it_stands_elsewhere(start_server, monkeypatch):
    """A replica may have been started just before it became the master."""
    monkeypatch.setattr(lease_validity, "FOLLOW", 60.0)  # so long it is young
    server = start_server(RedisServer)
    one = LeaseValidity(store_of(server.url()), 30.0)
    one.meet()
    for moved in (False, True):
        with server.client() as client:
            client.hset("graceful:epoch", "server", "the old one")
        if moved:
            one._peer = ("192.0.2.1", 6379)
        one._until = 0.0
        one.meet_again()
        assert (one.seconds() > 60.0) is moved


def test_who_was_not_heard_cannot_judge(store, redis_db):
    dead(redis_db.client)
    rescuer = Rescuer(Claims(store), SETTINGS, lambda *_: set(), own=lambda: "me")
    assert look(rescuer, redis_db.client) == 0
    redis_db.client.set("graceful:lease:me", "{}")
    assert look(rescuer, redis_db.client) == 1


def test_a_server_that_was_out_of_reach_begins_a_new_time(start_server):
    """All leases ran out meanwhile, and the first one back must not judge the others."""
    server = start_server(RedisServer)
    store, held, tried = store_of(server.url()), [], []

    def beat():
        tried.append(time.monotonic())
        return {}

    lease = Lease(store, SETTINGS, "node", heartbeat=beat, on_lost=pytest.fail, on_held=held.append)
    lease.start()
    # Not by asking Redis, which may be busy for longer than it may be here.
    wait_until(lambda: held and lease.lease_validity._until < time.monotonic())
    server.pause()
    wait_until(lambda: lease.lease_validity._until > time.monotonic())
    before = len(held)
    server.resume()
    wait_until(lambda: len(held) > before)
    # From the last heartbeat that did not come through, however long ago that is.
    came_through = held[before] - SETTINGS.lease_ttl
    last = max(at for at in tried if at < came_through)
    assert lease.lease_validity._until >= last + SETTINGS.lease_ttl
    lease.leave(TIMEOUT)


@pytest.mark.parametrize("heard", [True, False])
def test_who_was_not_heard_since_a_failover_is_no_death(heard, store, redis_db):
    judged = []
    rescuer = Rescuer(Claims(store), SETTINGS, lambda *args: judged.append(args[2]) or ())
    rescuer.lease_validity.meet()
    dead(redis_db.client, server=rescuer.lease_validity.server if heard else "the old master")
    assert look(rescuer, redis_db.client) == 1
    assert [len(running) for running in judged] == [1 if heard else 0]


def test_a_broker_that_redelivers_waits_for_a_new_master_too(store, redis_db):
    """RabbitMQ, with a store in Redis: who lives has no lease there yet."""
    client = redis_db.client

    def look(alone):
        # A death that was noted is older than a lease lives.
        settings = Settings(poison_window=1000.0, lease_ttl=-1.0, poison_limit=1)
        (found,) = redelivered.look(store, settings, "me", Asked("t", alone=alone))
        return [found.verdict, found.deaths]

    client.set("graceful:started:t", "other|delivery")
    client.hset("graceful:epoch", "trust", int((time.time() + 60) * 1000))
    assert look(True) == ["runs", 0]
    assert [look(False), look(False)] == [["wait", 0]] * 2
    client.hset("graceful:epoch", "trust", "0")
    assert look(True) == ["poisoned", 1]


@pytest.mark.usefixtures("patient")
def test_a_server_that_does_not_say_who_it_is(start_server):
    """Without INFO: after a lost connection it may be another one."""
    server = start_server(RedisServer)
    with server.client() as client:
        client.acl_setuser(
            "shop", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-info"]
        )
        url = server.url().replace("://", "://shop:pw@")
        one, began = LeaseValidity(store_of(url), 1.0), time.monotonic()
        one.meet()
        assert began + 2 <= one._until <= time.monotonic() + 2, "a lease's time, and a second"
        assert LeaseValidity(store_of(url), 1.0, by_hand=True).seconds() == 0
        wait_until(lambda: not one.seconds())
        client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: _reconnected(one.store))
        began = time.monotonic()
        one.meet()
        assert began + FOLLOW + 1 <= one._until <= time.monotonic() + FOLLOW + 1


def _reconnected(store):
    store.execute("PING", [], insist=True)
    return store.reconnections


def test_two_begin_an_epoch_at_once(store, redis_db):
    held = []
    options = {"heartbeat": dict, "on_lost": pytest.fail, "on_held": held.append}
    leases = [Lease(store, SETTINGS, f"node{n}", **options) for n in range(5)]
    for lease in leases:
        lease.start()
    wait_until(lambda: all(lease.identity.epoch for lease in leases))
    first = {lease.identity.epoch for lease in leases}
    assert first == {redis_db.client.hget("graceful:epoch", "id")}
    redis_db.client.flushdb()
    wait_until(lambda: not first & {lease.identity.epoch for lease in leases})
    assert len({lease.identity.epoch for lease in leases}) == 1
    for lease in leases:
        lease.leave(TIMEOUT)


def restorer(store, claims, worker):
    """Registers a worker again, with what it holds."""
    lost = []
    lease = Lease(
        store,
        SETTINGS,
        "node",
        heartbeat=dict,
        on_lost=lost.append,
        on_held=lambda until: None,
        restoring=claims.restoring,
    )
    lease.identity = Claimant(worker)
    return lease


def test_what_is_held_is_claimed_again(store, redis_db):
    """In a new epoch; also what arrived while that began, and nothing that has ended meanwhile."""
    client, claims = redis_db.client, Claims(store)
    lease = restorer(store, claims, "me")
    assert lease._renew()
    epoch = lease.identity.epoch
    tags = hold(claims, "me", 3, epoch)
    client.flushdb()
    assert lease._renew()
    assert sorted(client.hkeys("graceful:claims:me")) == ["1", "2", "3"]
    assert lease.identity.epoch == client.hget("graceful:epoch", "id") != epoch
    hold(claims, "me", 4, epoch)  # the fourth was on its way
    assert lease._renew()
    assert sorted(client.hkeys("graceful:claims:me")) == ["1", "2", "3", "4"]
    assert lease._renew()
    claims.ack(tags[0])
    assert claims.give_back([tags[1]]) == 1
    wait_until(lambda: sorted(client.hkeys("graceful:claims:me")) == ["3", "4"])
    assert ids(client) == ["id-2"]
    # The other way round: it is acknowledged while it is written again.
    with claims.restoring("me", "another") as entries:
        assert [number for number, _ in entries] == [3, 4]
        claims.ack(tags[2])
        wait_until(lambda: str(tags[2]) not in claims.held)
        client.hset("graceful:claims:me", mapping=dict(entries))
    wait_until(lambda: client.hkeys("graceful:claims:me") == ["4"])
    claims.end(TIMEOUT)


def test_who_is_taken_for_dead_while_it_restores_knows(store, redis_db):
    """It slept between two steps: others have what it would write again."""
    client, claims = redis_db.client, Claims(store)
    lease = restorer(store, claims, "me")
    assert lease._renew()
    epoch = lease.identity.epoch
    client.flushdb()
    assert lease._renew()
    hold(claims, "me", 1, epoch)
    client.srem("graceful:workers", "me")
    client.set("graceful:tombstone:me", "")
    assert not lease._renew()
    assert not client.exists("graceful:claims:me")


def test_what_is_given_back_in_a_new_epoch(store, redis_db):
    """From memory, in its order, and once; but not in the place of those who have it."""
    client = redis_db.client
    client.hset("graceful:epoch", "id", "old")
    claims = Claims(store)
    tags = hold(claims, "me", 3, "old")
    assert claims.give_back(tags) == 0, "somebody has given them back, in the same epoch"
    tags = hold(claims, "me", 3, "old")
    client.hset("graceful:epoch", "id", "new")
    client.set("graceful:tombstone:me", "")
    assert claims.give_back(tags) == 0, "others have rescued them"
    client.delete("graceful:tombstone:me")
    for _ in range(2):  # as after an answer that was lost
        hold(claims, "me", 3, "old")
        claims.give_back(tags)
    assert ids(client) == ["id-1", "id-2", "id-3"]
    client.delete("graceful:epoch", "q")
    assert claims.give_back(hold(claims, "another", 2, "old"), tail=True) == 2
    assert ids(client) == ["id-1", "id-2"]


@pytest.mark.parametrize("first", ["back", "written"])
def test_what_is_given_back_while_it_is_claimed_again(first, store, redis_db):
    """In the queue once, and claimed by nobody."""
    client, claims = redis_db.client, Claims(store)
    client.hset("graceful:epoch", "id", "new")
    tags = hold(claims, "me", 3, "old")
    with claims.restoring("me", "new") as entries:
        if first == "written":
            client.hset("graceful:claims:me", mapping=dict(entries))
        assert claims.give_back(tags[:2]) == 2
        if first == "back":
            client.hset("graceful:claims:me", mapping=dict(entries))
            again = hold(claims, "me", 2, "old")
            assert claims.give_back(again) == 0, "as after an answer that was lost"
    wait_until(lambda: client.hkeys("graceful:claims:me") == ["3"])
    assert ids(client) == ["id-1", "id-2"]
    claims.end(TIMEOUT)


class Between:
    """Something happens just before a script runs, or its answer is lost."""

    def __init__(self, store, script, before=lambda: None, *, lost=False):
        self.run, self.script, self.before, self.lost, self.done = (
            store.run,
            script,
            before,
            lost,
            False,
        )
        store.run = self

    def __call__(self, name, *args, **options):
        if name != self.script or self.done:
            return self.run(name, *args, **options)
        self.done = True
        self.before()
        answer = self.run(name, *args, **options)
        if self.lost:
            raise StoreAway("no answer in time")
        return answer


@pytest.mark.parametrize("how", ["give_back", "give_all_back"])
def test_data_that_is_lost_between_two_steps(how, store, redis_db):
    """A claim was read, and is gone when it is moved."""
    client, claims = redis_db.client, Claims(store)
    lease = restorer(store, claims, "me")
    assert lease._renew()
    tags = hold(claims, "me", 3, lease.identity.epoch)
    with claims.restoring("me", "another") as entries:
        client.hset("graceful:claims:me", mapping=dict(entries))
    Between(store, "give_back", client.flushdb)
    if how == "give_back":
        assert claims.give_back(tags) == 3
    else:
        assert claims.give_all_back("me", TIMEOUT)
    assert ids(client) == ["id-1", "id-2", "id-3"]
    claims.end(TIMEOUT)


def test_an_answer_that_is_lost_in_a_new_epoch(store, redis_db):
    """Its tag says another epoch than that in which it was seen as a claim: it went back."""
    client, claims = redis_db.client, Claims(store)
    client.hset("graceful:epoch", "id", "new")
    (tag,) = hold(claims, "me", 1, "old")
    client.hset("graceful:claims:me", "1", f"q\0{dumps(text(1))}")
    Between(store, "give_back", lost=True)
    with pytest.raises(StoreAway):
        claims.give_back([tag])
    assert claims.flush(TIMEOUT)
    assert ids(client) == ["id-1"]
    claims.end(TIMEOUT)


def test_what_was_claimed_before_its_epoch_was_known(store, redis_db):
    """The answer to who registers was on its way."""
    client, claims = redis_db.client, Claims(store)
    lease = restorer(store, claims, "me")
    claims.claim_as(lease.identity)
    (tag,) = hold(claims, "me", 1, lease.identity.epoch)
    assert lease._renew()
    client.flushdb()
    assert claims.give_back([tag]) == 1
    assert ids(client) == ["id-1"]
    claims.end(TIMEOUT)


def test_who_leaves_while_it_is_registered_again(store, redis_db):
    """What was acknowledged just then is claimed no more when it has left."""
    client, claims = redis_db.client, Claims(store)
    lease = restorer(store, claims, "me")
    assert lease._renew()
    tags = hold(claims, "me", 2, lease.identity.epoch)
    client.flushdb()
    assert lease._renew()

    def leave():
        claims.ack(tags[0])
        assert claims.give_all_back("me", TIMEOUT)
        claims.end(TIMEOUT)

    client.flushdb()
    with claims.restoring("me", "another") as entries:
        leave()
        client.hset("graceful:claims:me", mapping=dict(entries))
    assert not client.exists("graceful:claims:me")
    assert ids(client) == ["id-2"]


def test_a_server_that_starts_from_an_older_snapshot(start_server):
    """In which a worker is registered, and what it has claimed since is not."""
    server = start_server(RedisServer)
    store = store_of(server.url())
    claims = Claims(store)
    lease = restorer(store, claims, "me")
    assert lease._renew()
    with server.client() as client:
        before = client.dump("graceful:epoch")
        tags = hold(claims, "me", 2, lease.identity.epoch)
        # As another process that holds what the last snapshot did.
        client.hset("graceful:epoch", "server", "another")
        assert not client.exists("graceful:claims:me")
        ours = ["graceful:workers", "graceful:lease:me", "graceful:claims:me", "graceful:fallen"]
        keys = [*ours, "graceful:tombstone:me"]
        assert store.run("still_mine", keys, ["me", 1000, "1"]), "nobody else has taken it"
        lease._server, lease.lease_validity._met = "another", 0
        assert lease._renew()
        assert client.dump("graceful:epoch") != before
        assert lease.identity.epoch == client.hget("graceful:epoch", "id") != tags[0].epoch
        assert sorted(client.hkeys("graceful:claims:me")) == ["1", "2"]
        assert claims.give_back(tags) == 2
        assert ids(client) == ["id-1", "id-2"]
    claims.end(TIMEOUT)


def test_what_arrives_is_claimed_again(store, redis_db):
    """Of several messages, those that no request answers for yet."""
    client, claims = redis_db.client, Claims(store)
    lease = restorer(store, claims, "me")
    assert lease._renew()
    tag = claims.tag("me", 7, "q", lease.identity.epoch)
    claims.arriving[tag] = Fetched("q", dumps(text(7)), tag)
    client.flushdb()
    assert lease._renew()
    assert client.hgetall("graceful:claims:me") == {"7": f"q\0{dumps(text(7))}"}
    claims.end(TIMEOUT)


@pytest.mark.parametrize(("lost", "count"), [("", 3), ("before", 0), ("meanwhile", 1)])
def test_an_answer_that_comes_when_its_identity_is_lost(lost, count, redis_db):
    """What it has claimed is others' by now; also what comes behind one that runs meanwhile."""
    app = Celery("late", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    redis_db.client.sadd("graceful:workers", "me")
    redis_db.client.lpush("q", *(dumps(text(number)) for number in range(3)))
    book, delivered = Claims(broker_store(app)), []
    book.claim_as(Claimant("me"))

    def consume(message):
        delivered.append(message)
        if lost == "meanwhile":
            book.claim_as(Claimant("me, again"))

    with app.connection() as connection, connection.channel() as channel:
        channel.claim_for(book)
        channel.basic_consume("q", True, consume, "tag")
        channel._no_ack_tags = frozenset()
        channel.client.connection = channel.client.connection_pool.get_connection("_")  # as kombu
        channel._brpop_start()
        if lost == "before":
            book.claim_as(Claimant("me, again"))
        assert channel._brpop_read()
    assert redis_db.client.hlen("graceful:claims:me") == 3
    assert len(delivered) == count
    assert not book.arriving
    assert book.undelivered.next() is None


def test_a_queue_that_is_no_list_is_named(redis_db, caplog):
    """It ends the worker, as a plain one: what nobody can read is not passed over in silence."""
    app = Celery("wrong", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    redis_db.client.sadd("graceful:workers", "me")
    book = Claims(broker_store(app))
    book.claim_as(Claimant("me"))
    with app.connection() as connection, connection.channel() as channel:
        channel.claim_for(book)
        for queue in ("q", "r"):
            channel.basic_consume(queue, False, print, queue)
        channel.client.connection = channel.client.connection_pool.get_connection("_")  # as kombu
        redis_db.client.set("r", "is no list")
        channel._brpop_start()
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            channel._brpop_read()
    wait_until(lambda: "The key 'r' of a queue is a string in Redis" in caplog.text)
    assert "'q'" not in caplog.text


def test_a_claim_that_comes_late(store, redis_db):
    """It was on its way over a connection that was lost, and nobody heard its answer."""
    client, claims = redis_db.client, Claims(store)
    claims.claim_as(Claimant("me"))
    claims.who.take_numbers(2)
    claims.let_go()
    assert claims.flush(TIMEOUT)
    client.hset("graceful:claims:me", "1", f"q\0{dumps(text(1))}")
    claims.look_for_late_ones()
    wait_until(lambda: ids(client) == ["id-1"])
    claims.end(TIMEOUT)


@pytest.mark.usefixtures("patient")
def test_what_could_not_be_given_back_while_redis_lost_its_data(start_server):
    server = start_server(RedisServer)
    claims = Claims(store_of(server.url()))
    with server.client() as client:
        client.hset("graceful:epoch", "id", secrets.token_hex(4))
        tags = hold(claims, "me", 2, client.hget("graceful:epoch", "id"))
        server.kill()
        with pytest.raises(Exception, match="onnect"):
            claims.give_back(tags)
        server.start()
        wait_until(partial(client.llen, "q"))
        assert ids(client) == ["id-1", "id-2"]
    claims.end(TIMEOUT)


def test_acknowledgements_that_a_replica_had_not_heard_of(store, redis_db):
    """Their claims are back after a failover: they are deleted again, and not given back."""
    client = redis_db.client
    claims = Claims(store)
    tags = hold(claims, "me", 3, "epoch")
    before = {str(tag.number): f"q\0{dumps(text(tag.number))}" for tag in tags}
    client.hset("graceful:claims:me", mapping=before)
    claims.ack(tags[0])
    assert claims.flush(TIMEOUT)
    client.hset("graceful:claims:me", mapping=before)
    del claims.held[tags[1]]
    claims.give_back_others("me", 100)
    wait_until(lambda: client.hkeys("graceful:claims:me") == ["3"])
    assert ids(client) == ["id-2"]
    claims.end(TIMEOUT)
