"""Which run a message belongs to that RabbitMQ delivers again."""

from __future__ import annotations

from celery_graceful.deliveries.duplicates import Duplicates
from celery_graceful.deliveries.stage import Stage
from tests.support.held import held


def test_the_copy_of_one_that_runs_is_not_that_of_one_like_it_that_has_ended() -> None:
    """The same task and arguments, sent again under the same id when the first had ended."""
    with held() as bench:
        duplicates = Duplicates(bench.ledger)
        first = bench.deliver("twice")
        duplicates.answered(first)
        bench.ledger.drop(first)
        second = bench.deliver("twice")
        duplicates.connection_lost(heard=False)
        copy = bench.deliver("twice", runs=False)
        copy.delivery_info["redelivered"] = True
        assert duplicates.settle(copy)
        assert not copy.acknowledged
        assert (copy.stage, second.stage) == (Stage.RELEASED, Stage.RUNNING)
        assert second.message is copy.message
        assert not second.orphaned
        another = bench.deliver("twice", runs=False)
        another.delivery_info["redelivered"] = True
        assert duplicates.settle(another), "that of the first one, if its answer was lost"


def test_who_ends_is_not_taken_for_one_like_it_that_runs() -> None:
    with held() as bench:
        duplicates = Duplicates(bench.ledger)
        first, second = bench.deliver("twice"), bench.deliver("twice")
        duplicates.connection_lost(heard=False)
        assert duplicates.owe(first)
        bench.ledger.drop(first)
        copy = bench.deliver("twice", runs=False)
        copy.delivery_info["redelivered"] = True
        assert duplicates.settle(copy)
        assert second.message is copy.message
