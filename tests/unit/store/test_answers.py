"""What errors of redis-py say."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError, ReadOnlyError

from celery_graceful.store.answers import is_of_a_replica, once_more


class Odd(ConnectionError):
    """None can be made of what one was made of."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port}")


@pytest.mark.parametrize("raised", [ConnectionError("closed"), Odd("host", 1)])
def test_who_hears_of_it_in_another_thread_hears_why(raised: Exception) -> None:
    raised.__cause__ = ReadOnlyError("You can't write against a read only replica.")
    copy = once_more(raised)
    assert copy is not None
    assert copy is not raised
    assert isinstance(copy, ConnectionError)
    assert str(copy) == str(raised)
    assert is_of_a_replica(copy)
