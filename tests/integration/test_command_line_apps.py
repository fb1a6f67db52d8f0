"""What commands need of an app: its tasks and its backend, as a worker has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from celery import Celery

from celery_graceful import Graceful
from celery_graceful.operations import Operations
from celery_graceful.poison.quarantine import Kept, put
from celery_graceful.store.app_stores import find_workers_store
from tests.conftest import RedisDB
from tests.support.broker import graceful_command
from tests.support.operators import document
from tests.unit.cli.test_tables import worker

SETTINGS = """\
SECRET_KEY = "not one"
INSTALLED_APPS = ["django_celery_results", "orders"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CELERY_RESULT_BACKEND = "django-db"
"""
APP = """\
import os
from celery import Celery
from celery_graceful import Graceful

app = Celery("shopsite", broker=os.environ["BROKER_URL"])
app.config_from_object("django.conf:settings", namespace="CELERY")
Graceful(app)
app.autodiscover_tasks()
"""
TASKS = """\
from celery import shared_task

print("orders are here")

@shared_task
def bill(): ...
"""


@pytest.fixture
def site(redis_db: RedisDB, tmp_path: Path) -> dict[str, str]:
    """The environment of a Django project, one task of which is in quarantine."""
    (tmp_path / "site_settings.py").write_text(SETTINGS)
    (tmp_path / "shopsite.py").write_text(APP)
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "__init__.py").touch()
    (tmp_path / "orders" / "tasks.py").write_text(TASKS)
    store = find_workers_store(Celery(broker=redis_db.url, set_as_current=False))
    assert store is not None
    message = {"headers": {"id": "1", "task": "orders.tasks.bill"}, "properties": {}, "body": ""}
    kept = {"list": "celery", "raw": json.dumps(message)}
    put(store, Kept("1", "orders.tasks.bill", "why", 3, 1.0, "w1@a:01", kept, "shopsite", "db"))
    return {
        "PYTHONPATH": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "BROKER_URL": redis_db.url,
    }


def test_tasks_of_django_are_its_own(site: dict[str, str], redis_db: RedisDB) -> None:
    listed = graceful_command("shopsite", "quarantine", "list", env=site, status=1)
    assert "of another app" not in listed
    said = graceful_command("shopsite", "quarantine", "retry", "--all", env=site)
    assert said.startswith("1 sent again\n")
    assert redis_db.client.llen("celery") == 1


def test_modules_that_cannot_be_imported(site: dict[str, str]) -> None:
    """That is said, and what there is to say without them."""
    tasks = Path(site["PYTHONPATH"]) / "orders" / "tasks.py"
    tasks.write_text("raise RuntimeError('no key')")
    said = graceful_command("shopsite", "quarantine", "list", env=site, status=1)
    assert "the app's modules cannot be imported" in said
    assert "no key" in said
    assert "  1  orders.tasks.bill  why" in said
    assert "Traceback" not in said


def test_what_modules_print_is_in_no_document(
    redis_db: RedisDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talkative.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    app = Celery("shop", broker=redis_db.url, include=["talkative"], set_as_current=False)
    Graceful(app)
    assert document(app, "QuarantinedTask", "quarantine", "list") == []
    assert "talkative.bill" in app.tasks


def test_why_with_a_backend_that_cannot_be_made(redis_db: RedisDB) -> None:
    app = Celery("shop", broker=redis_db.url, backend="nowhere://", set_as_current=False)
    Graceful(app)
    found = Operations(app, wait=0.1).why("1")
    assert found.state == "unknown"
    assert "the result backend has not answered: " in found.sentences[0]


@pytest.mark.parametrize(("up", "is_said"), [("5", False), ("500", True), (None, True)])
def test_a_loop_that_waits_for_a_redis_that_has_just_started(
    redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch, up: str | None, is_said: bool
) -> None:
    app = Celery("shop", broker=redis_db.url, set_as_current=False)
    Graceful(app)
    info = {} if up is None else {"uptime_in_seconds": up}
    places = "celery_graceful.operations"
    monkeypatch.setattr(f"{places}.stores.server_info", lambda store, section: info)
    waits = worker("w1@a", loop_lag=13.0)
    monkeypatch.setattr(f"{places}.operations.workers_of", lambda stores, settings: [waits])
    said = [one.what for one in Operations(app).status().findings]
    assert said == ["the loop of w1@a has not gone round for 13 s"] * is_said
