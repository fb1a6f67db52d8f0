"""Users of Redis that may not do everything: what is missing is named, and the rest works."""

from __future__ import annotations

import os
import re
import signal
import uuid
from pathlib import Path

import pytest
from celery import Celery
from kombu import Producer

from celery_graceful import Batch, Graceful
from celery_graceful.batches import whereabouts
from celery_graceful.batches.ledger import CHUNK, BatchLedger
from celery_graceful.batches.model import Callback, Due, End, Outcome
from celery_graceful.doctor.examination import Examination
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.rights import Needs, missing_rights
from celery_graceful.store.store import Store, StoreForbidden
from tests.servers import RedisServer
from tests.support.logs import own_records
from tests.support.workers import TIMEOUT, Worker

pytestmark = pytest.mark.usefixtures("patient")

#: A user as many have it, but for what is ours.
PLAIN = "on >secret &* +@all -@dangerous ~celery* ~_kombu* ~unacked* ~*.pidbox*"

#: A Redis that is busy for a second is not what is looked for.
WRONG = "Traceback|does not work(?!: TimeoutError)"

QUICK = {
    "CONF_graceful_lease_ttl": "2",
    "CONF_graceful_heartbeat_interval": "0.3",
    "CONF_graceful_rescue_interval": "0.3",
}


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture
def user(server):
    """Makes a user with these rights, and returns its URL."""

    def make(rights, db=0):
        name = f"user{uuid.uuid4().hex[:8]}"
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", name, *rights.split())
        return server.url(db).replace("//", f"//{name}:secret@")

    return make


def store_of(url):
    app = Celery(uuid.uuid4().hex, broker="memory://", set_as_current=False)
    app.conf.graceful_store = url
    store = find_store(app)
    assert isinstance(store, Store)
    return store


@pytest.mark.parametrize(
    ("rights", "lacking"),
    [
        (f"{PLAIN} ~graceful:*", ""),
        (PLAIN, "~graceful:*"),
        (f"{PLAIN} ~graceful:* -hset -time", "+hset +time"),
        (f"{PLAIN} ~graceful:* -set", "+set"),
        (f"{PLAIN} ~graceful:* -@scripting", "+eval +evalsha"),
        (f"{PLAIN} -@scripting", "+eval +evalsha ~graceful:*"),
        (f"{PLAIN} ~graceful:* -eval", "+eval"),
        ("on >secret &* +@all -unlink ~celery", "+unlink ~celery* ~graceful:*"),
        ("on >secret &* +@all -unlink ~graceful:*", "+unlink ~celery*"),
        (f"{PLAIN} ~graceful:* -multi -hset -eval -del", "+del +eval +hset"),
        (f"{PLAIN} -multi -set -lpush", "+lpush +set ~graceful:*"),
        ("on >secret &* +@all -eval -set -hset ~x", "+eval +hset +set ~celery* ~graceful:*"),
    ],
)
def test_what_a_user_lacks_is_found(server, user, rights, lacking):
    with server.client() as client:
        client.script_flush()
        found = missing_rights(
            store_of(user(rights)),
            Needs(keys={"celery": "celery*", "celery\6\x169": "celery*"}),
        )
        assert " ".join(found) == lacking
        assert not client.keys("*rights*")


def test_what_is_refused_is_not_away(user, caplog):
    store = store_of(user(f"{PLAIN} ~graceful:*"))
    for _ in range(3):
        with pytest.raises(StoreForbidden, match="'info' command"):
            store.execute("INFO", [], ["server"])
        with pytest.raises(StoreForbidden, match="one of the keys"):
            store.execute("GET", ["elsewhere"])
        assert store.execute("GET", ["graceful:x"]) is None
    said = [record.getMessage() for record in own_records(caplog)]
    assert len(said) == 2
    assert re.search(r"refuses INFO: NoPermissionError: .*\(127.0.0.1:\d+\)$", said[0])
    assert "refuses GET on elsewhere: NoPermissionError" in said[1]


