"""What an error of redis-py says: of an answer, of the way to the server, or of that server.

redis is not imported where nobody asks it.
"""

from __future__ import annotations

__all__ = [
    "is_answer",
    "is_demoted",
    "is_forbidden",
    "is_goodbye",
    "is_of_a_cluster",
    "is_of_a_replica",
    "is_of_redis",
    "is_timeout",
    "is_unknown_script",
    "no_answer",
    "once_more",
]


def is_answer(exc: BaseException) -> bool:
    """Whether the server has said this, and its connection can be used on."""
    from redis.exceptions import ResponseError

    return isinstance(exc, ResponseError)


def is_goodbye(exc: BaseException) -> bool:
    """Whether the server closes the connection after this answer: it was sent too much at once."""
    return is_answer(exc) and "Protocol error" in str(exc)


def is_of_redis(exc: BaseException) -> bool:
    """Whether it is about a Redis: what one has answered, or that none was reached."""
    from redis.exceptions import RedisError

    return isinstance(exc, RedisError)


def is_of_a_cluster(exc: BaseException) -> bool:
    """Whether a server of a Redis Cluster says that it does not have all of these keys together."""
    from redis.exceptions import AskError, ClusterCrossSlotError

    text = str(exc)
    return isinstance(exc, (AskError, ClusterCrossSlotError)) or (
        # Of another database, of a script, and of one before Redis 7.
        is_answer(exc)
        and ("in cluster mode" in text or "to the same slot" in text or "non local key" in text)
    )


def is_unknown_script(exc: BaseException) -> bool:
    """Whether the server has to be given the text of a script, as it is new or was restarted."""
    from redis.exceptions import NoScriptError

    return isinstance(exc, NoScriptError)


def is_timeout(exc: BaseException) -> bool:
    """Whether no answer came in time."""
    from redis.exceptions import TimeoutError

    return isinstance(exc, TimeoutError)


def no_answer(seconds: float) -> Exception:
    """The error of who has waited for as long as a server may take."""
    from redis.exceptions import TimeoutError

    return TimeoutError(f"No answer in {seconds:g} s")


def once_more(exc: BaseException) -> Exception | None:
    """Another error like one of redis-py's, for another thread: to raise one writes to it."""
    from redis.exceptions import ConnectionError, RedisError

    if not isinstance(exc, RedisError):
        return None
    try:
        one: Exception = type(exc)(*exc.args)
    except TypeError:
        one = ConnectionError(str(exc))
    one.__cause__ = exc.__cause__  # which may say that the server is no master
    return one


def is_forbidden(exc: BaseException) -> bool:
    """Whether the server does not allow it to this user."""
    from redis.exceptions import NoPermissionError

    text = str(exc)
    return is_answer(exc) and (
        isinstance(exc, NoPermissionError)
        # From within a script.
        or "user executing the script can't" in text
        or "NOPERM" in text
    )


def is_demoted(exc: BaseException) -> bool:
    """Whether a server says that it is no master, or not any more: another one is."""
    from redis.exceptions import MasterDownError, ReadOnlyError

    text = str(exc)
    return isinstance(exc, (MasterDownError, ReadOnlyError)) or (
        # Of a script before Redis 7, and of a command that was waiting.
        is_answer(exc) and ("-READONLY" in text or text.startswith("UNBLOCKED"))
    )


def is_of_a_replica(exc: BaseException) -> bool:
    """Whether a connection was closed since its server is no master: it was asked to write."""
    return exc.__cause__ is not None and is_demoted(exc.__cause__)
