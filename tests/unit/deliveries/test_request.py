"""One delivery, and what its pool says of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from billiard.exceptions import TimeLimitExceeded
from celery.worker.request import Request

from celery_graceful.checkpoints.checkpoint import DELIVERY
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.request import GracefulRequest, _ends_once
from celery_graceful.deliveries.stage import Stage
from celery_graceful.monitors import outcome
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.successors import Sent
from tests.support.held import held


class Running(GracefulRequest):
    """Without a message; it cannot be told that it was revoked."""

    id, worker_pid, time_start, part, stage = "id", 1, 1.0, None, Stage.RUNNING
    _apply_result = None
    host = SimpleNamespace(revoke=lambda request: False)  # type: ignore[assignment]

    def __init__(self) -> None:
        self.ledger, self.said = MagicMock(), []

    def _say_revoked(self, *args: Any, dying: bool = False) -> None:
        self.said.append("revoked")

    def keeps_end(self, *args: Any) -> bool:
        return False

    def settle(self) -> None:
        pass

    def write_end(self) -> None:
        pass

    @_ends_once
    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> None:
        self.said.append("succeeded")


def test_a_greenlet_that_was_killed_has_not_succeeded() -> None:
    """Celery's pools answer for it as for a success, and eventlet's before it is known why."""
    request = Running()
    pool = SimpleNamespace(
        terminate_job=lambda pid, signum: request.on_success((False, None, None))
    )
    request.terminate(pool, signal.SIGTERM)
    request.on_success((False, None, None))
    assert request.said == ["revoked"]


def test_what_its_pool_cannot_end_ends_by_itself() -> None:
    request = Running()
    pool = MagicMock()
    pool.terminate_job.side_effect = NotImplementedError
    with pytest.raises(NotImplementedError):
        request.terminate(pool, signal.SIGTERM)
    request.on_success((False, 5, 0.1))
    assert request.said == ["succeeded"]


class Waiting(Running):
    """It is handed to a pool of threads, which may begin with it at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(MagicMock(), MagicMock())
        self.stage, self.claim, self.note, self.expires = Stage.RECEIVED, None, None, None
        self._task, self._request_dict = MagicMock(), {}
        self.monitors = MagicMock(**{"may_have.return_value": False})  # type: ignore[misc]
        self.ledger.enter(self)

    def _say_revoked(self, *args: Any, dying: bool = False) -> None:
        super()._say_revoked(*args, dying=dying)
        self.said.append("begins" if self.begin() else "does not begin")


def test_a_start_that_is_heard_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What went wrong since is judged by when it began, not by when that was heard."""
    monkeypatch.setattr(Request, "on_accepted", lambda *args: None)
    request = Waiting()
    request.on_accepted(1, 5.0)
    assert (request.stage, request.started_at) == (Stage.RUNNING, 5.0)


DROPS = {
    "its batch is cancelled": GracefulRequest.drop_cancelled,
    "it is revoked": lambda self: self._announce_revoked("revoked", False, None, False),
}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_what_is_dropped_does_not_begin_meanwhile(drop: Any) -> None:
    """Telling all that it is revoked takes a while; answered twice, it would end the worker."""
    request = Waiting()
    drop(request)
    drop(request)
    assert request.said == ["revoked", "does not begin"]
    assert not request.ledger.open_requests()


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("has_ended", [False, True])
def test_what_has_begun_meanwhile_is_not_dropped(drop: Any, has_ended: bool) -> None:
    request = Waiting()
    assert request.begin()
    if has_ended:
        request.ledger.finish(request)
    drop(request)
    assert request.said == []
    assert bool(request.ledger.open_requests()) is not has_ended


def be_revoked(request: GracefulRequest) -> None:
    request._announce_revoked("revoked", True, signal.SIGTERM, False)


def be_lost(request: GracefulRequest) -> None:
    request.mark_lost()
    request.ledger.finish(request)


def be_dropped(request: GracefulRequest) -> None:
    request.ledger.drop(request)


def be_tried_again(request: GracefulRequest) -> None:
    request.goes_on = True
    request.ledger.finish(request)
    request.settle()


@pytest.mark.parametrize("leave", [be_revoked, be_lost, be_dropped, be_tried_again])
def test_no_mark_is_left_of_what_has_left(leave: Callable[[GracefulRequest], None]) -> None:
    """There are few places for them: what is full costs needless looks from then on."""
    with held() as bench:
        request = bench.deliver("one")
        bench.board.marks.set(request.request_dict[DELIVERY])
        leave(request)
        assert request not in bench.ledger.open_requests()
        assert not bench.board.marks.take(request.request_dict[DELIVERY])


class Retrying(Waiting):
    """It has sent what goes on in its place."""

    name = "retrying"

    def __init__(self, sent: Sent | None) -> None:
        super().__init__()
        self.stage, self._request_dict = Stage.RUNNING, {DELIVERY: "boot:1"}
        if sent is not None:
            assert worker_state.board.value is not None
            worker_state.board.value.successors.note("boot:1", sent)

    def acknowledge(self) -> None:
        self.said.append("acknowledged")


@pytest.mark.parametrize("ends_first", ["time limit", "deadline"])
@pytest.mark.parametrize(("sent", "closed"), [(Sent.RETRY, []), (Sent.REPLACEMENT, ["ok"])])
def test_what_is_sent_is_its_end(
    sent: Sent, closed: list[str], ends_first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, whatever else ends it; of a retry the check-in stays open."""
    monkeypatch.setattr(worker_state.board, "value", Board.create())
    closes: list[str] = []
    monkeypatch.setattr(
        outcome, "close", lambda request, status, text, *, dying: closes.append(status)
    )
    request = Retrying(sent)
    ends: list[Callable[[], object]] = [
        lambda: request.on_timeout(False, 5.0),
        lambda: request.on_failure(SimpleNamespace(exception=TimeLimitExceeded(5.0))),
        request.ledger.leave_to_successors,
        lambda: request.ledger.give_up(heard=True),
    ]
    for end in ends if ends_first == "time limit" else reversed(ends):
        assert not end()
    request.on_failure(SimpleNamespace(exception=ValueError("of its thread, afterwards")))
    assert request.said == ["acknowledged"]
    assert (request.stage, request.goes_on) == (Stage.FINISHED, not closed)
    assert closes == closed


def test_what_has_sent_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_state.board, "value", Board.create())
    request = Retrying(None)
    assert request.ledger.leave_to_successors() == [request]
    assert request.ledger.give_up(heard=True) == [request]
    assert request.said == []


@pytest.mark.parametrize("came_before", [True, False])
def test_what_is_revoked_deletes_no_checkpoint_of_another_message(came_before: bool) -> None:
    """Of its id, that runs; what deliveries of itself have left may stand under any token."""
    with held() as bench:
        request = bench.deliver("one")
        request.came_before = came_before
        be_revoked(request)
        (_, task_id, token, began, _), _ = bench.host.discard.call_args  # type: ignore[attr-defined]
        assert (task_id, token) == ("one", request.request_dict[DELIVERY])
        assert began == (request.started_at if came_before else None)
