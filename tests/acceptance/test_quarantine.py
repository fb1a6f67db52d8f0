"""From a shell: tasks in quarantine are listed, shown, sent again and deleted."""

from __future__ import annotations

import json

from celery import Celery

from celery_graceful import Graceful
from tests.acceptance.test_poison import start, task
from tests.support.broker import Broker, graceful_command
from tests.support.operators import command, document


def celery(app: Celery, *args: str, status: int = 0) -> str:
    """What a shell would show, in this process: the real command takes a second to start."""
    return command(app, "quarantine", *args, status=status)


def test_from_quarantine_and_back(broker: Broker, app: Celery) -> None:
    with start(broker, concurrency=3, CONF_graceful_poison_limit="1") as worker:
        worker.ready()
        for task_id in ("a", "b", "c"):
            task(app, "dying", "kill").apply_async(task_id=task_id)
        worker.wait_line("quarantined", 3)
        worker.term()
        assert worker.wait() == 0
    listed = graceful_command("tests.apps.poison", "quarantine", "list", env=broker.env, status=1)
    assert listed.count("tests.apps.poison.dying") == 3
    assert "died 1 times" not in listed, "speak English"
    Graceful(app)
    listed = document(app, "QuarantinedTask", "quarantine", "list", status=1)
    assert {each["id"] for each in listed} == {"a", "b", "c"}
    shown = document(app, "QuarantinedMessage", "quarantine", "show", "a")
    assert shown == json.loads(celery(app, "show", "a"))
    assert (shown["task"], shown["deaths"]) == ("tests.apps.poison.dying", 1)
    assert shown["body"][:2] == [["kill"], {}]
    assert shown["headers"]["id"] == "a"
    assert celery(app, "delete", "a", "--yes") == "a deleted\n"
    assert "a is not in quarantine" in celery(app, "show", "a", status=1)
    assert "name tasks" in celery(app, "retry", status=2)
    said = celery(app, "retry", "a", "b", status=1)
    assert said == "a is not in quarantine\nb sent again\n"
    assert celery(app, "retry", "--all") == "c sent again\n"
    assert celery(app, "list") == "nothing is in quarantine\n"
    with start(broker, concurrency=2) as worker:
        worker.ready()
        worker.wait_line("quarantined", 2)
        for task_id in ("b", "c"):
            assert worker.count(f"started {task_id}") == 3
        worker.term()
        assert worker.wait() == 0
    assert broker.drain_queue(app) == []


def test_without_a_place_to_keep_it() -> None:
    nowhere, away = (
        Celery(broker=url, set_as_current=False)
        for url in ("amqp://127.0.0.1:1", "redis://127.0.0.1:1")
    )
    for app in (nowhere, away):
        Graceful(app)
    assert "graceful_store is not set" in celery(nowhere, "list", status=3)
    assert "Error: the broker" in celery(away, "list", status=3)
