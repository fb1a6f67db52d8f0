"""An app with a step that loses its connection while it sends, the first two times."""

from __future__ import annotations

from celery import bootsteps
from kombu.exceptions import OperationalError

from tests.apps import say
from tests.apps.lifecycle import app


class Sends(bootsteps.StartStopStep):
    requires = ("celery.worker.consumer.tasks:Tasks",)
    starts = 0

    def start(self, c):
        Sends.starts += 1
        say("sends", Sends.starts)
        if Sends.starts < 3:
            raise OperationalError("Connection refused")


app.steps["consumer"].add(Sends)