def test_a_producer_that_may_only_send_sends(server, user, caplog):
    """Another app of the process, whose user may ring, rings."""
    with server.client(7) as client, Celery("web", broker=user(PLAIN, 7)) as app:
        Graceful(app)
        for number in range(3):
            app.send_task("task", [number], queue="celery")
        assert client.llen("celery") == 3
        assert not client.keys("graceful:*")
        with Celery("other", broker=server.url(7), set_as_current=False) as other:
            Graceful(other)
            other.send_task("task", [3], queue="celery")
        assert client.llen("celery") == 4
        assert client.llen("graceful:bell:celery") == 1
    (said,) = [record.getMessage() for record in own_records(caplog)]
    assert "may not ring for them: NoPermissionError" in said
    assert "+evalsha +lpush +lpop +ltrim +pexpire ~graceful:bell:*" in said


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="this kombu has no batches")
@pytest.mark.parametrize("rings", [True, False])
def test_a_producer_that_may_only_use_keys_with_its_prefix(server, user, caplog, rings):
    """Messages that are sent together are rung for; what is lacking is named with the prefix."""
    keys = "~{p}:*" if rings else "~{p}:celery* ~{p}:_kombu*"
    url = user(f"on >secret &* +@all -@dangerous {keys}", 7)
    with server.client(7) as client, Celery("web", broker=url, set_as_current=False) as app:
        client.flushdb()
        client.acl_log_reset()
        app.conf.broker_transport_options = {"global_keyprefix": "{p}:"}
        Graceful(app)
        with app.amqp.producer_pool.acquire(block=True) as producer, producer.batch():
            for number in range(3):
                app.send_task("task", [number], queue="celery", producer=producer)
        assert client.llen("{p}:celery") == 3
        assert client.llen("{p}:graceful:bell:celery") == rings
        refused = [one["object"] for one in client.acl_log() if one["username"] in url]
    said = [record.getMessage() for record in own_records(caplog)]
    assert bool(refused) == (not rings)
    assert ["~{p}:graceful:bell:*" in line for line in said] == [True] * (not rings)


def users_of_the_docs():
    text = Path(__file__).parents[2].joinpath("docs/reliable-fetch.md").read_text()
    return {line.split()[2]: line.split()[3:] for line in re.findall("^ACL SETUSER .*", text, re.M)}


def producers_rights():
    text = Path(__file__).parents[2].joinpath("docs/reliable-fetch.md").read_text()
    return re.search("makes batches, .* needs `(.*?)` beside what `web` has", text)[1]


def test_a_producer_that_makes_batches(server, user):
    rights = " ".join([*users_of_the_docs()["web"], producers_rights()])
    ledger = BatchLedger(store_of(user(rights, 8)))
    options = {"ttl": 1000, "linger": 30, "callbacks": {"on_complete": Callback("id", {})}}
    ledger.create("b", **options)
    ledger.create("kid", parent="b", **options)
    ledger.begin_sending("b")
    ledger.add("b", [("x", b"message")])
    assert ledger.sent("b") == []
    assert list(ledger.kids("b")) == ["kid"]
    assert ledger.cancel("b") == [("kid", "on_complete")]
    assert ledger.messages("b", ["x"])
    ends = [End("b", "x", Outcome.SUCCEEDED), End("b", "kid", Outcome.FAILED)]
    assert ledger.end(ends) == [("b", "on_complete")]
    assert ledger.published(Due("b", "on_complete"))
    assert ledger.may_run("b", "on_complete", "copy")
    ledger.callback_ended("b", "on_complete")
    assert ledger.status("b").finished
    ledger.drop("b")
    assert ledger.stood_still(-1) == ["kid"]
    ledger.complete("kid")


#: What only who goes on with a batch needs.
TO_LOOK = "graceful:(workers|fallen|lease|worker|aboard|claims|waiting)|unacked"


@pytest.mark.parametrize("way", ["key", "resume"])
@pytest.mark.parametrize("lacks", [False, True])
def test_a_producer_that_goes_on_with_a_batch(server, user, caplog, monkeypatch, way, lacks):
    """What is in a queue is not sent again; where that may not be looked up it is said, once."""
    monkeypatch.setattr(whereabouts, "_refused", set())
    rights = [*users_of_the_docs()["web"], *producers_rights().split()]
    if lacks:
        rights = [one for one in rights if not re.match(f"~({TO_LOOK})", one)]
    url = user(" ".join(rights), 9)
    with server.client(9) as client, Celery("web", broker=url, set_as_current=False) as app:
        client.flushdb()
        for key in ("graceful:workers", "graceful:fallen", "graceful:aboard:w:1"):
            client.sadd(key, "w:1")
        client.set("graceful:lease:w:1", "{}")
        for key in ("graceful:claims:w:1", "unacked", "graceful:waiting:messages"):
            client.hset(key, "1", "{}")
        client.lpush("elsewhere", "of another app")
        client.acl_log_reset()
        Graceful(app)

        def members(stop):
            for number in range(CHUNK + 9):
                if number == stop:
                    raise RuntimeError
                yield app.signature("task", [number])

        for turn in (1, 2):
            batch = Batch(key=f"k{turn}", app=app)
            with pytest.raises(RuntimeError):
                batch.apply_async(members(CHUNK + 5))
            assert client.llen("celery") == CHUNK
            if way == "key":
                Batch(key=f"k{turn}", app=app).apply_async(members(-1))
            else:
                Batch.load(batch.id, app=app).resume(members(-1))
            assert client.llen("celery") == CHUNK + 9 + lacks * CHUNK
            client.delete("celery")
        refused = {one["object"] for one in client.acl_log() if one["username"] in url}
    said = [one.getMessage() for one in own_records(caplog) if "Mend" in one.getMessage()]
    assert (len(said), bool(refused - {"elsewhere"})) == (lacks, lacks)
    if lacks:
        assert "sent already are sent again" in said[0]
        asked = [one for one in producers_rights().split() if re.match(f"~({TO_LOOK})", one)]
        assert asked
        assert all(one in said[0] for one in asked), "it names what the docs name"


