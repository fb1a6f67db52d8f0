"""What the doctor finds on servers: each finding by an app that has it, and by one that has not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery

import celery_graceful
from celery_graceful import Batch, GracefulTask, operations
from celery_graceful.doctor.servers import RedisServer as Examined
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.operations import asking
from celery_graceful.operations.asking import ask
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RedisServer, SentinelServers
from tests.support.distance import far_away
from tests.support.doctor import Alone, add_task, found, graceful_app, look, run
from tests.support.workers import TIMEOUT, wait_until


def app_on(db: RedisDB, **conf: Any) -> Celery:
    return graceful_app(db.url, db.backend_url, **conf)


def app_with(db: RedisDB, conf: dict[str, Any] | None = None, **options: Any) -> Celery:
    return add_task(app_on(db, **(conf or {})), base=GracefulTask, **options)


def values(app: Celery, code: str) -> list[Any]:
    return [one.value for one in found(app, code)]


@pytest.fixture
def configured(redis_db: RedisDB) -> Iterator[Callable[[str, str], None]]:
    """Sets directives of the server, until the test ends."""
    before = {}

    def configure(name: str, value: str) -> None:
        before.setdefault(name, redis_db.client.config_get(name)[name])
        redis_db.client.config_set(name, value)

    yield configure
    for name, value in before.items():
        redis_db.client.config_set(name, value)


@pytest.fixture
def user(redis_db: RedisDB) -> Callable[[str], RedisDB]:
    """The same databases, for a new user with these rights."""

    def make(rights: str) -> RedisDB:
        name = f"user{uuid.uuid4().hex[:8]}"
        redis_db.client.execute_command("ACL", "SETUSER", name, "on", ">secret", *rights.split())
        urls = [
            url.replace("//", f"//{name}:secret@") for url in (redis_db.url, redis_db.backend_url)
        ]
        return RedisDB(*urls, redis_db.client)

    return make


# -- stores ------------------------------------------------------------------------------------


def test_cg201_no_store(redis_db: RedisDB) -> None:
    assert values(graceful_app(), "CG201") == [None]
    assert values(graceful_app(graceful_store=redis_db.url), "CG201") == []


def test_cg202_another_store(redis_db: RedisDB) -> None:
    elsewhere = redis_db.url.replace("127.0.0.1", "localhost")
    (finding,) = found(app_on(redis_db, graceful_store=elsewhere), "CG202")
    assert finding.severity.value == "note"
    assert values(app_on(redis_db), "CG202") == []
    assert values(app_on(redis_db, graceful_store=redis_db.backend_url), "CG202") == []


def test_cg203_version(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    assert values(app_on(redis_db), "CG203") == []
    monkeypatch.setattr(Examined, "info", lambda self, section: {"redis_version": "6.0.16"})
    assert values(app_on(redis_db), "CG203") == ["6.0.16"]


def test_cg204_eviction(redis_db: RedisDB, configured: Callable[[str, str], None]) -> None:
    assert values(app_on(redis_db), "CG204") == []
    for policy, severity in (("allkeys-lru", "error"), ("volatile-ttl", "warning")):
        configured("maxmemory-policy", policy)
        (finding,) = found(app_on(redis_db), "CG204")
        assert (finding.value, finding.severity.value) == (policy, severity)


def test_cg205_persistence(
    redis_db: RedisDB, configured: Callable[[str, str], None], user: Callable[[str], RedisDB]
) -> None:
    assert values(app_on(redis_db), "CG205") == ["off"]
    _, unchecked = look(app_on(user("~* &* +@all -config")), "CG205")
    assert list(unchecked.values()) == ["CONFIG GET is not allowed"]
    configured("save", "3600 1")
    assert values(app_on(redis_db), "CG205") == []


def test_cg206_distance(
    redis_db: RedisDB, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with far_away(redis_server.port, 0.02) as way:
        away = RedisDB(
            redis_db.url.replace(str(redis_server.port), str(way.port)), "", redis_db.client
        )
        (finding,) = found(graceful_app(away.url), "CG206")
    assert float(finding.value.removesuffix(" ms")) >= 40
    monkeypatch.setattr(Examined, "round_trip", 0.0009)  # the machine that tests run on is busy
    assert values(app_on(redis_db), "CG206") == []


@pytest.mark.parametrize(
    "rights",
    [
        "~celery* ~graceful:* &* +@all",
        "~celery* ~_kombu* ~unacked* ~*.pidbox* ~graceful:* resetchannels +@all",
        "~* &* +@all -@scripting -set -setex -hset -time",
        "~* &* +@all -multi -exec -watch -select -psubscribe -client -info -xadd",
        "~* &* +@all -@transaction -@write",
        "~x &* +@all -eval -evalsha -brpop -publish",
        "~x +ping +select",
        "~* &* +@all -@pubsub",
        "~* &* +ping",
        "",
    ],
)
def test_cg207_rights(redis_db: RedisDB, user: Callable[[str], RedisDB], rights: str) -> None:
    """What is lacking is named all at once: with it there is nothing to find."""
    app = app_on(user(f"resetchannels {rights}"))
    (finding,) = found(app, "CG207")
    before = set(redis_db.client.scan_iter("graceful:rights:*"))
    assert not before
    redis_db.client.execute_command(*finding.mend.split())
    app = app_on(RedisDB(app.conf.broker_url, app.conf.result_backend, redis_db.client))
    assert (values(app, "CG207"), values(app, "CG208")) == ([], [])


def test_cg207_names_what_is_lacking(redis_db: RedisDB, user: Callable[[str], RedisDB]) -> None:
    of_docs = "~celery* ~_kombu* ~unacked* ~*.pidbox* ~graceful:* &*"
    assert values(app_on(user(f"{of_docs} +@all")), "CG207") == []
    few = app_on(user(f"{of_docs} +@all -hset -info -eval"), task_default_queue="other")
    (finding,) = found(few, "CG207")
    assert finding.value == "lacks +eval +hset +info ~other*"
    assert finding.mend.startswith("ACL SETUSER user")
    assert values(few, "CG208") == []  # it has been said


def test_cg212_no_writes(redis_db: RedisDB, configured: Callable[[str, str], None]) -> None:
    """It would pass for rights, and for workers that are dead or frozen."""
    app = app_on(redis_db)
    assert values(app, "CG212") == []
    assert operations.Operations(app).status().findings[0].what == "no worker is running"
    redis_db.client.lpush("celery", '{"headers": {"id": "waits", "task": "x"}, "properties": {}}')
    configured("maxmemory", "1")
    (finding,) = found(app, "CG212")
    assert "maxmemory" in finding.value
    assert finding.value.startswith("OutOfMemoryError: "), "where that is, is said before"
    assert finding.mend.startswith("raise maxmemory")
    assert values(app, "CG207") == []
    (said,) = operations.Operations(app).status().findings
    assert said.what.startswith("Redis takes no writes: ")
    assert (said.mend, said.is_command) == ("doctor", True)
    why = operations.Operations(app).why("waits")
    assert "place 1 of 1; workers could not be asked who consumes it" in why.sentences[0]
    with pytest.raises(BrokerAway, match="maxmemory"):
        ask(app, "ping", 0.1)


def test_cg213_hanging_masters(sentinels: SentinelServers, redis_db: RedisDB) -> None:
    names = ["socket_timeout", "health_check_interval"]
    things = [f"broker_transport_options[{name!r}]" for name in names] + ["redis_socket_timeout"]
    options = sentinels.options
    conf: dict[str, Any] = {
        "broker_transport_options": options,
        "result_backend_transport_options": options,
    }
    app = graceful_app(sentinels.url(0), sentinels.url(1), **conf)
    assert [one.thing for one in found(app, "CG213")] == [things[0], things[2]], "kombu's is 25 s"
    conf["broker_transport_options"] = {**options, names[1]: 60}
    app = graceful_app(sentinels.url(0), sentinels.url(1), **conf)
    assert [one.value for one in found(app, "CG213")] == [None, 60, 120.0]
    conf["broker_transport_options"] = {**options, **dict.fromkeys(names, 5)}
    app = graceful_app(sentinels.url(0), sentinels.url(1), redis_socket_timeout=5.0, **conf)
    assert found(app, "CG213") == []
    assert found(app_on(redis_db), "CG213") == []


def test_cg208_info(redis_db: RedisDB, user: Callable[[str], RedisDB]) -> None:
    assert values(app_on(user("~* &* +@all -info")), "CG208") == ["lacks +info"]
    assert values(app_on(redis_db), "CG208") == []


def test_cg209_replicas(
    redis_db: RedisDB,
    redis_server: RedisServer,
    start_server: Callable[..., Any],
    configured: Callable[[str, str], None],
) -> None:
    assert values(app_on(redis_db), "CG209") == []
    start_server(RedisServer, options={"replicaof": f"127.0.0.1 {redis_server.port}"})
    wait_until(lambda: redis_db.client.info("replication")["connected_slaves"] == 1)
    assert values(app_on(redis_db), "CG209") == [0]
    configured("min-replicas-to-write", "1")
    assert values(app_on(redis_db), "CG209") == []


def test_cg210_results(redis_db: RedisDB) -> None:
    app = app_with(redis_db, {"result_expires": 50}, time_limit=60)
    add_task(app, name="two", time_limit=70)
    (finding,) = found(app, "CG210")
    assert (finding.value, "one (60 s), two (70 s)" in finding.why) == (50, True)
    assert values(app_with(redis_db, {"result_expires": 70}, time_limit=60), "CG210") == []
    app = app_with(redis_db, {"result_expires": 0.001})
    assert values(app, "CG210") == []
    batch = Batch(app=app).apply_async([app.tasks["one"].s()])
    (finding,) = found(app, "CG210")
    assert batch.id in finding.why


def test_cg211_visibility_timeout(redis_db: RedisDB) -> None:
    off = {"graceful_reliable_fetch": False}
    assert values(app_with(redis_db, off), "CG211") == [3600]
    assert values(app_with(redis_db, off, time_limit=3600), "CG211") == []
    assert values(app_with(redis_db), "CG211") == []
    conf = {**off, "broker_transport_options": {"visibility_timeout": 10}}
    assert values(app_with(redis_db, conf, time_limit=11), "CG211") == [10]


# -- others that are there ---------------------------------------------------------------------


def test_cg606_somebody_listens(redis_db: RedisDB) -> None:
    assert values(app_on(redis_db), "CG606") == []
    app = app_on(redis_db)
    with app.connection_for_read() as connection:
        with app.events.Receiver(connection, routing_key="worker.#").consumer_context():
            assert values(app, "CG606") == [], "as workers do of each other"
        receiver = app.events.Receiver(connection)
        with receiver.consumer_context():
            wait_until(lambda: values(app, "CG606") == [False], "Redis knows that it listens")
            assert values(app_on(redis_db, worker_send_task_events=True), "CG606") == []


def test_cg607_versions(redis_db: RedisDB) -> None:
    def register(worker: str, **said: str) -> None:
        redis_db.client.sadd("graceful:workers", worker)
        redis_db.client.set(f"graceful:lease:{worker}", json.dumps(said), ex=60)

    same = {"celery_graceful": celery_graceful.__version__, "celery": celery.__version__}
    register("new@here:1", **same)
    redis_db.client.sadd("graceful:workers", "dead@here:1")
    assert found(app_on(redis_db), "CG607") == []
    register("old@here:1", celery=same["celery"])
    register("other@here:1", **{**same, "celery": "5.5.0"})
    findings = found(app_on(redis_db), "CG607")
    assert [(one.thing, one.value) for one in findings] == [
        ("celery_graceful of old@here", "unknown"),
        ("celery of other@here", "5.5.0"),
    ]


def test_cg607_workers_without_the_package(redis_db: RedisDB) -> None:
    redis_db.client.hset("unacked", mapping={"tag": "[]", "another": "[]"})
    (finding,) = found(app_on(redis_db), "CG607")
    assert (finding.thing, finding.value) == ("messages that were taken without claims", 2)
    assert found(app_on(redis_db, graceful_reliable_fetch=False), "CG607") == []


def test_rabbitmq_that_answers(
    rabbit_vhost: RabbitVhost, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing that cannot be checked there."""
    monkeypatch.setattr(asking, "BROKER_TIMEOUT", TIMEOUT)  # for however long it is busy
    app = app_with(redis_db, {"broker_url": rabbit_vhost.url, "graceful_store": redis_db.url})
    status, said = run(app, "--json")
    assert status == 0
    assert json.loads(said)["unchecked"] == []


