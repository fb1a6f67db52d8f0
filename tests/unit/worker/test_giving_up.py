"""What is said of messages that could not be given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery

from celery_graceful.timeline.grace_period import GracePeriod, deadlines
from celery_graceful.worker.giving_up import GivingUp


def request(name: str, *, acknowledged: bool = True) -> Any:
    message = SimpleNamespace(channel=None)
    return SimpleNamespace(
        id=name, name=name, acknowledged=acknowledged, running_for=1.0, message=message
    )


def make(said: list[str], failures: list[bool]) -> GivingUp:
    with Celery(broker="memory://", set_as_current=False) as app:
        return GivingUp(
            SimpleNamespace(app=app, hostname="w"),
            SimpleNamespace(note_failure=lambda: failures.append(True)),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            deadlines(GracePeriod(10.0, "test"), soft=None, hard=None),
            None,  # type: ignore[arg-type]
            lambda level, text, *args: said.append(text % args),  # type: ignore[arg-type]
        )


def test_what_goes_back_with_its_connection_is_not_lost() -> None:
    """RabbitMQ has it until then, though nothing has to be answered any more."""
    said: list[str] = []
    giving_up = make(said, [])
    early, late = request("early"), request("late", acknowledged=False)
    giving_up._note_those_at_broker([early, late])
    late.acknowledged = True
    giving_up._could_not([early, late], "no answer in time")
    giving_up._say_lost()
    assert ["late" in text for text in said] == [True, False]
    assert "the broker delivers again" in said[0]
    assert said[1].startswith("Lost: early")


def test_each_is_named_once() -> None:
    """By the thread that could not, or by who has waited for it; not by both."""
    said: list[str] = []
    failures: list[bool] = []
    giving_up = make(said, failures)
    one, two, three = map(request, ["one", "two", "three"])
    giving_up._could_not([one, two], "no answer in time")
    giving_up._could_not([two], "locked", lost=True)
    giving_up._could_not([two, three], "locked")
    giving_up._say_lost()
    assert len(failures) == 3
    assert ["one" in text for text in said] == [True, False]
    assert ["two" in text for text in said] == [True, False]
    assert "three" in said[1]
