"""An app that reads a queue of its own, as Celery's documentation shows it."""

from __future__ import annotations

import os
import signal
import time

from celery import bootsteps
from kombu import Consumer, Queue

from tests.apps import say
from tests.apps.lifecycle import app

HELD = []


class Reader(bootsteps.ConsumerStep):
    def start(self, c):
        self.timer = c.timer
        super().start(c)

    def get_consumers(self, channel):
        queue = Queue("mine", routing_key="mine")
        return [Consumer(channel, [queue], callbacks=[self.handle], accept=["json"])]

    def handle(self, body, message):
        say("handled", body)
        kind, _, seconds = body.partition(" ")
        if kind == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
            message.ack()
        elif kind == "hold":
            HELD.append(message)
            self.timer.call_after(float(seconds), self.answer)
        else:
            time.sleep(0.01)
            message.ack()

    def answer(self):
        say("answered")
        HELD.pop().ack()


app.steps["consumer"].add(Reader)
