"""Where the store is found, and what happens when it is away, slow or taken over."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import ExitStack
from functools import partial

import pytest
import redis
from celery import Celery
from celery.app.task import Context

from celery_graceful import SettingsError
from celery_graceful.checkpoints import unsaved
from celery_graceful.checkpoints.checkpoint import DELIVERY, key_of
from celery_graceful.checkpoints.discard import Discard
from celery_graceful.checkpoints.resume import count_given_up
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreAway, StoreRefused
from tests.servers import RedisServer
from tests.support.deliveries import bench


def app(**conf):
    made = Celery(uuid.uuid4().hex, set_as_current=False)
    made.conf.update({"broker_url": "memory://", "result_backend": None, **conf})
    return made


def kwargs_of(store):
    return store._client(1.0).connection_pool.connection_kwargs


# -- where it is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "source", "db"),
    [
        (
            {"graceful_store": "redis://h/3", "broker_url": "redis://h/1"},
            "graceful_store",
            3,
        ),
        ({"broker_url": "redis://h/1", "result_backend": "redis://h/2"}, "the broker", 1),
        ({"broker_url": "amqp://", "result_backend": "redis://h/2"}, "the result backend", 2),
    ],
)
def test_found(conf, source, db):
    store = find_store(app(**conf))
    assert store.source == source
    assert kwargs_of(store)["db"] == db
    assert kwargs_of(store)["socket_timeout"] == 1.0


def test_none():
    assert find_store(app(broker_url="amqp://", result_backend="cache+memory://")) is None


@pytest.mark.parametrize("url", ["amqp://h", "localhost", 3])
def test_graceful_store_has_to_be_redis(url):
    with pytest.raises(SettingsError, match="give the URL of a Redis"):
        find_store(app(graceful_store=url))


def test_tls_and_password():
    for conf in (
        {
            "broker_url": "rediss://user:secret@h:6380/0",
            "broker_use_ssl": {"ssl_ca_certs": "ca.pem"},
        },
        {
            "result_backend": "rediss://user:secret@h:6380/0?ssl_cert_reqs=CERT_REQUIRED",
            "redis_backend_use_ssl": {"ssl_ca_certs": "ca.pem", "ssl_cert_reqs": "required"},
        },
        {
            "graceful_store": "rediss://user:secret@h:6380/0",
            "graceful_store_options": {"ssl": {"ssl_ca_certs": "ca.pem"}},
        },
    ):
        store = find_store(app(**conf))
        kwargs = kwargs_of(store)
        assert (kwargs["username"], kwargs["password"]) == ("user", "secret")
        assert kwargs["ssl_ca_certs"] == "ca.pem"
        assert "SSL" in store._client(1.0).connection_pool.connection_class.__name__


def test_sentinel():
    options = {"master_name": "mymaster"}
    url = "sentinel://h1:26379/0;sentinel://h2:26379/0"
    for conf in (
        {"broker_url": url, "broker_transport_options": options},
        {"result_backend": url, "result_backend_transport_options": options},
        {"graceful_store": url, "graceful_store_options": options},
    ):
        pool = find_store(app(**conf))._client(1.0).connection_pool
        assert pool.service_name == "mymaster"
        pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
        assert [one.connection_kwargs["host"] for one in pools] == ["h1", "h2"]


def test_key_prefix(redis_db):
    url = redis_db.url
    for conf, prefix in (
        ({"broker_url": url, "broker_transport_options": {"global_keyprefix": "one:"}}, "one:"),
        (
            {
                "result_backend": url,
                "result_backend_transport_options": {"global_keyprefix": "two"},
            },
            "two_",
        ),
        (
            {"graceful_store": url, "graceful_store_options": {"global_keyprefix": "three"}},
            "three",
        ),
    ):
        with bench(redis_db.client) as b:
            b.app.conf.update(conf)

            def task(self):
                self.checkpoint("x")

            made = b.task(task)
            b.deliver(made, id="t")
            assert redis_db.client.keys("*checkpoint*") == [prefix + key_of(made.name, "t")]
            redis_db.client.flushdb()


# -- what is in it -------------------------------------------------------------------


@pytest.fixture
def b(redis_db):
    with bench(redis_db.client, graceful_store=redis_db.url, graceful_checkpoint_ttl=1000) as made:
        yield made


def saver(b):
    def task(self, state):
        self.checkpoint(state)

    return b.task(task)


def resumes(b):
    def task(self):
        resumed = self.resumed
        self.checkpoint(1)
        return resumed

    return b.task(task)


def test_keys_expire(b):
    made = saver(b)
    b.deliver(made, 1, id="t")
    assert 900 < b.client.ttl(key_of(made.name, "t")) <= 1000


def test_what_saves_nothing_leaves_nothing(b):
    def task(self):
        return self.state, self.resumed

    assert b.deliver(b.task(task)) == ("SUCCESS", (None, False))
    assert b.client.dbsize() == 0
    assert not any(b.board.memory[4096:])


def test_a_run_that_lost_its_claim_overwrites_nothing(b, caplog):
    def task(self, name):
        self.checkpoint(f"{name} 1")
        if name == "first":
            second.start()
            second.join()
            self.checkpoint("first 2")
            self.checkpoint("first 3")
        self.step(f"{name}", lambda: None)

    made = b.task(task)
    deliver = partial(b.deliver, made, "second", id="t", redelivered=True)
    second = threading.Thread(target=deliver)
    b.deliver(made, "first", id="t")
    assert b.saved(made, "t")["state"] == '"second 1"'
    assert "s:first" not in b.saved(made, "t")
    assert sum("delivered again while it runs here" in m for m in caplog.messages) == 1


def test_what_replaces_a_task_goes_on_from_nothing_of_it(b, caplog):
    """It has its id, and may begin before that has ended, which saves nothing from then on."""

    def task(self, saves):
        resumed = self.resumed
        self.checkpoint(saves)
        if saves == "replaced":
            later.start()
            later.join()
            self.checkpoint("replaced, too late")
        return resumed

    made = b.task(task)
    later = threading.Thread(
        target=b.deliver,
        args=(made, "by this"),
        kwargs={"id": "t", "replaced_task_nesting": 1},
    )
    assert b.deliver(made, "replaced", id="t") == ("SUCCESS", False)
    assert "only the later run saves its checkpoint" in caplog.text
    again = {"redelivered": True, "replaced_task_nesting": 1}
    assert b.saved(made, "t")["state"] == '"by this"'
    assert b.deliver(made, "once more", id="t", **again) == ("SUCCESS", True)
    assert b.deliver(made, "replaced twice", id="t", replaced_task_nesting=2) == ("SUCCESS", False)
    began = ["of the first one", 60_000_000]
    assert find_store(b.app).run("forget", [key_of(made.name, "t")], began) == 0
    assert b.saved(made, "t")["state"] == '"replaced twice"'


@pytest.mark.parametrize("how", ["replace", "add_to_chord"])
def test_who_has_lost_the_claim_sends_nothing_in_its_place(how, b, monkeypatch):
    monkeypatch.setattr("celery_graceful.task.base.holds_claim", lambda task: False)
    sent = []
    monkeypatch.setattr(f"celery.Task.{how}", lambda task, sig, *_: sent.append(sig))

    def task(self):
        getattr(self, how)(self.si())

    state, exc = b.deliver(b.task(task))
    assert (state, exc.reason, sent) == ("IGNORED", "lease_lost", [])


def test_a_save_that_is_under_way_for_long_comes_too_late(b, monkeypatch):
    """As of a process that is frozen just before it sends: it began no later for that."""
    store, calls, took = find_store(b.app), [], []
    run = store.run

    def kept(script, keys, args, **options):
        calls.append((script, keys, args))
        return run(script, keys, args, **options)

    def task(self, name):
        began = time.monotonic()
        self.checkpoint(f"{name} 1")
        if name == "second":  # runs for longer than the first had when it sent
            time.sleep(2 * took[0] + 0.05)
        else:
            self.checkpoint("first 2")
            under_way = calls[-1]
            took.append(time.monotonic() - began)
            second.start()
            second.join()
            assert run(*under_way) is None

    monkeypatch.setattr(store, "run", kept)
    made = b.task(task)
    deliver = partial(b.deliver, made, "second", id="t", redelivered=True)
    second = threading.Thread(target=deliver)
    assert b.deliver(made, "first", id="t")[0] == "SUCCESS"
    assert len(calls) > 4


def test_deleted_for_the_delivery_that_ended_it(b):
    made, forget = saver(b), Discard(b.app)
    began = time.monotonic()
    b.deliver(made, 1, id="t", **{DELIVERY: "mine"})
    forget(made.name, "t", "another's", began - 60)
    forget.flush(60)
    assert b.saved(made, "t")
    forget(made.name, "t", "mine", began)
    forget.flush(60)
    assert not b.saved(made, "t")


def test_it_stays_until_the_message_is_acknowledged(b, monkeypatch):
    """A worker that is killed in between leaves what shows the work as done."""
    monkeypatch.setattr("celery_graceful.checkpoints.discard.PATIENCE", 60.0)
    made, discard = saver(b), Discard(b.app)
    asked, may_go = threading.Event(), threading.Event()

    def is_acknowledged():
        asked.set()
        return may_go.is_set()

    b.deliver(made, 1, id="t", **{DELIVERY: "mine"})
    discard(made.name, "t", "mine", time.monotonic() - 60, is_acknowledged)
    assert asked.wait(60)
    asked.clear()
    assert asked.wait(60), "asked once"
    assert b.saved(made, "t")
    may_go.set()
    discard.flush(60)
    assert not b.saved(made, "t")


def test_many_are_deleted(b):
    made, forget = saver(b), Discard(b.app)
    for number in range(250):
        b.client.hset(key_of(made.name, str(number)), "state", "1")
        forget(made.name, str(number), "token", None)
    forget.flush(60)
    assert b.client.dbsize() == 0


# -- two messages of one id ------------------------------------------------------------


def test_a_first_delivery_deletes_its_own_alone(b):
    """Another message of that id may be running; of its own task nobody was there before it."""
    made, discard = saver(b), Discard(b.app)
    b.deliver(made, 1, id="t", **{DELIVERY: "running"})
    discard(made.name, "t", "expired", None)
    discard.flush(60)
    assert b.saved(made, "t")["fence"] == "running"
    discard(made.name, "t", "running", None)
    discard.flush(60)
    assert not b.saved(made, "t")


def test_a_first_delivery_waits_until_what_has_ended_is_deleted(b, monkeypatch):
    made, discard = resumes(b), Discard(b.app)
    looked, store = threading.Event(), find_store(b.app)
    run = store.run

    def watched(script, *args, **options):
        answer = run(script, *args, **options)
        if answer == 0:
            looked.set()
        return answer

    monkeypatch.setattr("celery_graceful.checkpoints.checkpoint.YIELD", 60.0)
    monkeypatch.setattr(store, "run", watched)
    assert b.deliver(made, id="t", **{DELIVERY: "ended"}) == ("SUCCESS", False)
    discard(made.name, "t", "ended", None, looked.is_set)
    assert b.deliver(made, id="t") == ("SUCCESS", False)
    assert looked.is_set()


@pytest.mark.parametrize("came_before", [True, False])
def test_what_stays_is_gone_on_from(came_before, b, monkeypatch):
    """By one that came before at once; by one of which nobody says so, after a while."""
    patience = 1e9 if came_before else 0.0
    monkeypatch.setattr("celery_graceful.checkpoints.checkpoint.YIELD", patience)
    made = resumes(b)
    assert b.deliver(made, id="t") == ("SUCCESS", False)
    assert b.deliver(made, id="t", redelivered=came_before) == ("SUCCESS", True)


def test_the_interruption_of_a_first_delivery_is_counted_and_no_more(b):
    """It may be of another message; or of its own, where nobody says that it came back."""

    def task(self, ends):
        if not ends:
            b.interrupt()
            self.sleep(0)
        self.checkpoint(1)

    made = b.task(task)
    b.deliver(made, True, id="t", **{DELIVERY: "ended"})
    before = b.saved(made, "t")
    assert b.deliver(made, False, id="t")[0] == "IGNORED"
    count_given_up(made, Context(id="t", **{DELIVERY: "another"}), time.monotonic())
    assert b.saved(made, "t") == {**before, "interruptions": "2"}


@pytest.mark.parametrize("left", ["nothing", "what began before"])
def test_what_another_message_has_deleted_is_saved_again_as_a_whole(b, left):
    """Else it would go on from what is new since then: a cursor without its steps."""
    calls = []

    def task(self, who):
        self.step("charge", lambda: calls.append(who))
        self.state = f"of {who}"
        for row in self.iterate(range(4), every=1):
            if row == 2 and calls == [who]:
                b.client.delete(key)
                if left != "nothing":
                    b.client.hset(key, mapping={"fence": "older", "began": 1, "s:other": "[0,1]"})
                b.interrupt()
                self.sleep(0)
        return self.state, self.interruptions

    made = b.task(task)
    key = key_of(made.name, "t")
    b.client.hset(key, mapping={"interruptions": 2, "c:elsewhere": '["sequence",1,false]'})
    assert b.deliver(made, "first", id="t", redelivered=True)[0] == "IGNORED"
    fields = b.saved(made, "t")
    assert {f for f in fields if f[1] == ":"} == {"s:charge", "c:loop", "c:elsewhere"}
    assert fields["c:loop"] == '["sequence",2,false]'
    b.new_worker()
    again = b.deliver(made, "second", id="t", redelivered=True)
    assert (again, calls) == (("SUCCESS", ("of second", 3)), ["first"])


def test_who_has_lost_the_claim_saves_nothing_again(b, caplog, monkeypatch):
    """Its task has ended by then: what it saves, nobody would delete."""
    monkeypatch.setattr("celery_graceful.checkpoints.checkpoint.holds_claim", lambda task: False)

    def task(self):
        self.checkpoint(1)
        b.client.delete(key_of(made.name, "t"))
        self.checkpoint(2)

    made = b.task(task)
    assert b.deliver(made, id="t")[0] == "SUCCESS"
    assert b.client.dbsize() == 0
    assert "delivered again while it runs here" in caplog.text


# -- away ----------------------------------------------------------------------------


@pytest.fixture
def own(start_server):
    server = start_server(RedisServer, appendonly=True)
    with bench(server.client(), graceful_store=server.url()) as made:
        yield server, made


@pytest.fixture
def killed(own, patient):
    """One that is away when it is killed, and not while it takes its time."""
    return own


def test_more_callers_than_connections_share_one(redis_db, caplog):
    """kombu's pool has ten; the threads of a worker may end their tasks all at once."""
    store = find_store(app(broker_url=redis_db.url))
    threads, answers = 40, []
    assert store._client(30.0).connection_pool.max_connections < threads
    together = threading.Barrier(threads)

    def ask():
        together.wait()
        answers.append(store.execute("BLPOP", ["nothing"], [0.1], timeout=30.0))

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert answers == [None] * threads
    assert not caplog.records
    assert store.connections <= store._client(30.0).connection_pool.max_connections


