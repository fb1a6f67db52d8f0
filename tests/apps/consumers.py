"""Tasks that consume by themselves, as kombu documents it, beside one that runs long."""

from __future__ import annotations

import os

from kombu import Queue
from kombu.mixins import ConsumerMixin

from celery_graceful import Graceful, GracefulTask
from tests.apps import make_app, say, wait_for_file

app = make_app("consumers")
if "PLAIN" not in os.environ:
    Graceful(app)


@app.task(base=GracefulTask, bind=True, name="hold")
def hold(self, path):
    """Work until the file is there."""
    say("started", self.request.id)
    wait_for_file(path)
    say("ended", self.request.id)


def by_simple_queue(connection, name):
    with connection.SimpleQueue(name) as queue:
        message = queue.get(timeout=10)
        message.ack()
        return message.payload


def by_drain_events(connection, name):
    got = []
    with connection.Consumer([Queue(name)], callbacks=[lambda body, message: got.append(message)]):
        while not got:
            connection.drain_events(timeout=10)
    got[0].ack()
    return got[0].payload


class One(ConsumerMixin):
    """Takes one message and ends."""

    def __init__(self, connection, name):
        self.connection, self.name = connection, name
        self.got = None

    def get_consumers(self, Consumer, channel):
        return [Consumer([Queue(self.name)], callbacks=[self.on_message], prefetch_count=1)]

    def on_message(self, body, message):
        message.ack()
        self.got, self.should_stop = body, True


def by_mixin(connection, name):
    one = One(connection, name)
    one.run()
    return one.got


WAYS = {"simple queue": by_simple_queue, "drain events": by_drain_events, "mixin": by_mixin}


@app.task(base=GracefulTask, name="consume")
def consume(way, name, url=None):
    """Take one message off a queue, of this broker or of another one."""
    with app.connection(url) as connection:
        return WAYS[way](connection, name)
