"""How a callback that is due is published: once, whoever does so, and however often.

Where broker and ledger are one Redis, its message is put into its queue in the step that takes it
out of the outbox. Elsewhere it is sent, and then taken out: who does so says so to the others, for
as long as it takes, and may be killed, or slow to say it. So each message says which copy it is
(``graceful_copy``), and of several the first that starts is the one that runs (``running.py``). Of
a callback that begins with several tasks each runs once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

from celery.utils.log import get_logger

from celery_graceful.batches.callbacks import signature_of
from celery_graceful.batches.chord_gathering import gathered
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.kept_headers import are_kept
from celery_graceful.batches.ledger import LEFT, BatchLedger
from celery_graceful.batches.marks import COPY, EACH, first_of, mark, parts_of
from celery_graceful.batches.model import Due
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.store.app_stores import find_store, settings_of
from celery_graceful.store.meanwhile import meanwhile
from celery_graceful.store.store import Store
from celery_graceful.system.describe import describe

__all__ = ["publish_all", "publish_due"]

logger = get_logger(__name__)

#: Seconds that the broker gets to take a message.
TIMEOUT = 5.0


class _Taken(NamedTuple):
    """What would have gone into a list of Redis."""

    list_key: str
    bell: str
    message: str


def publish_due(app: Any, store: Store, due: Due, timeout: float = TIMEOUT) -> bool:
    """Publish a callback that is due; whether it was still to be published.

    Args:
        app: The Celery app.
        store: Where the ledger is.
        due: The callback.
        timeout: Seconds that the broker may take for each step.

    Raises:
        StoreAway: The ledger does not answer.
        Exception: It could not be sent: what its task, or the broker's client, raised. It stays in
            the outbox.
    """
    ledger = BatchLedger(store)
    try:
        callback = ledger.callback(due)
        status = None if callback.gathers else ledger.status(due.batch)
    except UnknownBatch:  # it was dropped, or has expired
        return ledger.published(due)
    if status is None:
        sig = gathered(app, ChordLedger(store), due, callback)
        if sig is None:
            return False
    else:
        sig = signature_of(app, callback, status)
    are_kept()
    mark(sig, {COPY: f"{'' if callback.gathers else EACH}{secrets.token_hex(8)}"})
    with bounded_connection(app.connection_for_write(), timeout) as connection:
        channel = connection.default_channel
        taken: list[_Taken] = []
        several = parts_of(first_of(sig)) is not None
        if not several and _is_one_step(app, channel):
            channel.hand_to(lambda *message: taken.append(_Taken(*message)))
        elif not ledger.begin_publishing(due):
            return False
        producer = app.amqp.Producer(connection)
        say = partial(ledger.begin_publishing, due, again=True)
        says_so = meanwhile(say, LEFT / 4, "graceful-publishing")  # thousands take a while
        with says_so if several else nullcontext():
            sig.apply_async(producer=producer, retry=False)
        if len(taken) == 1:
            list_key, bell, message = taken[0]
            return ledger.published(due, list_key=list_key, bell=bell, message=message)
        for one in taken:  # an exchange that leads to several queues
            store.run("put", [one.list_key, one.bell], [one.message, 16, 10_000])
    return ledger.published(due)


def _is_one_step(app: Any, channel: Any) -> bool:
    """Whether what is sent over ``channel`` can go where the ledger is."""
    return (
        hasattr(channel, "hand_to")
        and settings_of(app).store is None
        and app.conf.broker_write_url == app.conf.broker_read_url
    )


def publish_all(app: Any, due: Iterable[Due]) -> None:
    """Publish what has become due here. What cannot be stays in the outbox: workers look there."""
    store = find_store(app)
    for one in due:
        assert store is not None  # where it has become due
        try:
            publish_due(app, store, one)
        except Exception as exc:
            logger.warning(
                "The callback %s of batch %s could not be sent: %s. A worker does so",
                one.name,
                one.batch,
                describe(exc),
            )
