"""What is sent again from several shells at once, or by a worker and by hand, is sent once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery import Celery, Task
from kombu.exceptions import OperationalError

from celery_graceful import Graceful
from celery_graceful.batches import manual_remedies, queues
from celery_graceful.batches.brief_status import standing_of
from celery_graceful.batches.callbacks import made
from celery_graceful.batches.failed_members import GOES_ON
from celery_graceful.batches.findings import Missing, noted
from celery_graceful.batches.holders import Holder
from celery_graceful.batches.keys import key_of
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.manual_remedies import Remedies
from celery_graceful.batches.model import Due, End, Outcome
from celery_graceful.batches.packing import pack
from celery_graceful.batches.repair import Repair
from celery_graceful.batches.sent_again import LATELY
from celery_graceful.claims.claimant import WORKERS, lease_key
from celery_graceful.claims.lease import about_key, broker_digest
from celery_graceful.operations import Operations
from celery_graceful.operations.records import Done
from celery_graceful.poison import quarantine
from celery_graceful.poison.quarantine import Kept, put, release_key
from celery_graceful.store.app_stores import find_store
from tests.conftest import RabbitVhost, RedisDB
from tests.servers import RedisServer
from tests.support import operators
from tests.support.monitor import monitored
from tests.support.workers import TIMEOUT, wait_until

SHELLS = 4


class Place:
    """An app without workers."""

    def __init__(self, broker: str, db: RedisDB) -> None:
        self.client = db.client
        self.app = Celery("again", broker=broker, set_as_current=False)
        self.app.conf.update(
            graceful_store=db.url, graceful_heartbeat_interval=0.05, graceful_lease_ttl=0.5
        )
        Graceful(self.app)

        @self.app.task(base=Task, name="plain", shared=False)
        def plain(*args: Any) -> None: ...

        self.plain = plain
        store = find_store(self.app)
        assert store is not None
        self.store, self.ledger = store, BatchLedger(store)
        self.members = [f"m{number}" for number in range(5)]
        with self.app.connection_for_write() as connection:
            self.app.amqp.queues["celery"](connection.default_channel).declare()

    def batch(self, *, failed: bool) -> None:
        """Whose members are nowhere."""
        on_complete = made(self.app, "b", "on_complete", self.plain.s())
        self.ledger.create("b", ttl=60, linger=60, callbacks={"on_complete": on_complete})
        self.ledger.begin_sending("b")
        self.ledger.add("b", [(one, pack(self.app, self.plain.s())) for one in self.members])
        self.ledger.sent("b")
        if failed:
            self.fail()

    def fail(self) -> None:
        self.ledger.end([End("b", one, Outcome.FAILED) for one in self.members])

    def at_once(self, do: Callable[[], Any]) -> list[Any]:
        """What several shells say that do the same."""
        ready, said = threading.Barrier(SHELLS), []

        def shell() -> None:
            ready.wait(TIMEOUT)
            said.append(do())

        shells = [threading.Thread(target=shell) for _ in range(SHELLS)]
        for one in shells:
            one.start()
        for one in shells:
            one.join(TIMEOUT)
        assert len(said) == SHELLS
        return said

    def remedies(self) -> Remedies:
        return Remedies(self.app, self.ledger, lambda due: None)

    def sent(self) -> list[str]:
        """Ids of what is in the queue; it is taken out."""
        found = []
        with self.app.connection_for_write() as connection:
            while message := connection.default_channel.basic_get("celery", no_ack=True):
                found.append(message.headers["id"])
        return sorted(found)

    def in_queue(self) -> int:
        with self.app.connection_for_write() as connection:
            queue = self.app.amqp.queues["celery"](connection.default_channel)
            return int(queue.queue_declare(passive=True).message_count)

    def some_time_later(self) -> None:
        """It was not a moment ago that some were sent again."""
        key = key_of("b", "resent")
        for member, said in self.client.hgetall(key).items():
            self.client.hset(key, member, re.sub(r"^\d+", "1", said))


@pytest.fixture(params=["redis", "rabbitmq"])
def place(
    request: pytest.FixtureRequest, redis_db: RedisDB, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.setattr(queues, "TIMEOUT", TIMEOUT)
    url = redis_db.url
    if request.param == "rabbitmq":
        vhost: RabbitVhost = request.getfixturevalue("rabbit_vhost")
        url = vhost.url
    one = Place(url, redis_db)
    yield one
    one.app.close()


@pytest.fixture
def on_redis(redis_db: RedisDB) -> Iterator[Place]:
    one = Place(redis_db.url, redis_db)
    yield one
    one.app.close()


# -- batches -------------------------------------------------------------------------


@pytest.mark.parametrize("failed", [True, False])
def test_each_member_is_sent_by_one_of_some_shells(place: Place, failed: bool) -> None:
    place.batch(failed=failed)
    if failed:
        said = place.at_once(lambda: Operations(place.app).batches.resend("b", failed=True))
    else:  # each of them has found that they are missing
        found = place.remedies().look("b")["b"]
        assert len(found) == 5
        said = place.at_once(lambda: place.remedies().resend("b", found=found))
    assert sorted(one for done in said for one in done.resent) == place.members
    left = [member for done in said for member in done.left]
    assert sorted(left) == sorted(place.members * (SHELLS - 1))
    assert place.sent() == place.members
    assert not [*noted(place.ledger, "b")], "they are missing no more"
    assert 0 < place.client.pttl(key_of("b", "resent")) <= 60_000
    place.ledger.drop("b")
    assert not place.client.keys("graceful:batch:b*")


def test_somebody_who_is_impatient(place: Place) -> None:
    """No worker runs: they wait in the queue, and have failed until they succeed."""
    place.batch(failed=True)
    command = ["batches", "resend", "b", "--failed"]
    assert operators.command(place.app, *command) == "b 5 sent again\n"
    (done,) = operators.document(place.app, "Resent", *command, status=1)
    assert done["left"] == dict.fromkeys(place.members, LATELY)
    wait_until(lambda: place.in_queue() == 5)
    place.some_time_later()
    (done,) = operators.document(place.app, "Resent", *command, status=1)
    assert not done["resent"]
    (why,) = {*done["left"].values()}
    assert why == GOES_ON or "RabbitMQ does not say what is in it" in why
    assert place.sent() == place.members
    # They were lost.
    assert operators.command(place.app, *command) == "b 5 sent again\n"
    wait_until(lambda: place.in_queue() == 5)
    place.some_time_later()
    assert operators.command(place.app, *command, "--unsure") == "b 5 sent again\n"
    assert place.sent() == sorted(place.members * 2)


def test_who_has_failed_once_more_is_sent_again(place: Place) -> None:
    place.batch(failed=True)
    remedies = place.remedies()
    for _ in range(2):
        assert sorted(remedies.resend("b", failed=True).resent) == place.members
        assert place.sent() == place.members
        place.fail()
        assert remedies.resend("b", failed=True).left == dict.fromkeys(place.members, LATELY)
        place.some_time_later()


def test_what_fails_again_while_another_shell_is_about_to_send_it(on_redis: Place) -> None:
    """It has seen that they had failed, before that."""
    on_redis.batch(failed=True)
    first, second = on_redis.remedies(), on_redis.remedies()
    found = second.look_failed("b")["b"]
    assert sorted(first.resend("b", failed=True).resent) == on_redis.members
    on_redis.fail()
    on_redis.some_time_later()
    done = second.resend("b", failed=True, found=found)
    assert done.left == dict.fromkeys(on_redis.members, LATELY)
    on_redis.sent()
    assert sorted(second.resend("b", failed=True).resent) == on_redis.members


def test_what_has_failed_since_it_was_missing(on_redis: Place) -> None:
    """It had been sent again by hand, when a worker had found nothing."""
    on_redis.batch(failed=False)
    found = on_redis.remedies().look("b")["b"]
    on_redis.fail()
    assert not on_redis.remedies().resend("b", found=found)
    assert not on_redis.sent()


def test_what_was_in_the_queue_when_its_batch_was_completed(on_redis: Place) -> None:
    """It has failed, and runs all the same."""
    on_redis.batch(failed=False)
    remedies = on_redis.remedies()
    assert remedies.resend("b", ["m0"]).resent == ["m0"]
    on_redis.client.delete(key_of("b", "resent"))
    remedies.complete("b")
    done = remedies.resend("b", failed=True)
    assert (sorted(done.resent), done.left) == (on_redis.members[1:], {"m0": GOES_ON})
    assert on_redis.sent() == on_redis.members


def test_what_a_worker_has_not_said_yet_that_it_has_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so with its next heartbeat: until then it seems to hold what has just failed."""
    place.batch(failed=True)
    place.client.sadd(WORKERS, "w")
    place.client.set(lease_key("w"), "{}")
    place.client.set(about_key("w"), f'{{"broker": "{broker_digest(place.app)}"}}')
    aboard = [f"b/{member}" for member in place.members]
    holder = Holder(place.store, lambda: aboard, 60.0)
    holder.say("w")

    def waits(seconds: float) -> None:
        aboard.remove("b/m0")
        holder.say("w")

    monkeypatch.setattr(manual_remedies, "_wait", waits)
    done = place.remedies().resend("b", failed=True)
    assert (done.resent, done.left) == (["m0"], dict.fromkeys(place.members[1:], GOES_ON))


