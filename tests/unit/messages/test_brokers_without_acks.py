"""Where kombu keeps in our memory alone what is not acknowledged, by what a channel is."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Connection
from kombu.transport import filesystem, virtual

from celery_graceful.messages.brokers_without_acks import ends_here, is_kept_here, promise


class AckChannel(filesystem.Channel):
    """Its server hears of acknowledgements, as SQS does."""

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None: ...


class KeepingQoS(virtual.QoS):
    def ack(self, delivery_tag: str) -> None: ...


class QoSChannel(filesystem.Channel):
    QoS = KeepingQoS


def channel(cls: type, folder: Any) -> Any:
    transport = type("Transport", (filesystem.Transport,), {"Channel": cls})
    names = ("data_folder_in", "data_folder_out", "control_folder")
    options = {name: str(folder) for name in names}
    return Connection("localhost", transport=transport, transport_options=options).channel()


@pytest.mark.parametrize(
    ("cls", "expected"),
    [(filesystem.Channel, True), (AckChannel, False), (QoSChannel, False)],
)
def test_a_channel_whose_acknowledgements_nobody_hears(
    cls: type, expected: bool, tmp_path: Any
) -> None:
    found = channel(cls, tmp_path)
    assert is_kept_here(found) is expected
    assert ("kill -9 loses it" in promise(found)) is expected


def test_others() -> None:
    with Connection("memory://") as connection:
        assert ends_here(connection.default_channel)
        assert not is_kept_here(connection.default_channel)


def test_redis(redis_db: Any) -> None:
    for emulated in (True, False):
        options = {"ack_emulation": emulated}
        with Connection(redis_db.url, transport_options=options) as connection:
            assert is_kept_here(connection.default_channel) is not emulated
