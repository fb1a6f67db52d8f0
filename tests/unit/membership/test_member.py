"""What a worker says of itself."""

from __future__ import annotations

from types import SimpleNamespace as Fake
from typing import Any

import pytest

from celery_graceful.membership import member as module
from celery_graceful.membership.member import Member


def test_the_lag_is_that_of_the_turn_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of a busy worker turns again and again, and probes ring it as well."""
    now, rung = [0.0], []
    monkeypatch.setattr(module, "time", Fake(monotonic=lambda: now[0]))
    member: Any = Member.__new__(Member)
    vars(member).update(
        view=Fake(ring_loop=lambda: rung.append(now[0])), lost=[], _asked_at=0.0, _turned_at=0.0
    )
    now[0] = 1.0
    assert member._next_lag() == 0
    for now[0] in (1.25, 2.0, 2.75):
        member.on_loop()
    assert member.loop_lag == 0.25
    now[0] = 3.0
    assert member._next_lag() == 0.25
    now[0] = 6.0
    assert member.loop_lag == member._next_lag() == 3.0
    assert rung == [1.0, 3.0], "it is not asked again before it has answered"