def test_what_is_asked_over_a_shared_connection(redis_db):
    """Each has its own answer, in the form and with the errors that it has always had."""
    store = find_store(app(broker_url=redis_db.url))
    client = store._client(1.0)
    with ExitStack() as stack:
        while client._turns.acquire(blocking=False):
            stack.callback(client._turns.release)
        store.execute("HSET", ["hash"], ["ключ", 7, b"\xff", 0.5])
        assert store.execute("HGETALL", ["hash"]) == {"ключ": "7", "\udcff": "0.5"}
        assert client.execute_command("CLIENT SETNAME", "shared") is True
        assert store.run("forget", ["nothing"], ["token", 0]) == 0
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.execute("LLEN", ["hash"], quiet=True)
        redis_db.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert store.execute("EXISTS", ["hash"]) == 1
    assert not store.was_away_since(0.0)
    assert store.connections == 2


def test_away_and_back(killed, caplog):
    server, b = killed

    def task(self):
        for item in self.iterate(range(100), every=1):
            self.state = item
            if item == 10:
                server.kill()
            if item == 50:
                server.start()
                b.interrupt()

    made = b.task(task)
    started = time.monotonic()
    assert b.deliver(made, id="t")[0] == "IGNORED"
    assert time.monotonic() - started < 30
    assert b.saved(made, "t")["state"] == "50"
    assert b.saved(made, "t")["c:loop"] == '["sequence",51,false]'
    assert sum("does not work" in m for m in caplog.messages) == 1
    assert sum("is back after" in m for m in caplog.messages) == 1


