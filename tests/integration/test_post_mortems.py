"""Post-mortems of what RabbitMQ delivers again, with a real Redis as their store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu.message import Message

from celery_graceful.poison import deaths, post_mortem
from celery_graceful.poison.post_mortem import PostMortems
from celery_graceful.poison.quarantine import count
from celery_graceful.store.app_stores import find_workers_store
from celery_graceful.store.scripts import script
from tests.conftest import RedisDB
from tests.servers import RedisServer
from tests.support.monitor import monitored
from tests.support.workers import TIMEOUT, wait_until

#: Of each kind.
MANY = 20


@pytest.fixture
def app(redis_db: RedisDB) -> Celery:
    """No broker is there, and none is asked."""
    app = Celery(broker="amqp://127.0.0.1:1", backend=redis_db.backend_url, set_as_current=False)
    app.conf.update(graceful_store=redis_db.url, graceful_poison_limit=2, task_send_events=False)
    app.task(name="known", send_events=False, shared=False)(list)
    return app


def delivered_again(task_id: str) -> Any:
    headers = {"id": task_id, "task": "known"}
    info = {"exchange": "", "routing_key": "celery", "redelivered": True}
    message = Message(
        body="[[], {}, {}]",
        headers=headers,
        properties={},
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info=info,
    )
    return SimpleNamespace(
        id=task_id,
        name="known",
        message=message,
        request_dict=headers,
        delivery_info=info,
        has_left=False,
        humaninfo=lambda: task_id,
    )


def test_all_that_come_again_together_are_looked_into_together(
    app: Celery, redis_db: RedisDB, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker has left hundreds, and the store is far away: they all wait for it."""
    client, verdicts = redis_db.client, {}
    once, twice = ([f"{kind}-{n}" for n in range(MANY)] for kind in ("once", "twice"))
    for task_id in [*once, *twice]:
        client.set(f"graceful:started:{task_id}", "dead|delivery")
    for task_id in twice:
        client.zadd(f"graceful:deaths:{task_id}", {"older|delivery": client.time()[0]})
    mortems = PostMortems(app, lambda: None, in_process=False)
    for task_id in [*once, *twice]:
        then = partial(verdicts.__setitem__, task_id)
        assert mortems.delivered_again(delivered_again(task_id), then, alone=True)

    def decided() -> bool:
        mortems.on_loop()
        return len(verdicts) == 2 * MANY

    with monitored(client) as commands:
        mortems.start()
        wait_until(decided, "all are judged")
    mortems.end(TIMEOUT)
    assert verdicts == {**dict.fromkeys(once, False), **dict.fromkeys(twice, True)}
    for name, times in {"redelivered": 1, "quarantine": 1, "history": 2}.items():
        asked = f"EVALSHA {script(name).sha}"
        assert sum(command.startswith(asked) for command in commands) == times, name
    store = find_workers_store(app)
    assert store is not None
    assert count(store) == MANY
    assert caplog.text.count("death 1 of 2 within 72 h: it goes back") == MANY
    assert caplog.text.count("death 2 of 2, goes to quarantine") == MANY


def test_one_that_cannot_be_looked_into_keeps_no_other(app: Celery, redis_db: RedisDB) -> None:
    verdicts = {}
    mortems = PostMortems(app, lambda: None, in_process=False)
    odd, known = delivered_again("odd"), delivered_again("known")
    odd.message.body = 1
    redis_db.client.hset("graceful:quarantine", "known", "{}")
    for request in (odd, known):
        then = partial(verdicts.__setitem__, request.id)
        assert mortems.delivered_again(request, then, alone=True)
    mortems.start()
    wait_until(lambda: mortems.on_loop() or len(verdicts) == 2, "both are judged")
    mortems.end(TIMEOUT)
    assert verdicts == {"odd": False, "known": True}


def test_a_case_that_raises_keeps_no_later_one(
    app: Celery, redis_db: RedisDB, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in quarantine cannot be read; others wait for the thread."""
    verdicts: dict[str, bool] = {}
    redis_db.client.hset("graceful:quarantine", "odd", "no JSON")
    redis_db.client.zadd("graceful:untold", {"odd": 0})
    mortems = PostMortems(app, lambda: None, in_process=False)
    mortems.start()
    mortems.tell_soon()
    mortems.on_loop()
    wait_until(lambda: "In a post-mortem: JSONDecodeError" in caplog.text, "it is said")
    then = partial(verdicts.__setitem__, "new")
    assert mortems.delivered_again(delivered_again("new"), then, alone=True)
    wait_until(lambda: mortems.on_loop() or verdicts, "it is judged")
    mortems.end(TIMEOUT)
    assert verdicts == {"new": False}


def refuse(server: RedisServer, client: Any) -> Callable[[], None]:
    """It can be judged, and cannot be put into quarantine; gives what changes that."""
    client.execute_command("ACL", "SETUSER", "one", "resetkeys", "~graceful:[^u]*")  # not: untold
    return lambda: client.execute_command("ACL", "SETUSER", "one", "~*")


def kill(server: RedisServer, client: Any) -> Callable[[], None]:
    server.kill()
    return server.start


@pytest.mark.parametrize(("leave", "said"), [(refuse, "refuses the script"), (kill, "Connection")])
def test_poison_is_not_run_for_a_store_that_is_away_for_a_moment(
    app: Celery,
    start_server: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    leave: Callable[[RedisServer, Any], Callable[[], None]],
    said: str,
) -> None:
    """It would kill whoever runs it."""
    user = {"user": "one on >secret +@all ~*"}
    server = start_server(RedisServer, appendonly=True, options=user)
    verdicts: dict[str, bool] = {}
    left: list[Callable[[], None]] = []
    looks: list[int] = []

    def condemn(*args: Any) -> list[bool]:
        if not left:
            left.append(leave(server, client))
        return deaths.condemn(*args)

    monkeypatch.setattr(post_mortem, "condemn", condemn)
    with server.client() as client:
        client.set("graceful:started:bad", "dead|delivery")
        client.zadd("graceful:deaths:bad", {"older|delivery": client.time()[0]})
        app.conf.graceful_store = server.url().replace("://", "://one:secret@")
        mortems = PostMortems(app, lambda: None, in_process=False)
        then = partial(verdicts.__setitem__, "bad")
        assert mortems.delivered_again(delivered_again("bad"), then, alone=True)
        look = mortems._look
        monkeypatch.setattr(
            mortems, "_look", lambda *tasks: looks.append(len(tasks)) or look(*tasks)
        )
        mortems.start()
        wait_until(lambda: len(looks) > 2, "it is looked into again")
        mortems.on_loop()
        assert said in caplog.text
        assert not verdicts
        left[0]()
        wait_until(lambda: mortems.on_loop() or verdicts, "it is judged")
        mortems.end(TIMEOUT)
        assert verdicts == {"bad": True}
        assert client.hkeys("graceful:quarantine") == ["bad"]
