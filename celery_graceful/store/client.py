"""A Redis client that never takes a late answer for the answer to another question.

redis-py gives a connection back to its pool whatever happened on it. One to a master that Sentinel
named stays open when an answer does not come in time; one of any kind does when an exception from
outside comes between question and answer. From then on each question gets the answer to the one
before it. Here a connection on which anything failed, but for an answer that says so, is closed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any

from celery_graceful.store.answers import is_answer, is_demoted
from celery_graceful.store.connections import sentinel_pools, take_connection
from celery_graceful.store.together import Together, TornAway, ask
from celery_graceful.system.native import Lock

__all__ = [
    "address_of",
    "dropping",
    "is_plain",
    "listening",
    "make_client",
    "send_quickly",
]


#: Connections of one client, at most.
MOST = 10

#: Seconds for which who shares one waits longer than for an answer.
SLACK = 10.0

#: What is on the wire as Python shows it.
_SHOWN = frozenset((str, int, float))


def _takes_health_checks(connection_class: Any) -> bool:
    classes = (connection_class, *connection_class.__bases__)
    return any("health_check_interval" in signature(one.__init__).parameters for one in classes)


@cache
def _driver_info() -> dict[str, Any]:
    """What a connection says of its client, if each would read it from the package's metadata.

    That is half of the processor time of a connect with redis-py 7 and later, and a tenth of a MiB
    in each thread that connects.
    """
    try:
        from redis.driver_info import DriverInfo
    except ImportError:
        return {}
    return {"driver_info": DriverInfo()}


def _takes_driver_info(connection_class: Any) -> bool:
    for one in connection_class.__mro__:
        if "__init__" in vars(one):
            parameters = signature(one.__init__).parameters
            if "driver_info" in parameters:
                return True
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                break
    return False


def _informed(connection_class: Any) -> Any:
    common = _driver_info()

    class Informed(connection_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if not kwargs.keys() & {"lib_name", "lib_version"}:
                kwargs = common | kwargs
            super().__init__(*args, **kwargs)

    return Informed


@cache
def dropping(connection_class: Any) -> Any:
    """A class of connections that are closed when an answer does not come, whoever asked.

    redis-py does so by default, but not for those of Sentinel. Only for those of Sentinel it
    connects anew when a master says that it is none any more; to Celery, that answer would be the
    end of the worker.

    Args:
        connection_class: redis-py's.
    """

    base: Any = connection_class
    if _takes_driver_info(base):
        base = _informed(base)

    class Dropping(base):
        if _takes_health_checks(connection_class):  # kombu 5.5 looks no deeper than we do there

            def __init__(
                self, *args: Any, health_check_interval: float | None = None, **kwargs: Any
            ) -> None:
                if health_check_interval is not None:
                    kwargs["health_check_interval"] = health_check_interval
                super().__init__(*args, **kwargs)

        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except BaseException as exc:
                if is_demoted(exc):
                    from redis.exceptions import ConnectionError

                    self.disconnect()
                    raise ConnectionError(f"no master any more: {exc}") from exc
                # PubSub says that it wants to read on.
                if options.get("disconnect_on_error", True) and not is_answer(exc):
                    self.disconnect()
                raise

    Dropping.__name__ = Dropping.__qualname__ = f"Dropping{connection_class.__name__}"
    return Dropping


def is_plain(client: Any) -> bool:
    """Whether it is a client of redis-py's usual kind, with usual connections."""
    from redis import Redis
    from redis.connection import (
        Connection,
        ConnectionPool,
        SSLConnection,
        UnixDomainSocketConnection,
    )

    pool = client.connection_pool
    return (
        type(client) is Redis
        and type(pool) is ConnectionPool
        and pool.connection_class in (Connection, SSLConnection, UnixDomainSocketConnection)
        and getattr(pool, "cache", None) is None
    )


