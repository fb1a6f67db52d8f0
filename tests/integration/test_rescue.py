"""Rescue and lease against a real Redis, without workers."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
from celery import Celery
from kombu.utils.json import dumps, loads

from celery_graceful import Graceful
from celery_graceful.claims import begun as begun_module
from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.claims.lease import Lease
from celery_graceful.claims.rescue import DeadClaim, Rescuer
from celery_graceful.claims.server_checks import check_server
from celery_graceful.operations.rescue import rescue
from celery_graceful.poison.deaths import judge
from celery_graceful.poison.quarantine import count as count_kept
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import broker_store
from celery_graceful.store.scripts import script
from celery_graceful.system import native
from tests.servers import RedisServer
from tests.support.monitor import monitored
from tests.support.workers import TIMEOUT, wait_until

SETTINGS = Settings(lease_ttl=1.0, heartbeat_interval=0.1, rescue_interval=0.5)


def message(number, **headers):
    return dumps(
        {
            "body": "W10=",
            "headers": {"id": f"id-{number}", "task": "t", "eta": None, **headers},
            "properties": {"delivery_info": {"exchange": "", "routing_key": "q"}},
        }
    )


def store_of(url):
    app = Celery("rescue", broker=url, set_as_current=False)
    Graceful(app)
    return broker_store(app)


@pytest.fixture(autouse=True)
def no_new_server(request):
    """Of one that has just started, an expired lease says nothing."""
    if "redis_db" in request.fixturenames:
        client = request.getfixturevalue("redis_db").client
        wait_until(lambda: client.info("server")["uptime_in_seconds"] > 2)


@pytest.fixture
def store(redis_db):
    return store_of(redis_db.url)


def claim(client, worker, messages, queue="q"):
    """What a worker that died leaves behind."""
    client.sadd("graceful:workers", worker)
    client.set(f"graceful:worker:{worker}", "{}")
    entries = {str(n): f"{queue}\0{text}" for n, text in enumerate(messages, 1)}
    client.hset(f"graceful:claims:{worker}", mapping=entries)


def held(worker, count):
    """What a worker that lives holds of it: tags, and messages."""
    return {f"{worker}/{number}": object() for number in range(1, count + 1)}


def rescuer(store, judge=lambda worker, about, running: set(), settings=SETTINGS):
    return Rescuer(Claims(store), settings, judge)


def test_ten_thousand_claims_go_back_in_order(store, redis_db):
    count = 10_000
    claim(redis_db.client, "dead", [message(n) for n in range(count)])
    redis_db.client.lpush("q", "waiting")
    began = time.monotonic()
    assert rescuer(store).look() == count
    assert time.monotonic() - began < 30
    got = [redis_db.client.rpop("q") for _ in range(count)]
    first = loads(got[0])
    assert first["headers"]["redelivered"]
    assert first["properties"]["delivery_info"]["redelivered"]
    assert [loads(text)["headers"]["id"] for text in got] == [f"id-{n}" for n in range(count)]
    assert redis_db.client.rpop("q") == "waiting"
    left = {"graceful:bell:q", "graceful:epoch", "graceful:rescuer", "graceful:tombstone:dead"}
    assert set(redis_db.client.keys("graceful:*")) - {"graceful:history"} <= left


def test_what_is_no_message_goes_back_as_it_is(store, redis_db):
    claim(redis_db.client, "dead", ["garbage", '{"properties": []}'])
    assert rescuer(store).look() == 2
    assert redis_db.client.lrange("q", 0, -1)[::-1] == ["garbage", '{"properties": []}']


def test_priorities_and_a_key_prefix_are_kept(redis_db):
    app = Celery("rescue", broker=redis_db.url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "shop:"}
    store = broker_store(app)
    client = redis_db.client
    client.sadd("shop:graceful:workers", "dead")
    low = "shop:q\x06\x169"
    client.hset("shop:graceful:claims:dead", mapping={"1": f"{low}\0{message(1)}"})
    assert rescuer(store).look() == 1
    assert client.llen(low) == 1
    assert client.llen("shop:graceful:bell:q") == 1


def test_a_lease_that_lives_is_left_alone(store, redis_db):
    claim(redis_db.client, "alive", [message(1)])
    redis_db.client.set("graceful:lease:alive", "{}")
    assert rescuer(store).look() == 0
    assert redis_db.client.sismember("graceful:workers", "alive")
    assert redis_db.client.llen("q") == 0


def test_one_at_a_time(store, redis_db):
    claim(redis_db.client, "dead", [message(1)])
    seldom = replace(SETTINGS, rescue_interval=60.0)
    assert [rescuer(store, settings=seldom).look() for _ in range(2)] == [1, None]


@pytest.mark.parametrize(("others", "least", "most"), [(1, 0.9, 1), (3, 1.7, 2), (49, 2.5, 3)])
def test_who_does_not_look_tries_to_less_often_in_a_large_fleet(
    redis_db, monkeypatch, others, least, most
):
    """But in time for the leases of those that die together with who looks."""
    settings = Settings()
    redis_db.client.sadd("graceful:workers", *(f"w{number}" for number in range(others + 1)))
    for number in range(others + 1):
        redis_db.client.set(f"graceful:lease:w{number}", "{}")
    one, two = (Rescuer(Claims(store_of(redis_db.url)), settings, set) for _ in range(2))
    waits = []

    def wait(seconds):
        waits.append(seconds)
        one._ended = two._ended = True

    for each in (one, two):  # one turn of each
        monkeypatch.setattr(each._bell, "wait", wait)
        each._ended = False
        each._run()
        redis_db.client.set("graceful:rescuer", "one")  # for however long
    assert waits[0] == pytest.approx(1.8), "who looked comes back"
    assert least <= waits[1] / settings.rescue_interval <= most
    locked = 0.88 * settings.rescue_interval
    assert locked + waits[1] <= settings.lease_ttl - settings.heartbeat_interval


def test_who_looks_again_asks_no_more_than_whether_all_live(store, redis_db, monkeypatch):
    """Until somebody does not, or one that it does not know yet can be dead."""
    client = redis_db.client
    for worker in ("one", "two"):
        client.sadd("graceful:workers", worker)
        client.set(f"graceful:lease:{worker}", "{}")
    asked, execute = [], store.execute

    def counted(command, *args, **options):
        asked.append(command)
        return execute(command, *args, **options)

    monkeypatch.setattr(store, "execute", counted)
    looks = rescuer(store, settings=replace(SETTINGS, rescue_interval=0.01))
    for _ in range(3):
        wait_until(lambda: looks.look() == 0, "it has looked")
        looks._known_until = time.monotonic() + TIMEOUT  # not half a second
    assert asked.count("SMEMBERS") == 2, "the workers, and the fallen"
    assert asked.count("MGET") == 3
    claim(client, "two", [message(1)])
    client.delete("graceful:lease:two")
    wait_until(lambda: looks.look() == 1, "rescued")
    claim(client, "late", [message(2)])
    looks._known_until = 0.0  # half a lease has passed
    wait_until(lambda: looks.look() == 1, "rescued")


def test_another_goes_on_where_a_rescuer_died(store, redis_db):
    client = redis_db.client
    claim(client, "dead", [message(n) for n in range(5)])
    Claims(store).give_back([Tag("dead", 4), Tag("dead", 5)])
    client.srem("graceful:workers", "dead")
    client.sadd("graceful:fallen", "dead")
    assert rescuer(store).look() == 3
    ids = [loads(client.rpop("q"))["headers"]["id"] for _ in range(5)]
    assert ids == [f"id-{n}" for n in range(5)]


def test_what_has_ended_does_not_go_back_with_the_rest(store, redis_db):
    """Its acknowledgement waits for the loop of a worker whose loop has ended."""
    claim(redis_db.client, "who", [message(n) for n in range(4)])
    claims = Claims(store)
    claims.held.update(held("who", 4))
    claims.ended = {"who/1", "who/3"}
    claims.give_all_back("who", TIMEOUT)
    claims.end(TIMEOUT)
    back = [loads(text)["headers"]["id"] for text in redis_db.client.lrange("q", 0, -1)]
    assert sorted(back) == ["id-1", "id-3"]
    assert not redis_db.client.exists("graceful:claims:who")
    assert not claims.ended


def test_what_ends_while_others_are_acknowledged_does_not_go_back(store, redis_db, monkeypatch):
    """What is acknowledged before the rest goes back is sent before it, whatever is under way."""
    claim(redis_db.client, "who", [message(n) for n in range(4)])
    claims, execute, said = Claims(store), store.execute, []

    def and_meanwhile(command, *args, **kwargs):
        if command == "HDEL" and not said:
            said.append(command)
            claims.held.update(held("who", 4))
            claims.ended = {"who/3"}
            claims.give_all_back("who", 0)
        return execute(command, *args, **kwargs)

    monkeypatch.setattr(store, "execute", and_meanwhile)
    claims.ack(Tag("who", 1))
    wait_until(lambda: said, "the first acknowledgement")
    assert claims.flush(TIMEOUT)
    claims.end(TIMEOUT)
    back = [loads(text)["headers"]["id"] for text in redis_db.client.lrange("q", 0, -1)]
    assert sorted(back) == ["id-1", "id-3"]


def test_what_ends_while_others_go_back_does_not(store, redis_db, monkeypatch):
    """A connection is lost, what runs ends, and a stop follows at once."""
    claim(redis_db.client, "who", [message(n) for n in range(4)])
    claims, execute, said = Claims(store), store.execute, []
    claims.held.update(held("who", 4))

    def and_meanwhile(command, *args, **kwargs):
        answer = execute(command, *args, **kwargs)
        if command == "HKEYS" and not said:
            said.append(command)
            claims.ended = {"who/1", "who/3"}
            claims.give_all_back("who", 0)
        return answer

    monkeypatch.setattr(store, "execute", and_meanwhile)
    claims.give_back_others("who", 5)
    assert claims.flush(TIMEOUT)
    claims.end(TIMEOUT)
    assert said
    back = [loads(text)["headers"]["id"] for text in redis_db.client.lrange("q", 0, -1)]
    assert sorted(back) == ["id-1", "id-3"]


def test_what_ends_with_its_acknowledgement_does_not_go_back(store, redis_db, monkeypatch):
    """Ends are gathered for longer than other acknowledgements, but not when the rest goes back."""
    monkeypatch.setattr(native, "start_thread", lambda *args: None)  # it is the test that sends
    claim(redis_db.client, "who", [message(n) for n in range(4)])
    written = []

    def write_ends(store, ends):
        for end, (worker, number) in ends:
            written.append(end)
            redis_db.client.hdel(f"graceful:claims:{worker}", number)

    claims = Claims(store, write_ends=write_ends)
    claims.end_with(Tag("who", 3), "its end")
    claims.ack(Tag("who", 3))
    claims.give_back_others("who", 1000)
    claims._send(False)
    assert written == ["its end"]
    back = [loads(text)["headers"]["id"] for text in redis_db.client.lrange("q", 0, -1)]
    assert sorted(back) == ["id-0", "id-1", "id-3"]


def test_what_had_begun_is_judged_and_what_waited_is_not(store, redis_db):
    """Whatever the order, and whatever is noted of claims that are gone."""
    claim(redis_db.client, "dead", [message(n) for n in range(4)])
    claim(redis_db.client, "had begun with none", [message(n) for n in range(4, 6)])
    begun = Claims(store).running
    for number in (2, 4, 5):
        begun.add(f"dead/{number}")
    begun.send(at_once=True)
    judged = {}

    def judge(worker, about, running):
        assert all(isinstance(claim, DeadClaim) for claim in running)
        judged[worker] = [claim.number for claim in running]
        return set()

    assert rescuer(store, judge).look() == 6
    assert judged == {"dead": ["2", "4"], "had begun with none": []}
    assert not redis_db.client.keys("graceful:begun:*")


@pytest.mark.parametrize("limit", [2, 1], ids=["go back", "go to quarantine"])
def test_how_many_ran_makes_no_rescue_longer(redis_db, limit):
    """Redis may be far away: until all deaths are counted, and told, no message goes back."""
    app = Celery("rescue", broker=redis_db.url, set_as_current=False)
    app.conf.graceful_poison_limit = limit
    Graceful(app)
    store, client, told = broker_store(app), redis_db.client, []
    counted = partial(judge, app, store, tell=lambda: told.append(True))
    one = rescuer(store, counted, replace(SETTINGS, rescue_interval=0.01))

    def asked(worker, count):
        claim(client, worker, [message(f"{worker}-{n}") for n in range(count)])
        client.sadd(f"graceful:begun:{worker}", *range(1, count + 1))
        wait_until(lambda: not client.exists("graceful:rescuer"))
        with monitored(client) as commands:
            moved = one._rescue_all()
        assert moved == (count if limit > 1 else 0)
        entries = [client.lrange(f"graceful:history:id-{worker}-{n}", 0, -1) for n in range(count)]
        became = "rescued" if limit > 1 else "quarantined"
        kinds = [[loads(entry)["kind"] for entry in some] for some in entries]
        assert kinds == [["died", became]] * count
        assert not client.exists(f"graceful:claims:{worker}", f"graceful:worker:{worker}")
        return [command.split()[:2] for command in commands]

    asked("first", 1)  # Redis learns the scripts
    assert len(asked("few", 1)) == len(asked("many", 200)) < 20
    assert client.llen("q") == (202 if limit > 1 else 0)
    assert count_kept(store) == (0 if limit > 1 else 202)
    assert len(told) == (0 if limit > 1 else 3)


def test_by_hand_what_is_poison_is_told_when_the_rest_is_back(redis_db):
    """It takes as long as result backends, and whoever else is told, do."""
    app = Celery("rescue", broker=redis_db.url, set_as_current=False)
    app.conf.update(graceful_poison_limit=1, graceful_lease_ttl=1.0, graceful_rescue_interval=0.5)
    Graceful(app)
    claim(redis_db.client, "dead", [message(1), message(2)])
    redis_db.client.sadd("graceful:begun:dead", "1")
    with monitored(redis_db.client) as commands:
        (done,) = rescue(app, dry_run=False)
    assert done.moved == 1
    asked = [
        name for each in commands for name in ("give_back", "untold") if script(name).sha in each
    ]
    assert asked[0] == "give_back"
    assert "untold" in asked


def test_what_has_begun_is_noted_unless_it_is_short(store, redis_db, monkeypatch):
    """In a worker's thread; what is over leaves, and who was taken for dead says nothing more."""
    client = redis_db.client
    client.sadd("graceful:workers", "who")

    def noted():
        return client.smembers("graceful:begun:who")

    claims = Claims(store)
    short, *long = [claims.tag("who", number) for number in (1, 2, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(begun_module, "SHORT", 3600.0)
        claims.running.add(short)
        claims.ack(short)
    for tag in long:
        claims.running.add(tag)
    wait_until(lambda: noted() == {"2", "3"})
    claims.running.put_down(long[0])
    claims.running.add(claims.tag("who", 4))
    wait_until(lambda: noted() == {"3", "4"})
    client.delete("graceful:begun:who")
    with claims.restoring("who", "an epoch"):
        pass
    wait_until(lambda: noted() == {"3", "4"}, "noted again, where Redis has lost its data")
    client.srem("graceful:workers", "who")
    client.delete("graceful:begun:who")
    claims.running.add("who/5")
    claims.running.send(at_once=True)
    assert not noted()
    claims.end(TIMEOUT)


def test_who_leaves_in_good_order_has_not_died(store, redis_db):
    held = []
    options = {"heartbeat": dict, "on_lost": list, "on_held": held.append}
    lease = Lease(store, SETTINGS, "node", **options)
    lease.start()
    wait_until(lambda: held)
    worker, client = lease.identity.worker, redis_db.client
    client.hset(f"graceful:claims:{worker}", "1", f"q\0{message(1)}")
    client.sadd(f"graceful:begun:{worker}", "1")
    lease.leave(TIMEOUT)
    judged = []
    assert (
        rescuer(store, lambda worker, about, running: judged.extend(running) or set()).look() == 1
    )
    assert not judged


def test_who_has_fallen_claims_nothing_and_knows(store, redis_db):
    lost, held = [], []
    options = {"heartbeat": dict, "on_lost": lost.append, "on_held": held.append}
    lease = Lease(store, SETTINGS, "node", **options)
    lease.start()
    wait_until(lambda: held and lease.held)
    first = lease.identity.worker
    assert redis_db.client.sismember("graceful:workers", first)
    wait_until(lambda: 0 < redis_db.client.pttl(f"graceful:lease:{first}") <= 1000)
    # An expired lease alone costs nothing.
    redis_db.client.delete(f"graceful:lease:{first}")
    wait_until(lambda: redis_db.client.exists(f"graceful:lease:{first}"))
    assert not lost
    # Nor does a name alone: who was taken for dead has a tombstone.
    redis_db.client.srem("graceful:workers", first)
    redis_db.client.delete(f"graceful:lease:{first}")
    wait_until(lambda: redis_db.client.sismember("graceful:workers", first))
    assert not lost
    redis_db.client.set(f"graceful:tombstone:{first}", "")
    redis_db.client.srem("graceful:workers", first)
    redis_db.client.delete(f"graceful:lease:{first}")
    wait_until(lambda: lost)
    assert [who.worker for who in lost] == [first]
    second = lease.identity.worker
    assert second != first
    wait_until(lambda: redis_db.client.sismember("graceful:workers", second))
    lease.leave(TIMEOUT)
    # What is known of the first one is left to who rescues it.
    left = {"graceful:epoch", f"graceful:tombstone:{first}", f"graceful:worker:{first}"}
    assert set(redis_db.client.keys("graceful:*")) == left


def test_where_the_broker_rescues_the_next_worker_clears_away(store, redis_db):
    """And nobody is taken for dead who was only out of reach."""
    client = redis_db.client
    client.sadd("graceful:workers", "dead", "claims")
    client.set("graceful:worker:dead", "{}")
    client.hset("graceful:claims:claims", "1", f"q\0{message(1)}")
    lost, held = [], []
    options = {"heartbeat": dict, "on_lost": lost.append, "on_held": held.append}
    lease = Lease(store, SETTINGS, "node", rescued=False, **options)
    lease.start()
    worker = lease.identity.worker
    wait_until(lambda: client.smembers("graceful:workers") == {"claims", worker})
    wait_until(lambda: not client.exists("graceful:worker:dead", "graceful:fallen"))
    client.srem("graceful:workers", worker)
    client.delete(f"graceful:lease:{worker}")
    wait_until(lambda: client.sismember("graceful:workers", worker))
    assert not lost
    lease.leave(TIMEOUT)
    assert client.smembers("graceful:workers") == {"claims"}


@pytest.mark.usefixtures("patient")
def test_a_server_that_comes_back_costs_nobody_his_claims(start_server):
    """Leases ran out while it was away: for a time to live they say nothing."""
    server = start_server(RedisServer, appendonly=True)
    with server.client() as client:
        claim(client, "alive", [message(1)])
    server.restart()
    # Its leases say nothing until it has been up for that long.
    one = rescuer(store_of(server.url()), settings=replace(SETTINGS, lease_ttl=60.0))
    assert one.look() == 0
    with server.client() as client:
        assert client.sismember("graceful:workers", "alive")
        client.hset("graceful:epoch", "trust", "0")  # as it will be then
        one.lease_validity._until = 0.0
        wait_until(lambda: one.look())
        assert client.llen("q") == 1


@pytest.mark.usefixtures("patient")
def test_a_server_that_may_drop_keys_is_named(start_server, caplog):
    server = start_server(RedisServer)
    with server.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
    check_server(store_of(server.url()))
    assert "maxmemory-policy volatile-lru" in caplog.text
