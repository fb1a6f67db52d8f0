"""Tasks that were revoked while they ran, when their time is over."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from celery_graceful.deliveries.stage import Stage
from celery_graceful.worker.revocation import Revocations
from tests.support.held import held


@pytest.mark.parametrize("waits", [None, "when it is revoked", "since it was"])
def test_the_process_of_one_that_waits_to_be_told_runs_another(waits: str | None) -> None:
    """Its result cannot be stored yet: it is as if it had never begun."""
    ended: list[Any] = []
    adapter: Any = SimpleNamespace(
        in_process=False,
        notify=lambda: None,
        end_process=lambda request, signum: ended.append(signum),
    )
    with held() as bench:
        request = bench.deliver("one")

        def wait_to_be_told() -> None:
            request.tells_later = True
            bench.ledger.put_down(request)

        revocations = Revocations(bench.ledger, adapter, bench.board, 0.0, lambda: None)
        if waits == "when it is revoked":
            wait_to_be_told()
        assert revocations.begin(request)
        if waits == "since it was":
            wait_to_be_told()
        revocations.check()
        assert ended == ([] if waits else [signal.SIGTERM])
        assert math.isinf(revocations.next_at()) == bool(waits)
        assert request.stage is (Stage.RECEIVED if waits else Stage.RUNNING)
