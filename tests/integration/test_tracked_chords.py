"""Chords in the ledger of batches: each ends, and its body runs once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group, states
from celery.canvas import Signature
from celery.result import GroupResult

from celery_graceful.batches.brief_status import standing_of
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.findings import Missing, Named
from celery_graceful.batches.manual_remedies import HeaderRuns, Remedies
from celery_graceful.batches.marks import CHORD, Mark, mark
from celery_graceful.batches.member_part import part_of
from celery_graceful.batches.model import ON_COMPLETE, Due, Outcome, State
from celery_graceful.batches.packing import unpack
from celery_graceful.batches.producers import LEFT_AFTER
from celery_graceful.batches.repair import Repair
from celery_graceful.batches.sent_in_part import say_unsent
from celery_graceful.batches.whereabouts import broker_of
from tests.conftest import RedisDB
from tests.support.chords import ByHand, Killed, by_hand, dies, stands_still
from tests.support.workers import TIMEOUT, wait_until


@pytest.fixture
def tracked(redis_db: RedisDB) -> Iterator[ByHand]:
    with by_hand(redis_db, tracked=True) as one:
        yield one


def ended(one: ByHand, body: str, *given: Any) -> None:
    """The body runs once, and with it the chord has ended."""
    (context,) = one.bodies(body)
    assert context.args[0] == list(given)
    one.ends(context)
    status = one.status(context.graceful_batch_callback.partition("/")[0])
    assert status.state is State.DONE, status
    assert status.pending == 0
    assert one.take() == []
    assert one.ledger.outbox() == []


def test_a_chord(tracked: ByHand) -> None:
    """It is a batch, under the id of its group; its body is sent by Celery."""
    body, *contexts = tracked.chord(3)
    status = tracked.status(contexts[0].group)
    assert (status.kind, status.state, status.total) == ("chord", State.SENT, 3)
    for number, context in enumerate(contexts):
        tracked.ends(context, number)
    assert tracked.status(contexts[0].group).callbacks == {ON_COMPLETE: "published"}
    ended(tracked, body, 0, 1, 2)


def test_a_header_that_takes_its_time(tracked: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent as it is made, as Celery does."""
    monkeypatch.setattr("celery_graceful.batches.chord_groups.MOMENT", 0.0)
    waiting = []

    def header() -> Iterator[Any]:
        for number in range(8):
            waiting.append(tracked.client.llen("celery"))
            yield tracked.add.s(number)

    body = tracked.apply(chord(header(), tracked.add.s()))
    assert waiting[-1] > 0
    for context in tracked.take():
        tracked.ends(context, context.args[0])
    ended(tracked, body, *range(8))


