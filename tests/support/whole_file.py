"""Messages of kombu's file transport that are there as a whole.

Who sends one writes into the file that others find already: a worker that looks in that moment
reads a part of it, and ends by that.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from time import monotonic
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

__all__ = ["put"]


def put(channel: filesystem.Channel, queue: str, payload: Any, **_: Any) -> None:
    """In the place of ``filesystem.Channel._put``."""
    folder = Path(channel.data_folder_out)
    part = folder / f"{uuid.uuid4()}.part"
    part.write_text(dumps(payload))
    part.rename(folder / f"{round(monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg")
