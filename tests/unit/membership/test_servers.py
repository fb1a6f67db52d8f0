"""On which servers a worker is a member."""

from __future__ import annotations

import threading
from types import SimpleNamespace as Fake
from typing import Any

import pytest

from celery_graceful.membership import broker_servers
from celery_graceful.membership.broker_servers import Servers


def test_the_loop_that_looks_while_the_consumer_arrives_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a hub the loop is another thread, which the first heartbeat wakes up."""

    class Member:
        claims = None

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def start(self) -> None:
            look = threading.Thread(target=parts.on_loop)
            look.start()
            look.join()

        def arrive(self) -> None: ...

        def depart(self) -> None: ...

        def retire(self) -> None: ...

        def leave(self) -> None: ...

        def on_loop(self) -> None: ...

        def is_done(self) -> bool:
            return True

    monkeypatch.setattr(broker_servers, "Member", Member)
    for name in ("find_store", "find_workers_store"):
        monkeypatch.setattr(broker_servers, name, lambda app: Fake(source="the store"))
    monkeypatch.setattr(broker_servers, "is_allowed", lambda *args: True)
    ledger = Fake(
        requeue=Fake(connected=lambda connection: None),
        connected=lambda claims: None,
        post_mortems=Fake(tell_soon=lambda: None),
    )
    settings = Fake(reliable_fetch=False)
    view: Any = Fake(
        ledger=ledger,
        board=Fake(be_at=lambda place: None),
        settings=settings,
        worker=Fake(app=None),
    )
    transport = Fake(driver_type="sql")
    consumer = Fake(
        connection=Fake(transport=transport, place=0), task_consumer=Fake(channel=Fake())
    )
    parts = Servers(view)
    parts.arrive(consumer)
    assert isinstance(parts.here, Member)
    assert parts.members == {0: parts.here}
