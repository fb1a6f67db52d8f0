"""From a shell: tasks in quarantine are listed, shown, sent again and deleted."""

from __future__ import annotations

import json

from celery import Celery

from tests.acceptance.test_poison import start, task
from tests.support.broker import Broker, graceful_command


def celery(broker: Broker, *args: str, status: int = 0) -> str:
    urls = broker.env
    return graceful_command("tests.apps.poison", *args, env=urls, status=status)


def test_from_quarantine_and_back(broker: Broker, app: Celery) -> None:
    with start(broker, concurrency=3, CONF_graceful_poison_limit="1") as worker:
        worker.ready()
        for task_id in ("a", "b", "c"):
            task(app, "dying", "kill").apply_async(task_id=task_id)
        worker.wait_line("quarantined", 3)
        worker.term()
        assert worker.wait() == 0
    listed = celery(broker, "quarantine", "list")
    assert listed.count("tests.apps.poison.dying") == 3
    assert "died 1 times" not in listed, "speak English"
    lines = celery(broker, "quarantine", "list", "--json").splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"a", "b", "c"}
    shown = json.loads(celery(broker, "quarantine", "show", "a"))
    assert (shown["task"], shown["deaths"]) == ("tests.apps.poison.dying", 1)
    assert shown["body"][:2] == [["kill"], {}]
    assert shown["headers"]["id"] == "a"
    assert celery(broker, "quarantine", "delete", "a") == "a deleted\n"
    assert "a is not in quarantine" in celery(broker, "quarantine", "show", "a", status=1)
    assert "name tasks" in celery(broker, "quarantine", "retry", status=2)
    assert celery(broker, "quarantine", "retry", "b") == "b sent again\n"
    assert celery(broker, "quarantine", "retry", "--all") == "c sent again\n"
    assert celery(broker, "quarantine", "list") == "nothing is in quarantine\n"
    with start(broker, concurrency=2) as worker:
        worker.ready()
        worker.wait_line("quarantined", 2)
        for task_id in ("b", "c"):
            assert worker.count(f"started {task_id}") == 3
        worker.term()
        assert worker.wait() == 0
    assert broker.drain_queue(app) == []


def test_without_a_place_to_keep_it() -> None:
    nowhere = Broker("rabbitmq", "amqp://127.0.0.1:1", "", None)
    told = celery(nowhere, "quarantine", "list", status=1)
    assert "graceful_store is not set" in told
    away = Broker("redis", "redis://127.0.0.1:1", "", None)
    assert "Error: the broker" in celery(away, "quarantine", "list", status=1)
