"""Early acknowledgements are sent at once, and hurry nobody else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery

from celery_graceful.claims import acks as acks_module
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.sending import Sending
from celery_graceful.store.app_stores import broker_store
from tests.conftest import RedisDB
from tests.support.workers import TIMEOUT, wait_until


def test_one_among_ends_that_wait(redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIET", "GATHER_ENDS"):
        monkeypatch.setattr(acks_module, name, 600.0)
    client, written = redis_db.client, []

    def write(store: Any, ends: Any) -> None:
        written.extend(ends)
        client.hdel("graceful:claims:me", *(number for _, (_, number) in ends))

    store = broker_store(Celery("early", broker=redis_db.url, set_as_current=False))
    assert store is not None
    claims = Claims(store, write_ends=write)
    client.hset("graceful:claims:me", mapping={"1": "celery\0{}", "2": "celery\0{}"})
    waits, early = (claims.tag("me", number) for number in (1, 2))
    early.is_early = True
    claims.end_with(waits, "end")
    for tag in (waits, early):
        claims.ack(tag)
    wait_until(lambda: client.hkeys("graceful:claims:me") == ["1"], "the early one is sent")
    wait_until(lambda: not claims._sending._is_urgent, "the other one is gathered as ever")
    assert not written
    assert claims.flush(TIMEOUT)
    claims.end(TIMEOUT)
    assert written == [("end", ("me", 1))]


def test_what_was_urgent_does_not_cut_the_next_gathering() -> None:
    rung, is_sent = [], threading.Event()

    def send(at_once: bool) -> None:
        rung.append(sending._enough.take())
        sending.calm()
        is_sent.set()

    sending = Sending(threading.Lock(), send, lambda: False)
    sending.urge()
    sending.rouse()
    assert is_sent.wait(TIMEOUT)
    sending.end(TIMEOUT)
    assert rung[0] == b""