def test_a_sender_that_dies(tracked: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it lives, however slowly it sends; then it is not heard of any more."""
    for name in ("MOMENT", "SAY_EVERY"):
        monkeypatch.setattr(f"celery_graceful.batches.chord_groups.{name}", 0.01)

    def heard() -> float:
        (status,) = tracked.ledger.statuses(tracked.ledger.stood_still(0.0))
        return status.heard or 0.0

    sends = Signature.apply_async

    def stops(signature: Any, *args: Any, **options: Any) -> Any:
        if tracked.client.llen("celery") == 0:
            return sends(signature, *args, **options)
        first = heard()
        wait_until(lambda: heard() > first, "it says so again")
        raise LookupError("killed")

    monkeypatch.setattr(Signature, "apply_async", stops)
    header = [tracked.add.s(number) for number in range(3)]
    sent = chord(header, tracked.add.s().set(task_id="body"))
    with pytest.raises(LookupError):
        tracked.apply(sent)
    (status,) = tracked.ledger.statuses(tracked.ledger.stood_still(0.0))
    assert status.state == "sending"
    assert status.heard is not None
    assert not status.is_left(status.heard + LEFT_AFTER - 1)
    assert status.is_left(status.heard + LEFT_AFTER)
    said = say_unsent(status, status.heard + LEFT_AFTER)
    assert said.startswith(f"Chord {status.id} is not complete, and no callback of it comes: its ")
    assert "Send another one like it" in said
    tracked.client.hdel(f"graceful:batch:{status.id}", "sender")  # as older versions
    (status,) = tracked.ledger.statuses(tracked.ledger.stood_still(0.0))
    assert not status.is_left(status.moved + 10 * LEFT_AFTER)
    # Said to be complete, it is gone on with: what was registered, and the body.
    monkeypatch.undo()
    remedies = Remedies(tracked.app, tracked.ledger, tracked.publish)
    (first,) = tracked.take()
    tracked.ends(first, 0)
    remedies.resend(status.id, tracked.ledger.members_pending(status.id), close=True)
    for context in tracked.take():
        tracked.ends(context, context.args[0])
    ended(tracked, "body", 0, 1, 2)


def test_a_store_beside_the_broker(redis_db: RedisDB) -> None:
    """It says which broker its tasks are sent to: workers of that one look for what is missing."""
    with by_hand(redis_db, tracked=True) as one:
        one.app.conf.graceful_store = redis_db.backend_url
        one.apply(chord([one.add.s(1)], one.add.s()))
        (context,) = one.take()
        standing = standing_of(one.ledger, context.group)
        assert standing is not None
        assert standing.broker == broker_of(one.app) != ""


@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_a_group_that_somebody_ends_while_it_is_sent(
    how: str, tracked: ByHand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it is sent, as Celery does."""
    monkeypatch.setattr("celery_graceful.batches.chord_groups.CHUNK", 2)
    add, calls = ChordLedger.add, []

    def ends(ledger: ChordLedger, batch: str, *args: Any, **options: Any) -> int:
        calls.append(batch)
        if len(calls) == 2:
            getattr(ledger, how)(batch)
        return add(ledger, batch, *args, **options)

    monkeypatch.setattr(ChordLedger, "add", ends)
    tracked.apply(group([tracked.add.s(i) for i in range(5)]))
    assert len(tracked.take()) == 5
    assert "is sent, and not all of it is tracked" in caplog.text


def test_a_group_that_is_sent_over_a_connection_of_its_own(tracked: ByHand) -> None:
    with tracked.app.connection_for_write() as connection:
        group([tracked.add.s(i) for i in range(2)]).apply_async(connection=connection)
    assert len(tracked.take()) == 2


def test_a_body_that_is_sent_by_hand_waits_for_its_header(tracked: ByHand) -> None:
    body, first, second = tracked.chord(2)
    tracked.ends(first, 1)
    remedies = Remedies(tracked.app, tracked.ledger, lambda due: None)
    with pytest.raises(HeaderRuns, match="has not ended, so there is nothing to give"):
        remedies.callback(first.group, ON_COMPLETE, force=True)
    tracked.ends(second, 2)
    ended(tracked, body, 1, 2)


def test_a_group(tracked: ByHand) -> None:
    """It has no body, and ends with its last task."""
    tracked.apply(group(tracked.add.s(i) for i in range(3)))
    contexts = tracked.take()
    for context in contexts:
        assert tracked.status(context.group).state is State.SENT
        tracked.ends(context)
    assert tracked.status(contexts[0].group).state is State.DONE


def test_a_group_in_a_chain_of_a_group(tracked: ByHand) -> None:
    """Nobody would say when it has ended: it is none of the members."""
    inner = chain(tracked.add.s(3), group(tracked.add.s(), tracked.add.s()))
    tracked.apply(group(tracked.add.s(1), inner))
    first, second = tracked.take()
    assert tracked.status(first.group).total == 1
    tracked.ends(second)
    assert len(tracked.take()) == 2
    tracked.ends(first)
    assert tracked.status(first.group).state is State.DONE


def test_one_that_is_sent_again_while_it_runs(
    tracked: ByHand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tasks have the ids that they had: who ends one would end the other."""
    monkeypatch.setattr("celery_graceful.batches.chord_groups.LAST_ENDS", 0.1)
    again = chord([tracked.add.s(i).set(headers={"mine": "1"}) for i in range(2)], tracked.add.s())
    again.freeze()
    tracked.apply(again)
    first = tracked.take()
    tracked.apply(again)
    assert "it is not tracked this time" in caplog.text
    second = tracked.take()
    assert [(one.id, one.mine) for one in second] == [(one.id, "1") for one in first]
    assert [part_of(one.__dict__) for one in second] == [None, None]
    assert part_of(first[0].__dict__) is not None
    assert tracked.status(first[0].group).pending == 2
    for context in first:
        tracked.ends(context)
    assert tracked.status(first[0].group).callbacks == {ON_COMPLETE: "published"}


def test_a_lost_header(tracked: ByHand) -> None:
    """What is sent again is what was lost, and the chord goes on."""
    body, first, lost, third = tracked.chord(3)
    tracked.ends(first, 1)
    tracked.ends(third, 3)
    (pending,) = tracked.ledger.members_pending(first.group)
    packed = tracked.ledger.messages(first.group, [pending])[pending]
    unpack(tracked.app, packed, Mark(first.group, pending)).apply_async()
    (again,) = tracked.take()
    assert (again.id, again.args, again.group_index) == (lost.id, lost.args, lost.group_index)
    tracked.ends(again, 2)
    ended(tracked, body, 1, 2, 3)


def test_a_dispatcher_that_dies(tracked: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger has the body sent as soon as the header that comes again has ended."""
    body, first, second = tracked.chord(2)
    tracked.ends(first)
    with monkeypatch.context() as patch:
        patch.setattr(type(tracked.app.backend), "_unpack_chord_result", dies)
        with pytest.raises(Killed):
            tracked.returns(second)
    tracked.ends(tracked.comes_again(second))
    ended(tracked, body, 1, 1)


def test_a_dispatcher_that_stands_still(tracked: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two bodies one runs."""
    body, first, second = tracked.chord(2)
    tracked.ends(first)
    stands_still(tracked, monkeypatch, second)
    tracked.ends(second)
    ended(tracked, body, 1, 1)


def test_who_sent_the_body_dies_before_it_says_so(
    tracked: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to send it with, and nothing is done."""
    body, first, second = tracked.chord(2)
    tracked.ends(first)
    with monkeypatch.context() as patch:
        patch.setattr(ChordLedger, "sent_by_celery", lambda *args, **kwargs: None)
        tracked.ends(second)
    assert tracked.status(first.group).callbacks == {ON_COMPLETE: "published"}
    ended(tracked, body, 1, 1)


def test_a_body_that_has_ended_before_its_header(
    tracked: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sent it died at once; the header comes again when the body has run."""
    body, first, second = tracked.chord(2)
    tracked.ends(first)
    with monkeypatch.context() as patch:
        patch.setattr(ChordLedger, "sent_by_celery", dies)
        patch.setattr(type(tracked.app.backend), "_chord_cleanup_script", dies, raising=False)
        with pytest.raises(Killed):
            tracked.returns(second)
    (context,) = tracked.bodies(body)
    tracked.ends(context)
    tracked.ends(tracked.comes_again(second))
    assert tracked.bodies(body) == []
    assert tracked.status(first.group).state is State.DONE


def test_a_body_that_is_lost(tracked: ByHand) -> None:
    """Its results are gone: its errbacks run."""
    body, *contexts = tracked.chord(2, errback=True)
    for context in contexts:
        tracked.ends(context)
    tracked.take()
    for _ in range(2):  # once it may have been sent
        tracked.publish(tracked.ledger.fire(contexts[0].group, ON_COMPLETE))
    assert len(tracked.failed) == 1
    assert tracked.app.backend.get_state(body) == states.FAILURE
    assert tracked.status(contexts[0].group).state is State.DONE


def test_a_body_that_was_looked_for(tracked: ByHand) -> None:
    """It was sent, and is nowhere: its errbacks run at the first repair."""
    body, *contexts = tracked.chord(2, errback=True)
    for context in contexts:
        tracked.ends(context)
    tracked.take()
    group_id = contexts[0].group
    tracked.ledger.note_missing(group_id, 1)
    assert tracked.status(group_id).missing == 1
    now = standing_of(tracked.ledger, group_id)
    assert now is not None
    lost = Missing(f"callback:{ON_COMPLETE}", "in no queue")
    repair = Repair(tracked.app, tracked.ledger, tracked.publish)
    assert repair.mend(group_id, now, [lost], lambda task: True).failed == [lost.member]
    assert len(tracked.failed) == 1
    assert tracked.app.backend.get_state(body) == states.FAILURE
    stands = tracked.status(group_id)
    assert (stands.state, stands.missing) == (State.DONE, 0)


def test_a_group_in_a_chain_of_the_header(tracked: ByHand) -> None:
    """It is one member, and ends with the header."""
    inner = chain(tracked.add.s(3), group(tracked.add.s(), tracked.add.s()))
    body = tracked.apply(chord([tracked.add.s(1), tracked.add.s(2), inner], tracked.add.s()))
    first, second, third = tracked.take()
    tracked.ends(third)
    left = tracked.take()
    tracked.ends(first)
    tracked.ends(second)
    assert tracked.given(body) == []
    for one in left:
        assert tracked.status(first.group).pending == 1
        tracked.ends(one)
    ended(tracked, body, 1, 1, [1, 1])


def test_a_dispatcher_that_dies_with_a_group_in_the_header(
    tracked: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task ends that member: all parts are counted, as is seen when one comes again."""
    inner = chain(tracked.add.s(3), group(tracked.add.s(), tracked.add.s()))
    body = tracked.apply(chord([tracked.add.s(1), inner], tracked.add.s()))
    first, second = tracked.take()
    tracked.ends(first)
    tracked.ends(second)
    third, fourth = tracked.take()
    tracked.ends(third)
    with monkeypatch.context() as patch:
        patch.setattr(GroupResult, "restore", dies)
        with pytest.raises(Killed):
            tracked.returns(fourth)
    tracked.ends(tracked.comes_again(fourth))
    tracked.publish(tracked.ledger.outbox())
    ended(tracked, body, 1, [1, 1])


def test_a_group_in_a_chain_of_a_header_that_fails(tracked: ByHand) -> None:
    """It ends with the header: what becomes of its tasks nobody waits for."""
    inner = chain(tracked.add.s(3), group(tracked.add.s(), tracked.add.s()))
    body = tracked.apply(chord([tracked.add.s(1), inner], tracked.add.s()))
    first, second = tracked.take()
    tracked.ends(second)
    tracked.app.backend.mark_as_failure(first.id, ValueError("no"), request=first)
    tracked.acknowledged(first, Outcome.FAILED)
    for one in tracked.take():
        tracked.ends(one)
    status = tracked.status(first.group)
    assert (status.state, status.failed, status.revoked) == (State.DONE, 1, 1)
    assert tracked.given(body) == []


def test_a_chord_in_a_chain_of_the_header(tracked: ByHand) -> None:
    """It is part of a member, which ends with the last task of the chain."""
    inner = chain(tracked.add.s(3), group(tracked.add.s(), tracked.add.s()), tracked.add.s())
    body = tracked.apply(chord([tracked.add.s(1), inner], tracked.add.s()))
    first, second = tracked.take()
    tracked.ends(first)
    tracked.ends(second)
    for one in tracked.take():
        assert tracked.status(first.group).pending == 1
        tracked.ends(one)
    (last,) = tracked.take()
    tracked.ends(last, 7)
    ended(tracked, body, 1, 7)


def test_a_body_that_is_a_chord(tracked: ByHand) -> None:
    """It is in the ledger itself, and the first one ends when it is sent."""
    pair = [tracked.add.si(1), tracked.add.si(2)]
    body = tracked.apply(chain(group(pair), group(pair), group(pair), tracked.add.s()))
    contexts, chords = tracked.take(), set()
    for _ in range(3):
        assert len(contexts) == 2
        for context in contexts:
            tracked.ends(context)
        chords.add(context.group)
        contexts = tracked.take()
    (last,) = contexts
    assert last.id == body
    tracked.ends(last)
    assert len(chords) == 3
    assert [tracked.status(one).state for one in chords] == [State.DONE] * 3


def test_a_body_that_is_a_group(tracked: ByHand) -> None:
    """Each of its tasks runs."""
    tracked.apply(chord([tracked.add.s(1)], group(tracked.add.s() for _ in range(3))))
    (context,) = tracked.take()
    tracked.ends(context)
    bodies = tracked.take()
    assert [one.args for one in bodies] == [[[1]]] * 3
    assert len({one.group for one in bodies}) == 1
    for one in bodies:
        tracked.ends(one)
    assert tracked.status(context.group).state is State.DONE


def test_a_body_that_has_the_id_of_its_header(tracked: ByHand) -> None:
    """As in 5.6: it is known by an id of its own, and what is left of the header is not lost."""
    body = tracked.apply(chord([tracked.add.s(0), tracked.add.s(1)], tracked.add.s()))
    first, second = tracked.take()
    tracked.ends(first, 0)
    several = group(tracked.add.si(2), tracked.add.si(3))
    mark(several, {CHORD: first.group})
    several.options["task_id"] = first.group
    tracked.apply(several)
    assert tracked.status(first.group).pending == 1
    assert tracked.status(f"body-{first.group}").total == 2
    for one in tracked.take():
        tracked.ends(one)
    assert tracked.status(f"body-{first.group}").state is State.DONE
    tracked.ends(second, 1)
    ended(tracked, body, 0, 1)


def test_a_header_that_comes_again(tracked: ByHand) -> None:
    """It counts once."""
    body, first, second, third = tracked.chord(3)
    tracked.returns(first, 1)
    tracked.ends(tracked.comes_again(first), 1)
    tracked.ends(second, 3)
    assert tracked.given(body) == []
    tracked.ends(third, 4)
    ended(tracked, body, 1, 3, 4)


def test_a_header_that_returns_something_else(tracked: ByHand) -> None:
    """That does not count twice, either."""
    body, first, second, third = tracked.chord(3)
    tracked.returns(first, 1)
    tracked.ends(tracked.comes_again(first), 2)
    tracked.ends(second, 3)
    assert tracked.given(body) == []
    tracked.ends(third, 4)
    (context,) = tracked.bodies(body)
    assert context.args[0][1:] == [3, 4]


def test_a_header_that_fails(tracked: ByHand) -> None:
    """The errbacks of the body run once, by Celery."""
    body, first, second = tracked.chord(2, errback=True)
    tracked.ends(first)
    tracked.app.backend.mark_as_failure(second.id, ValueError("no"), request=second)
    tracked.acknowledged(second, Outcome.FAILED)
    assert len(tracked.failed) == 1
    assert tracked.app.backend.get_state(body) == states.FAILURE
    assert tracked.status(first.group).state is State.DONE
    assert tracked.ledger.outbox() == []


def test_a_header_that_leaves_no_result(tracked: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery waits for ever for one that was ignored or rejected: here the errbacks run."""
    patience = "celery_graceful.batches.chord_gathering.PATIENCE"
    monkeypatch.setattr(patience, TIMEOUT)
    body, first, second = tracked.chord(2, errback=True)
    tracked.ends(first)
    tracked.acknowledged(second)
    due = Due(first.group, ON_COMPLETE)
    assert tracked.ledger.outbox() == [due]
    assert tracked.failed == []
    monkeypatch.setattr(patience, 0.0)
    tracked.publish([due])
    assert len(tracked.failed) == 1
    assert tracked.app.backend.get_state(body) == states.FAILURE
    assert tracked.status(first.group).state is State.DONE


def test_a_header_that_was_lost_with_its_result_stored(tracked: ByHand) -> None:
    """It does not run again: its result is counted."""
    body, first, second = tracked.chord(2)
    tracked.ends(second, 2)
    tracked.app.backend.store_result(first.id, 1, states.SUCCESS)
    standing = standing_of(tracked.ledger, first.group)
    assert standing is not None
    repair = Repair(tracked.app, tracked.ledger, tracked.publish)
    done = repair.mend(first.group, standing, [Named(first.id)], lambda name: True)
    assert done.ended == [first.id]
    ended(tracked, body, 1, 2)