def test_an_answer_from_before_an_outage_does_not_end_it(killed, caplog, monkeypatch):
    """Threads ask side by side: one's answer may be read when another has seen the server go."""
    server, b = killed
    store = find_store(b.app)
    client = store._client(1.0)
    ask = client.execute_command

    def overtaken(*args):
        monkeypatch.undo()
        answer = ask(*args)
        server.kill()
        with pytest.raises(StoreAway):
            store.execute("GET", ["x"], insist=True)
        return answer

    monkeypatch.setattr(client, "execute_command", overtaken)
    assert store.execute("GET", ["x"]) is None
    assert sum("does not work" in m for m in caplog.messages) == 1
    assert not any("is back" in m for m in caplog.messages)


def test_a_failure_from_before_its_end_begins_no_other_outage(killed, caplog, monkeypatch):
    """One waits for an answer of the old master while another has found the new one."""
    server, b = killed
    store = find_store(b.app)
    client = store._client(1.0)

    def overtaken(*args):
        monkeypatch.undo()
        server.kill()
        with pytest.raises(StoreAway):
            store.execute("GET", ["x"], insist=True)
        server.start()
        assert store.execute("GET", ["x"], insist=True) is None
        raise redis.TimeoutError("of the old one")

    monkeypatch.setattr(client, "execute_command", overtaken)
    with pytest.raises(StoreAway):
        store.execute("GET", ["x"])
    assert store.execute("GET", ["x"]) is None
    assert sum("does not work" in m for m in caplog.messages) == 1
    assert sum("is back" in m for m in caplog.messages) == 1