def make_client(pool: Any, timeout: float, **parameters: Any) -> Any:
    """A redis client whose callers share a connection where its pool has none left for them.

    kombu allows ten; hundreds of tasks may end, or stop, at once in a worker of threads or
    greenlets. What they ask goes together: nobody has to wait until all others had a turn.

    Args:
        pool: redis-py's connection pool, of its own.
        timeout: Seconds for a connect, and for each answer.
        parameters: More of the pool's connection parameters.
    """
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    limits: dict[str, Any] = {"socket_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
    if "path" not in pool.connection_kwargs:  # a unix socket takes no such argument
        limits["socket_connect_timeout"] = timeout
    pool.connection_kwargs.update(limits, retry_on_timeout=False, **parameters)
    pool.connection_class = dropping(pool.connection_class)
    # Who names the master gets no more time, and no rests between several tries.
    for asked in sentinel_pools(pool):
        asked.connection_kwargs.update(limits)
    return _client_class()(pool, timeout)


def address_of(pool: Any) -> str:
    """Where the connections of a pool go: host and port, or a path."""
    kwargs = pool.connection_kwargs
    if "path" in kwargs:
        return str(kwargs["path"])
    if hasattr(pool, "sentinel_manager"):
        host, port = pool.master_address or ("no address yet", "")
        return f"{pool.service_name} of Sentinel, {host}:{port}".rstrip(":")
    return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"


def listening(connection: Any) -> dict[str, bool]:
    """How to read an answer on a connection that may be told of something instead.

    In the third protocol redis-py would wait for an answer behind it.
    """
    is_third = str(getattr(connection, "protocol", 2)) == "3"
    return {"push_request": True} if is_third else {}


@cache
def _client_class() -> Any:  # redis is not imported where nobody asks it
    from redis import Redis
    from redis.exceptions import ConnectionError, NoScriptError, TimeoutError

    class Client(Redis):
        def __init__(self, pool: Any, timeout: float) -> None:
            super().__init__(connection_pool=pool)
            most = min(pool.max_connections, MOST)
            #: Of those that have a connection to themselves; one is left for all others.
            self._turns = threading.BoundedSemaphore(max(0, most - 1))
            #: By the process that it belongs to.
            self._together: dict[int, Together] = {}
            self._lock = Lock()
            #: Who asks for all hears of a time-out. What is asked twice may be counted twice.
            self._patience = timeout + SLACK

        def execute_command(self, *args: Any, **options: Any) -> Any:
            """Ask, once more at once if the connection was lost; never after a time-out."""
            if not self._turns.acquire(blocking=False):
                return self._ask_with_others(args, options)
            try:
                try:
                    return self._ask(args, options)
                except ConnectionError:
                    return self._ask(args, options)
            finally:
                self._turns.release()

        def run_script(self, sha: str, text: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
            """Run a script, whether the server knows it or not."""
            try:
                return self.evalsha(sha, len(keys), *keys, *args)
            except NoScriptError:
                return self.eval(text, len(keys), *keys, *args)

        def _ask(self, args: Any, options: Any) -> Any:
            pool = self.connection_pool
            connection = take_connection(pool)
            try:
                connection.send_command(*args)
                return self.parse_response(connection, args[0], **options)
            except BaseException as exc:
                if not is_answer(exc):
                    connection.disconnect()
                    pool.disconnect(inuse_connections=False)  # they go to the same server
                raise
            finally:
                pool.release(connection)

        def _ask_with_others(self, args: Any, options: Any) -> Any:
            command = _packed(self.connection_pool.get_encoder().encode, args)
            try:
                answer = ask(self._shared, command)
            except (ConnectionError, TornAway):
                try:
                    answer = ask(self._shared, command)
                except TornAway as exc:
                    raise TimeoutError("who asked for several was stopped, again") from exc
            callback = self.response_callbacks.get(args[0])
            return answer if callback is None else callback(answer, **options)

        def _shared(self) -> Together:
            pid, pool = os.getpid(), self.connection_pool
            with self._lock:
                together = self._together.get(pid)
                if together is None or together.stuck:
                    together = self._together[pid] = Together(pool, self._patience)
            return together

    return Client


def _packed(encode: Callable[[Any], bytes], args: Sequence[Any]) -> bytes:
    """A command as it is sent."""
    words = [encode(word) for word in (*args[0].split(), *args[1:])]
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(w), w) for w in words]))


def send_quickly(connection: Any, *command: Any) -> None:
    """As ``connection.send_command``, in a third of the time.

    Args:
        connection: One of redis-py's.
        command: Its name, keys and arguments.
    """
    if connection.encoder.encoding.lower() == "utf-8" and _SHOWN.issuperset(map(type, command)):
        parts = [b"*%d\r\n" % len(command)]
        for part in command:
            said = str(part).encode(errors=connection.encoder.encoding_errors)
            parts.append(b"$%d\r\n%b\r\n" % (len(said), said))
        connection.send_packed_command([b"".join(parts)])
    else:
        connection.send_command(*command)
