"""Several who look for keys ask Redis together."""

import pytest

from celery_graceful.store.presence import Presence


@pytest.fixture
def asked():
    return []


@pytest.fixture
def presence(redis_db, asked):
    def count(keys):
        asked.append(set(keys))
        return redis_db.client.exists(*keys)

    return Presence(count)


@pytest.mark.parametrize("there", [(), "a", "b", "c", "ac", "bc", "abc"])
def test_which_are_there(presence, redis_db, there):
    for key in there:
        redis_db.client.sadd(key, "something")
    presence.any_of("abc", 0)
    assert [presence.any_of([key], 60) for key in "abc"] == [key in there for key in "abc"]
    assert presence.any_of("abc", 60) == bool(there)


def test_who_asks_asks_for_all(presence, redis_db, asked):
    assert not presence.any_of("a", 60)
    assert not presence.any_of("b", 60), "of which nothing was known"
    redis_db.client.set("a", "")
    assert not presence.any_of("a", 60), "it was asked for with b"
    assert not presence.any_of("b", 0)
    assert presence.any_of("a", 60), "and now"
    assert asked[:3] == [{"a"}, {"a", "b"}, {"a", "b"}]


def test_what_is_never_there_is_named_seldom(redis_db):
    """Of many keys most are not there: one command says so, and of which that is."""
    asked = []

    def count(keys):
        asked.append(len(keys))
        return redis_db.client.exists(*keys)

    presence, names = Presence(count), "abcdefgh"
    assert not presence.any_of(names, 60)
    assert asked == [8]
    redis_db.client.set("c", "")
    redis_db.client.set("h", "")
    assert [presence.any_of(name, 0 if name == "a" else 60) for name in names] == [
        name in "ch" for name in names
    ]
    assert asked[1:] == [8, 255], "which of them is there is asked for once"
    redis_db.client.delete("c")
    assert [presence.any_of(name, 0 if name == "a" else 60) for name in names] == [
        name == "h" for name in names
    ]
    assert asked[3:] == [3 + 6 * 4]
