"""What is sent over the connections of others."""

from __future__ import annotations

from typing import Any

import pytest
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from celery_graceful.store.client import dropping, send_quickly


class Sent(Connection):
    """A connection that keeps what it would send."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent = b""
        self.packed_by_redis = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self.sent += b"".join(command)

    def send_command(self, *args: Any, **options: Any) -> None:
        self.packed_by_redis = True
        super().send_command(*args, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "latin-1"])
@pytest.mark.parametrize(
    "command",
    [
        ("EVALSHA", "0" * 40, 2, "ключ", "q\x06\x163", 0, -17, ""),
        ("BRPOP", "bell", 0.1),
        ("EVAL", "return 'é'", 0, b"\x00\xff"),
        ("EXISTS", *(f"key {number}" for number in range(1000))),
    ],
)
def test_it_is_what_redis_py_would_send(command: tuple[Any, ...], encoding: str) -> None:
    ours, theirs = (Sent(encoding=encoding, encoding_errors="replace") for _ in range(2))
    send_quickly(ours, *command)
    theirs.send_command(*command)
    assert ours.sent == theirs.sent
    text_alone = not any(isinstance(part, bytes) for part in command)
    assert ours.packed_by_redis is not (text_alone and encoding != "latin-1")


@pytest.mark.parametrize(
    "connection_class", [Connection, SSLConnection, UnixDomainSocketConnection]
)
def test_who_connects_reads_no_metadata(
    connection_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = vars(connection_class())
    made = dropping(connection_class)
    monkeypatch.setattr("importlib.metadata.version", None)
    ours = vars(made())
    for name in ("driver_info", "lib_name", "lib_version"):
        assert name not in said or ours[name] == said[name]


def test_what_somebody_says_of_the_client_counts() -> None:
    assert said_by(dropping(Connection)(lib_name="theirs", lib_version="7")) == ("theirs", "7")


def said_by(connection: Any) -> tuple[str, str]:
    """Name and version of its client, in any version of redis-py."""
    info = getattr(connection, "driver_info", None)
    if info is not None:
        return info.formatted_name, info.lib_version
    return connection.lib_name, connection.lib_version


def test_a_connection_that_takes_no_driver_info_is_not_given_one() -> None:
    class Theirs(Connection):
        def __init__(self, host: str = "localhost", health_check_interval: int = 0) -> None:
            super().__init__(host=host)

    assert dropping(Theirs)().host == "localhost"
