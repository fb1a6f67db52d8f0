"""What operators do, in the process of a test; and workers for them to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from celery import Celery
from click.testing import CliRunner

from celery_graceful import Graceful
from celery_graceful.cli.group import graceful
from tests.support.schema import conforms, schemas
from tests.support.workers import Worker

__all__ = ["APP", "SCHEMAS", "command", "command_or", "document", "make_app", "send", "start"]

APP = "tests.apps.resuming"
SCHEMAS = schemas("operations.md")


def _run(app: Celery, args: Sequence[str], status: int, answer: str = "") -> Any:
    obj = SimpleNamespace(app=app)
    ended = CliRunner().invoke(graceful, args, answer, obj=obj, catch_exceptions=False)
    assert ended.exit_code == status, ended.output
    return ended


def command(app: Celery, *args: str, status: int = 0, answer: str = "") -> str:
    """What a command prints, run in this process, whatever it is asked to."""
    return str(_run(app, args, status, answer).output)


def document(app: Celery, name: str, *args: str, status: int = 0) -> Any:
    """What it prints with ``--json``, which is as the docs say."""
    # How far it has come, if that takes long, is no part of it.
    found = json.loads(_run(app, (*args, "--json"), status).stdout)
    for each in found if isinstance(found, list) else [found]:
        conforms(each, SCHEMAS[name], SCHEMAS, name)
    return found


def command_or(app: Celery, *args: str) -> str:
    """As ``command``, whatever it exits with."""
    return str(CliRunner().invoke(graceful, args, obj=SimpleNamespace(app=app)).output)


def make_app(broker: str, backend: str) -> Celery:
    app = Celery("resuming", broker=broker, backend=backend)
    app.conf.update(
        task_default_queue="celery", graceful_heartbeat_interval=0.5, graceful_lease_ttl=4.0
    )
    Graceful(app)
    return app


def start(app: Celery, name: str, pool: str = "prefork", **env: str) -> Worker:
    env = {
        "BROKER_URL": app.conf.broker_url,
        "RESULT_URL": app.conf.result_backend or "",
        "CONF_graceful_heartbeat_interval": "0.5",
        "CONF_graceful_lease_ttl": "4.0",
        "CONF_worker_prefetch_multiplier": "3",
        "GRACE": "3000",
        **env,
    }
    return Worker(APP, pool=pool, concurrency=1, env=env, hostname=name, alone=True)


def send(app: Celery, name: str, task_id: str, *args: Any, **options: Any) -> None:
    app.signature(f"{APP}.{name}", args).apply_async(task_id=task_id, **options)
