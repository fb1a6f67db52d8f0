"""A context that is made in fewer steps is as Celery makes it, but for headers of ours."""

from __future__ import annotations

from typing import Any

import pytest
from celery.app.task import Context

from celery_graceful.messages.context import install
from celery_graceful.messages.own_headers import CARRIED, OWN

MESSAGE = {
    "id": "1",
    "task": "t",
    "lang": "py",
    "argsrepr": "()",
    "delivery_info": {},
    "retries": 1,
}
PLAIN = Context._get_custom_headers


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = getattr(PLAIN, "__wrapped__", PLAIN)
    monkeypatch.setattr(Context, "_get_custom_headers", plain)
    install()
    assert Context._get_custom_headers.__wrapped__ is plain
    install()
    assert Context._get_custom_headers.__wrapped__ is plain


@pytest.mark.parametrize(
    "said",
    [
        {},
        MESSAGE,
        {**MESSAGE, "mine": 1, "compression": None, "other": [2]},
        {**MESSAGE, "headers": {"mine": 1}},
        {**MESSAGE, "headers": None, "update": 1, "__doc__": 2},
    ],
)
def test_headers_of_the_users_own(said: dict[str, Any]) -> None:
    plain = Context._get_custom_headers.__wrapped__
    ours, theirs = Context(said, args=()), Context()
    assert Context._get_custom_headers(ours, said, args=()) == plain(theirs, said, args=())
    assert ours.headers == (said.get("headers") or plain(theirs, said))


def test_ours_are_not_seen() -> None:
    """So they do not go along in what a task sends with the headers that it has got."""
    ours = dict.fromkeys(OWN, "w/1")
    assert Context(**MESSAGE, **ours).headers is None
    assert Context(**MESSAGE, **ours, mine=1).headers == {"mine": 1}
    assert Context(**ours).graceful_claim == "w/1"


def test_the_next_try_has_those_that_it_has_to_have() -> None:
    options = Context(**MESSAGE, **dict.fromkeys(OWN, "w/1"), mine=1).as_execution_options()
    assert options["headers"] == {"mine": 1, **dict.fromkeys(CARRIED, "w/1")}
    assert Context(**MESSAGE, mine=1).as_execution_options()["headers"] == {"mine": 1}
    assert not Context(**MESSAGE).as_execution_options()["headers"]


def test_a_name_that_somebody_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Context(mine=1).headers == {"mine": 1}
    monkeypatch.setattr(Context, "mine", None, raising=False)
    assert Context(mine=1, graceful_claim="w/1").headers is None


def test_a_version_that_has_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(*args, **kwargs)

    monkeypatch.setattr(Context, "_get_custom_headers", other)
    install()
    assert Context(id="1", graceful_claim="w/1").headers == {"id": "1"}