@pytest.mark.parametrize("rights", ["as documented", "no info", "no keys of ours"])
def test_workers(rights, server, user, tmp_path):
    """What is documented is enough; without INFO the dead are rescued; without our keys, plain."""
    documented = users_of_the_docs()
    work, send = " ".join(documented["worker"]), " ".join(documented["web"])
    if rights == "no info":
        work += " -info"
    if rights == "no keys of ours":
        work = send = PLAIN
    db = {"as documented": 1, "no info": 2, "no keys of ours": 3}[rights]
    env = {"BROKER_URL": user(work, db), "RESULT_URL": user(work, db), "GRACE": "60", **QUICK}
    with (
        Celery("claims", broker=user(send, db), backend=user(send, db)) as app,
        Worker("tests.apps.claims", env=env) as first,
    ):
        Graceful(app)
        first.ready()
        result = app.send_task("hold", [str(tmp_path / "go")])
        first.wait_line(">> .* started")
        if rights == "no keys of ours":
            assert first.count("Reliable fetch is off.* user user.* lacks ~graceful:\\*. Mend: ACL")
            assert first.count("For the same reason messages for tasks that are not known") == 1
            assert not first.count("There is no Redis")
            (tmp_path / "go").touch()
        else:
            os.killpg(first.pid, signal.SIGKILL)
            with Worker("tests.apps.claims", env=env) as second:
                second.wait_line(">> .* started")
                (tmp_path / "go").touch()
                assert result.get(timeout=TIMEOUT) == result.id
                second.term()
                assert second.wait() == 0
                assert second.count("Mend: ACL SETUSER .* [+]info") == (rights == "no info")
                assert not second.count(f"{WRONG}|lacks|refuses")
            return
        assert result.get(timeout=TIMEOUT) == result.id
        first.term()
        assert first.wait() == 0
        assert not first.count(WRONG)
        said = [line.partition("] ")[2] for line in first.lines if " refuses " in line]
        assert len(said) == len(set(said))  # each part that needs our keys says so, once


def test_all_that_a_worker_does_by_the_user_of_the_docs(server, user):
    """Fetch, results, checkpoints, batches, control commands and events; the doctor is content."""
    rights = " ".join(users_of_the_docs()["worker"])
    url = user(rights, 5)
    env = {"BROKER_URL": url, "RESULT_URL": url, "GRACE": "60", **QUICK}
    with (
        Celery("resuming", broker=url, backend=url) as app,
        Worker("tests.apps.resuming", args=["-E"], env=env) as worker,
    ):
        Graceful(app)
        app.conf.graceful_grace_period = 60
        worker.ready()
        looked = Examination(app)
        assert [(one.store.user, lacking) for one, lacking in looked.lacking] == [
            (url.split("//")[1].partition(":")[0], [])
        ]
        sent = app.send_task("tests.apps.resuming.ending", ["success"])
        assert sent.get(timeout=TIMEOUT) is False
        name = "tests.apps.resuming.short"
        batch = Batch(app=app, on_complete=app.signature(name))
        batch.apply_async([app.signature(name, [number]) for number in range(3)])
        worker.wait_line(f">> .*short .*{batch.id}")
        (answer,) = app.control.inspect(timeout=TIMEOUT, limit=1).ping().values()
        assert answer == {"ok": "pong"}
        app.send_task("tests.apps.resuming.long", [0.5])
        worker.wait_line(">> .*long ended")
        worker.term()
        assert worker.wait() == 0
        assert not worker.count(f"{WRONG}|lacks|refuses|NoPermission")
    with server.client() as client:  # nothing was refused that nobody told of
        name = url.split("//")[1].partition(":")[0]
        refused = [one["object"] for one in client.acl_log() if one["username"] == name]
    assert refused == []
