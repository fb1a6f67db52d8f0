"""What is said of messages that could not be given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery

from celery_graceful.timeline.grace_period import GracePeriod, deadlines
from celery_graceful.worker.giving_up import GivingUp


def request(name: str) -> Any:
    return SimpleNamespace(id=name, name=name, acknowledged=True, running_for=1.0)


def test_each_is_named_once() -> None:
    """By the thread that could not, or by who has waited for it; not by both."""
    said: list[str] = []
    failures: list[bool] = []
    with Celery(broker="memory://", set_as_current=False) as app:
        giving_up = GivingUp(
            SimpleNamespace(app=app, hostname="w"),
            SimpleNamespace(note_failure=lambda: failures.append(True)),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            deadlines(GracePeriod(10.0, "test"), soft=None, hard=None),
            None,  # type: ignore[arg-type]
            lambda level, text, *args: said.append(text % args),  # type: ignore[arg-type]
        )
    one, two, three = map(request, ["one", "two", "three"])
    giving_up._could_not([one, two], "no answer in time")
    giving_up._could_not([two], "locked", lost=True)
    giving_up._could_not([two, three], "locked")
    giving_up._say_lost()
    assert len(failures) == 3
    assert ["one" in text for text in said] == [True, False]
    assert ["two" in text for text in said] == [True, False]
    assert "three" in said[1]