@pytest.mark.parametrize("away", ["broker_url", "graceful_store", "result_backend"])
def test_one_of_the_servers_is_away(
    redis_db: RedisDB, configured: Callable[[str, str], None], away: str
) -> None:
    """A deploy does not go on for the others' sake, whose findings are shown."""
    configured("save", "")
    where = "amqp://127.0.0.1:1//" if away == "broker_url" else "redis://127.0.0.1:1/0"
    app = app_on(redis_db, graceful_store=redis_db.url)
    app.conf[away] = where
    status, said = run(app)
    assert status == 3
    assert "CG205 warning: persistence" in said
    assert "could not be checked: R" in said
    assert said.splitlines()[-1].endswith("; a server does not answer.")
    assert run(app, "--prestop", "25")[0] == 1, "errors come first"


# -- all in all --------------------------------------------------------------------------------


def test_nothing_is_found_in_the_app_of_the_readme(
    redis_db: RedisDB,
    configured: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.split("Save as `shop.py`")[1].split("```python\n")[1].split("```")[0]
    code = code.replace("redis://localhost/0", redis_db.url)
    code = code.replace("redis://localhost/1", redis_db.backend_url)
    monkeypatch.setattr(celery, "Celery", Alone)
    module: dict[str, Any] = {"__name__": "shop"}
    exec(code, module)
    configured("save", "3600 1")  # as Redis comes
    monkeypatch.setattr(Examined, "round_trip", 0.0005)
    status, output = run(module["app"])
    assert output.splitlines()[3:] == ["Nothing was found."], output
    assert status == 0
    docs = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    shown = docs.split("```console\n$ celery -A shop graceful doctor --prestop 15\n")[1]
    told = run(module["app"], "--prestop", "15", TERMINATION_GRACE_PERIOD_SECONDS="30")
    assert told == (1, shown.split("```")[0])