def test_a_frozen_store_costs_one_timeout_and_not_one_an_item(own, caplog):
    server, b = own
    took = []

    def task(self):
        for item in self.iterate(range(60), every=1):
            if item == 3:
                server.pause()
                took.append(time.monotonic())
        took.append(time.monotonic())

    assert b.deliver(b.task(task))[0] == "SUCCESS"
    # One time-out of 1 s, and another for the end of the loop at most.
    assert took[1] - took[0] < 30
    assert sum("does not work" in m for m in caplog.messages) == 1
    server.resume()


def test_an_interrupt_waits_for_a_frozen_store_no_longer_than_it_may(own):
    server, b = own
    took = []

    def task(self):
        for _ in self.iterate(range(20)):
            server.pause()
            b.interrupt()
            took.append(time.monotonic())

    assert b.deliver(b.task(task))[0] == "IGNORED"
    assert time.monotonic() - took[0] < 15
    server.resume()


@pytest.mark.parametrize("saves", [True, False])
def test_what_cannot_be_saved_at_an_interrupt_is_said(saves, killed, caplog):
    server, b = killed

    def task(self):
        server.kill()
        for _ in self.iterate(range(20)) if saves else range(20):
            b.interrupt()
            if not saves:
                self.sleep(60)

    assert b.deliver(b.task(task))[0] == "IGNORED"
    assert sum("could not save before" in m for m in caplog.messages) == saves