def test_a_worker_and_somebody_at_a_shell(on_redis: Place) -> None:
    """Whoever is second has looked before the first one sent it."""
    on_redis.batch(failed=False)
    remedies, repair = on_redis.remedies(), Repair(on_redis.app, on_redis.ledger, lambda due: None)
    found = remedies.look("b")["b"]
    now = standing_of(on_redis.ledger, "b")
    assert now is not None
    assert remedies.resend("b", ["m0"]).resent == ["m0"]
    lost = [one for one in found if one.member == "m0"]
    assert repair.mend("b", now, lost, lambda task: True, fail=True).left == {"m0": LATELY}
    done = repair.mend("b", now, found, lambda task: True)
    assert (sorted(done.resent), done.left) == (on_redis.members[1:], {"m0": LATELY})
    assert "m0" in done.dealt_with()
    by_hand = remedies.resend("b", found=found)
    assert not by_hand, "nothing was done"
    assert by_hand.left == dict.fromkeys(on_redis.members, LATELY)
    assert on_redis.sent() == on_redis.members
    on_redis.some_time_later()  # and they were lost again
    assert sorted(repair.mend("b", now, found, lambda task: True).resent) == on_redis.members


def test_what_could_not_be_sent_can_be_sent_at_once(
    on_redis: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_redis.batch(failed=True)
    remedies = on_redis.remedies()
    with monkeypatch.context() as patch:
        patch.setattr(on_redis.plain, "apply_async", Mock(side_effect=OperationalError("away")))
        done = remedies.resend("b", failed=True)
    assert not done.resent
    assert "it cannot be sent: " in done.left["m0"]
    assert sorted(remedies.resend("b", failed=True).resent) == on_redis.members


def test_a_missing_callback_is_sent_by_one_of_some_shells(on_redis: Place) -> None:
    """One may have begun when the next one is sent: both would run."""
    on_redis.batch(failed=True)
    assert on_redis.ledger.published(Due("b", "on_complete"))
    found = [Missing("callback:on_complete", "nowhere")]
    said = on_redis.at_once(lambda: on_redis.remedies().resend("b", found=found))
    assert [name for done in said for name in done.called] == ["callback:on_complete"]
    assert {why for done in said for why in done.left.values()} <= {LATELY}


@pytest.mark.parametrize("who", ["the callback", "another shell"])
def test_a_callback_that_begins_while_it_is_looked_for(
    on_redis: Place, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    on_redis.batch(failed=True)
    due, remedies = Due("b", "on_complete"), on_redis.remedies()
    assert on_redis.ledger.published(due)
    assert on_redis.ledger.may_run(*due, "a lost copy")

    def waits(seconds: float) -> None:
        if seconds:
            return
        if who == "the callback":
            on_redis.client.hset(key_of("b"), "copy:on_complete", "another one")
        else:
            assert on_redis.ledger.fire(*due) == [due]

    monkeypatch.setattr(manual_remedies, "_wait", waits)
    assert not remedies.callback(*due)
    monkeypatch.undo()
    if who == "the callback":
        assert not on_redis.ledger.may_run(*due, "a third one")


def test_ends_look_for_it_only_where_members_were_sent_again(on_redis: Place) -> None:
    on_redis.batch(failed=False)
    client, ledger = on_redis.client, on_redis.ledger

    def costs(member: str) -> tuple[int, int]:
        client.config_resetstat()
        ledger.end([End("b", member, Outcome.FAILED)])
        of = client.info("commandstats")
        return of["cmdstat_hmget"]["calls"], of["cmdstat_hset"]["calls"]

    costs("m0")  # the first that fails
    reads, writes = costs("m1")
    on_redis.remedies().resend("b", ["m2"])
    assert costs("m3") == (reads + 1, writes)
    assert costs("m2") == (reads + 1, writes + 1)


def test_an_end_while_redis_is_full(start_server: Callable[..., RedisServer]) -> None:
    """It is noted, as that of any other."""
    server = start_server(RedisServer)
    with redis.Redis.from_url(server.url(), decode_responses=True) as client:
        place = Place(server.url(), RedisDB(server.url(), server.url(1), client))
        place.batch(failed=True)
        place.remedies().resend("b", failed=True)
        client.config_set("maxmemory", "1mb")
        place.ledger.end([End("b", "m0", Outcome.FAILED)])
        assert {*place.ledger.sent_again("b", place.members)} == {*place.members[1:]}
        place.app.close()


# -- quarantine ----------------------------------------------------------------------


def keep(place: Place, *ids: str) -> None:
    """Put into quarantine, as workers with that broker do."""
    for task_id in ids:
        place.app.send_task("plain", task_id=task_id)
        with place.app.connection_for_write() as connection:
            channel = connection.default_channel
            wait_until(lambda: place.in_queue() == 1)
            message = channel.basic_get("celery", no_ack=True)
        kept = Kept.of_message(message, why="it died", deaths=1, worker="w")
        assert put(place.store, kept) == [True]


@pytest.fixture
def on_rabbit(rabbit_vhost: RabbitVhost, redis_db: RedisDB) -> Iterator[Place]:
    one = Place(rabbit_vhost.url, redis_db)
    yield one
    one.app.close()


def test_each_task_of_the_quarantine_is_sent_by_one_of_some_shells(on_rabbit: Place) -> None:
    ids = [f"t{number}" for number in range(10)]
    keep(on_rabbit, *ids)
    tasks = Operations(on_rabbit.app).quarantine
    said = on_rabbit.at_once(lambda: [tasks.retry(one, listed=True) for one in ids])
    done = [one for some in said for one in some]
    assert [one for one in done if not one.ok] == []
    assert sorted(one.id for one in done if one.said == "sent again") == ids
    assert on_rabbit.sent() == ids
    assert not on_rabbit.client.exists(quarantine.QUARANTINE, *map(release_key, ids))


def test_who_sends_it_again_has_died(on_rabbit: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while nobody knows; it is neither sent nor deleted then, which would be no use."""
    monkeypatch.setattr(quarantine, "PATIENCE", 0.0)
    keep(on_rabbit, "t")
    on_rabbit.client.set(release_key("t"), "another shell", ex=60)
    said = "t is being sent again by somebody else, or who did so has died: ask again in 30 s\n"
    assert operators.command(on_rabbit.app, "quarantine", "retry", "t", status=1) == said
    line = ["quarantine", "delete", "--yes", "t"]
    assert operators.command(on_rabbit.app, *line, status=1) == said
    assert on_rabbit.client.get(release_key("t")) == "another shell"
    on_rabbit.client.delete(release_key("t"))  # it has expired
    assert operators.command(on_rabbit.app, "quarantine", "retry", "--all") == "t sent again\n"
    assert on_rabbit.sent() == ["t"]


def test_who_sends_it_again_fails(on_rabbit: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the next one does so, who has waited for it."""
    keep(on_rabbit, "t")
    on_rabbit.client.set(release_key("t"), "another shell", ex=60)
    monkeypatch.setattr(quarantine, "PATIENCE", TIMEOUT)
    done: list[Done] = []
    tasks = Operations(on_rabbit.app).quarantine
    with monitored(on_rabbit.client) as commands:
        shell = threading.Thread(target=lambda: done.append(tasks.retry("t")))
        shell.start()
        on_rabbit.client.delete(release_key("t"))
        shell.join(TIMEOUT)
    assert done == [Done("t", True, "sent again")], commands


def test_what_has_died_again_meanwhile_stays(
    on_rabbit: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is acknowledged: it is nowhere else."""
    keep(on_rabbit, "t")
    delete = quarantine.delete

    def deleted(*args: Any) -> bool:
        assert on_rabbit.sent() == ["t"]
        kept = quarantine.find(on_rabbit.store, "t")
        assert kept is not None
        again = Kept(**{**vars(kept), "at": kept.at + 1, "deaths": 2})
        assert put(on_rabbit.store, again) == [True]
        return delete(*args)

    monkeypatch.setattr(quarantine, "delete", deleted)
    assert Operations(on_rabbit.app).quarantine.retry("t").said == "sent again"
    there = quarantine.find(on_rabbit.store, "t")
    assert there is not None
    assert there.deaths == 2
    assert not on_rabbit.client.exists(release_key("t"))


def test_a_shell_that_was_slow_takes_nothing_of_the_next_one(
    on_rabbit: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(on_rabbit, "t")
    delete = quarantine.delete

    def deleted(*args: Any) -> bool:
        on_rabbit.client.set(release_key("t"), "another shell", ex=60)
        return delete(*args)

    monkeypatch.setattr(quarantine, "delete", deleted)
    kept = quarantine.find(on_rabbit.store, "t")
    assert kept is not None
    assert quarantine.send_again(on_rabbit.app, on_rabbit.store, kept)
    assert on_rabbit.sent() == ["t"]
    assert quarantine.find(on_rabbit.store, "t") == kept
    assert on_rabbit.client.get(release_key("t")) == "another shell"


def test_what_somebody_else_has_dealt_with(place: Place) -> None:
    """It was listed, so that is no failure; of what was named it is."""
    tasks = Operations(place.app).quarantine
    for do in (tasks.retry, tasks.delete):
        assert do("t", listed=True).ok
        assert do("t") == Done("t", False, "is not in quarantine")
