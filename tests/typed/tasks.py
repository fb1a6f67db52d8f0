"""Functions as tasks: strict checkers want stubs for ``app.task``, such as celery-types."""

from __future__ import annotations

from shop import app, charge

from celery_graceful import GracefulTask


@app.task(base=GracefulTask, bind=True)
def export(self: GracefulTask, orders: list[int]) -> None:
    for order in self.iterate(orders):
        receipt: str = self.step("charge", charge, order, currency="EUR")
        with self.shield():
            print(receipt)


def send() -> None:
    """It is a task, with what Celery's stubs know of one."""
    export.delay([1, 2])