def test_a_first_delivery_starts_without_the_store(own):
    server, b = own
    server.kill()

    def task(self):
        return list(self.iterate(range(3))), self.resumed

    assert b.deliver(b.task(task)) == ("SUCCESS", ([0, 1, 2], False))


def test_a_task_that_may_resume_does_not_start_over(own, monkeypatch):
    server, b = own
    monkeypatch.setattr("celery_graceful.checkpoints.checkpoint.LOAD_PATIENCE", 0.5)

    def task(self):
        raise AssertionError(list(self.iterate(range(3))))

    server.kill()
    state, exc = b.deliver(b.task(task), redelivered=True)
    assert (state, exc.reason) == ("IGNORED", "store_away")


def test_store_away_error(own):
    server, b = own
    server.kill()
    store = find_store(b.app)
    store._pause = 60.0  # until it is asked again
    with pytest.raises(StoreAway, match="graceful_store"):
        store.run("forget", [], [])
    with pytest.raises(StoreAway, match="a moment ago"):
        store.run("forget", [], [])


def test_no_store(caplog):
    with bench() as b:
        log = []

        def task(self):
            for item in self.iterate(range(3)):
                log.append(item)
                if len(log) == 2:
                    b.interrupt()

        unsaved._said.clear()
        assert b.run(b.task(task))[0] == "SUCCESS"
        assert log == [0, 1, 0, 1, 2]
        assert sum("There is no store for checkpoints" in m for m in caplog.messages) == 1


def test_a_thread_of_the_task_has_no_checkpoint(redis_db, caplog, monkeypatch):
    """And it is said, once."""
    monkeypatch.setattr(unsaved, "_said", set())
    with bench(redis_db) as b:

        def task(self):
            def count():
                for _ in self.iterate(range(2)):
                    self.state = "from a thread"

            for _ in range(2):
                thread = threading.Thread(target=count)
                thread.start()
                thread.join()
            return self.state

        assert b.run(b.task(task))[:2] == ("SUCCESS", None)
        assert sum("nothing is saved there" in m for m in caplog.messages) == 1
