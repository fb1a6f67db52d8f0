"""A user's module, as strict as theirs: what each part of the API returns.

It uses nothing of Celery that Celery itself, untyped, or celery-types would not pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery import Celery

from celery_graceful import (
    Batch,
    ExitHandle,
    Graceful,
    GracefulTask,
    Interrupt,
    InterruptReason,
    Monitor,
    Phase,
    Resource,
    checkin,
    current_batch,
    current_interrupt,
    interrupted,
    interruptible,
    shield,
    sleep,
    wait_for_interrupt,
)
from celery_graceful.sources import csv, lines, pages
from celery_graceful.testing import GracefulRun, assert_survives_interruptions, graceful_run

if TYPE_CHECKING:
    from typing_extensions import assert_type  # Python 3.11 has it itself

app = Celery("shop", broker="memory://")
graceful = Graceful(app)


class Connection:
    """Somebody's client."""

    def close(self) -> None:
        """Close it."""


@graceful.resource
def database() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()


@graceful.resource(name="cache", timeout=3)
def cache() -> Iterator[Connection]:
    yield Connection()


queue = graceful.resource(open=Connection, close=Connection.close)


@graceful.on_exit
def flush() -> None: ...


@graceful.on_exit(scope="worker", timeout=2)
def tell() -> None: ...


handle = graceful.on_exit(print, "bye", scope="everywhere")


def charge(order: int, *, currency: str) -> str:
    """A step."""
    return f"{order} {currency}"


class Export(GracefulTask):
    """A task as a class."""

    name = "shop.export"
    max_interruptions = 5

    def run(self, orders: list[int]) -> int:
        done = 0
        for order in self.iterate(orders, name="orders", every=10):
            assert_type(order, int)
            with self.shield(), database() as connection:
                assert_type(connection, Connection)
            receipt = self.step("charge", charge, order, currency="EUR")
            assert_type(receipt, str)
            done += 1
            self.sleep(0.1)
        for line in self.iterate(lines("orders.txt")):
            assert_type(line, str)
        for row in self.iterate(csv("orders.csv")):
            assert_type(row, Any)
        self.checkpoint({"done": done})
        assert_type(self.state, Any)
        assert_type(self.resumed, bool)
        assert_type(self.interruptions, int)
        assert_type(self.interrupted, bool)
        assert_type(self.wait_for_interrupt(1.0), bool)
        interrupt = self.interrupt
        assert_type(interrupt, Interrupt | None)
        if interrupt is not None:
            assert_type(interrupt.reason, InterruptReason)
            assert_type(interrupt.phase, Phase)
            assert_type(interrupt.time_left(), float)
        with self.interruptible(), self.interrupt_callback(told):
            return done

    def on_interrupted(self, interrupt: Interrupt) -> None:
        told(interrupt)


def told(interrupt: Interrupt) -> None:
    """A callback."""


@shield
def in_one_piece(order: int) -> str:
    return str(order)


@interruptible
def cut(order: int) -> str:
    return str(order)


def functions() -> None:
    """What code that holds no task uses."""
    assert_type(interrupted(), bool)
    assert_type(current_interrupt(), Interrupt | None)
    assert_type(wait_for_interrupt(0.1), bool)
    assert_type(in_one_piece(1), str)
    assert_type(cut(1), str)
    with shield(), interruptible(), checkin("import"):
        sleep(1)


def cleanups() -> None:
    """What is closed at the end."""
    assert_type(database, Resource[Connection])
    assert_type(cache, Resource[Connection])
    assert_type(queue, Resource[Connection])
    assert_type(database.get(), Connection)
    assert_type(flush, ExitHandle)
    assert_type(tell, ExitHandle)
    assert_type(handle, ExitHandle)
    handle.cancel()


def batches() -> None:
    """Tasks that belong together."""
    batch = Batch(on_success=Export().s(), on_complete=Export().s())
    assert_type(batch.apply_async(Export().s([order]) for order in range(3)), Batch)
    assert_type(Batch.load("id"), Batch)
    assert_type(Batch.find("invoices"), Batch | None)
    assert_type(current_batch(), Batch | None)
    status = batch.wait(timeout=5)
    assert_type(status.total, int)
    batch.cancel()


def monitors() -> None:
    """Who hears of a run."""
    graceful.monitor("shop.export", Monitor("nightly-export", margin=5))
    graceful.monitor("shop.export", "nightly-export")


def get_page(cursor: int | None) -> tuple[list[int], int | None]:
    """A page of somebody's API."""
    return [], None


def test_export() -> None:
    """What a test of theirs does."""
    run = graceful_run(Export(), [1, 2])
    assert_type(run, GracefulRun)
    assert_type(run.interrupt_at(row=1).resume(), GracefulRun)
    assert_type(run.rows[0].repeated, bool)
    assert_type(run.error, BaseException | None)
    sent: list[str] = []
    assert_survives_interruptions(Export(), [1, 2], effects=sent, kills=False)
    print(run.state)


def pages_of_an_api(task: Export) -> None:
    """A source of pages."""
    for number in task.iterate(pages(get_page)):
        print(number)
