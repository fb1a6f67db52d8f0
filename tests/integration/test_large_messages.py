"""Messages of megabytes go back in short commands, and their bodies stay where they are."""

from __future__ import annotations

import pytest
from celery import Celery
from kombu.utils.json import dumps, loads

from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.rescue import Rescuer
from celery_graceful.messages.redelivered_flag import mark_redelivered
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import broker_store
from celery_graceful.system.portions import BYTES

COUNT, LARGE = 8, 2_000_000


def message(number, body="W10=", **first):
    """As kombu writes it."""
    return dumps(
        {
            **first,
            "body": body,
            "content-encoding": "utf-8",
            "headers": {"id": f"id-{number}", "task": "t", "stamps": [], "big": 2**60},
            "properties": {"delivery_info": {"exchange": "", "routing_key": "q"}},
        }
    )


@pytest.fixture
def book(redis_db):
    return Claims(broker_store(Celery("large", broker=redis_db.url, set_as_current=False)))


def claim(client, texts):
    entries = {str(n): f"q\0{text}" for n, text in enumerate(texts, 1)}
    client.hset("graceful:claims:w", mapping=entries)


def moved_bytes(client):
    stats = client.info("stats")
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


def in_order(client):
    return client.lrange("q", 0, -1)[::-1]


def test_bodies_are_not_moved(book, redis_db):
    texts = [message(n, "eHh4" * (LARGE // 4)) for n in range(COUNT)]
    claim(redis_db.client, texts)
    before = moved_bytes(redis_db.client)
    assert book.give_back([book.tag("w", n) for n in range(1, COUNT + 1)]) == COUNT
    assert moved_bytes(redis_db.client) - before < LARGE
    assert in_order(redis_db.client) == [mark_redelivered(text) for text in texts]
    assert not redis_db.client.exists("graceful:claims:w")


def test_each_command_is_short(book, redis_db):
    claim(redis_db.client, [message(n, "eHh4" * (LARGE // 4)) for n in range(COUNT)])
    steps = []
    tags = [book.tag("w", n) for n in range(1, COUNT + 1)]
    book.give_back(tags, on_step=lambda: steps.append(redis_db.client.llen("q")))
    assert steps[-1] == COUNT
    assert len(steps) >= COUNT * LARGE / (BYTES + LARGE)
    went = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert max(went) * LARGE <= BYTES + LARGE


@pytest.mark.parametrize(
    "body",
    ["", "W10=", 'a "quoted" one', "a \\ backslash", "\u00e9\U0001f600", 'ends with \\"', "\x00"],
)
def test_whatever_the_body_is(body, book, redis_db):
    texts = [
        message(1, body),
        message(2, body, expires="1"),  # not the first
        message(3, body).replace(": ", ":"),
        dumps({"body": body}),
        '{"body": "no end',
        '{"body": "x"',
        '{"body": "x", "body": "y", "headers": {}, "properties": {}}',
    ]
    claim(redis_db.client, texts)
    assert book.give_back([book.tag("w", n) for n in range(1, len(texts) + 1)]) == len(texts)
    assert in_order(redis_db.client) == [mark_redelivered(text) for text in texts]
    assert loads(in_order(redis_db.client)[0])["headers"]["stamps"] == []


def test_what_is_gone_stays_gone(book, redis_db):
    claim(redis_db.client, [message(n) for n in range(3)])
    redis_db.client.hdel("graceful:claims:w", 2)
    assert book.give_back([book.tag("w", n) for n in (1, 2, 3)]) == 2
    assert book.give_back([book.tag("w", n) for n in (1, 2, 3)]) == 0
    assert [loads(text)["headers"]["id"] for text in in_order(redis_db.client)] == ["id-0", "id-2"]


def test_a_rescue_reads_whole_what_ran_and_no_more(book, redis_db):
    texts = [message(n, "eHh4" * (LARGE // 4)) for n in range(COUNT)]
    client = redis_db.client
    claim(client, texts)
    client.sadd("graceful:fallen", "w")
    client.set("graceful:worker:w", "{}")
    client.sadd("graceful:begun:w", 1, 2)
    judged = []
    rescuer = Rescuer(
        book,
        Settings(lease_ttl=0.5, heartbeat_interval=0.1),
        lambda worker, about, ran: judged.extend(ran) or set(),
    )
    before = moved_bytes(client)
    while rescuer.lease_validity.seconds():
        pass
    assert rescuer.look() == COUNT
    assert moved_bytes(client) - before < 3 * LARGE + COUNT * 10_000
    assert [claim.message for claim in judged] == texts[:2]
    assert client.llen("q") == COUNT
