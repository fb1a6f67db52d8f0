"""What is loaded, while another thread loads it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from kombu import Connection

from celery_graceful.store.app_stores import is_kombus_redis
from celery_graceful.system.loaded import loaded


def test_what_is_not_imported_is_none_and_stays_so() -> None:
    assert loaded("celery_graceful.no_such_module", "name") is None
    assert loaded("sys", "path") is sys.path
    assert "celery_graceful.no_such_module" not in sys.modules


def test_a_module_that_another_thread_is_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on RabbitMQ did not start when its store was opened at that moment."""
    monkeypatch.setitem(sys.modules, "kombu.transport.redis", ModuleType("kombu.transport.redis"))
    assert loaded("kombu.transport.redis", "Transport") is None
    transport = Connection("memory://").transport
    assert not is_kombus_redis(transport)
