"""How chords of plain Celery hang, or run their body too early or twice: what tracking is for."""

from __future__ import annotations

from collections.abc import Iterator

import celery
import pytest
from celery import chain, chord, group, states

from tests.conftest import RedisDB
from tests.support.chords import ByHand, Killed, by_hand, claim_runs_out, dies, stands_still

#: Since 5.7 parts are counted by a script that knows whose they are.
BY_SCRIPT = tuple(map(int, celery.__version__.split(".")[:2])) >= (5, 7)


@pytest.fixture
def plain(redis_db: RedisDB) -> Iterator[ByHand]:
    with by_hand(redis_db, tracked=False) as one:
        yield one


def test_a_lost_header(plain: ByHand) -> None:
    """The chord waits for ever."""
    body, first, _, third = plain.chord(3)
    plain.ends(first)
    plain.ends(third)
    assert plain.given(body) == []
    assert plain.app.backend.get_state(body) == states.PENDING


def test_a_dispatcher_that_dies(plain: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends the body unless that header comes again, and 5.7 wants that to come late."""
    body, first, second = plain.chord(2)
    plain.ends(first)
    with monkeypatch.context() as patch:
        patch.setattr(type(plain.app.backend), "_unpack_chord_result", dies)
        with pytest.raises(Killed):
            plain.ends(second)
    assert plain.given(body) == []
    plain.ends(second)  # delivered again
    if BY_SCRIPT:
        assert plain.given(body) == []
        claim_runs_out(plain, second.group)
        plain.ends(second)
    assert plain.given(body) == [[1, 1]]


def test_a_dispatcher_that_stands_still(plain: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is sent twice where the last header comes again while it is being sent.

    Since 5.7 only where that takes longer than its claim lasts: it is renewed before.
    """
    body, first, second = plain.chord(2)
    plain.ends(first)
    stands_still(plain, monkeypatch, second)
    plain.ends(second)
    assert plain.given(body) == [[1, 1], [1, 1]]


def test_a_group_in_a_chain_of_the_header(plain: ByHand) -> None:
    """Before 5.7 its size overwrites that of the chord (celery#8182): it ends too early."""
    inner = chain(plain.add.s(3), group(plain.add.s(), plain.add.s()))
    body = plain.apply(chord([plain.add.s(1), plain.add.s(2), inner], plain.add.s()))
    first, second, third = plain.take()
    plain.ends(third)
    left, backend = plain.take(), plain.app.backend
    size = int(backend.client.get(backend.get_key_for_group(first.group, ".s")))
    if not BY_SCRIPT:  # first and second are taken for all
        assert size == 2
        return
    plain.ends(first)
    plain.ends(second)
    assert plain.given(body) == []
    for one in left:
        plain.ends(one)
    assert plain.given(body) == [[1, 1, [1, 1]]]


def test_a_header_that_counts_twice(plain: ByHand) -> None:
    """Where it is delivered again, and returns something else: before 5.7."""
    body, first, second, _ = plain.chord(3)
    plain.ends(first, 1)
    plain.ends(first, 2)
    plain.ends(second, 3)
    assert plain.given(body) == ([] if BY_SCRIPT else [[1, 2, 3]])
