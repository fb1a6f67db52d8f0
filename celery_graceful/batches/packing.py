"""Members as they are kept in the store, so that they can be sent again.

Not their messages, which are several times as long, and of a chord many: their signatures, without
id and headers, which ``bind`` gives them. In the serializer of the task, compressed: content type
and encoding in a line of their own, then the signature.
"""

from __future__ import annotations

import zlib
from typing import Any

from celery.canvas import Signature
from kombu import serialization

from celery_graceful.batches.marks import BATCH, Mark, all_of, mark, parts_of

__all__ = ["bind", "load", "pack", "unpack"]

#: Of zlib: the first does nearly as much as the last, in a third of the time.
LEVEL = 1


def pack(app: Any, sig: Any) -> bytes:
    """A signature in bytes.

    Raises:
        kombu.exceptions.EncodeError: Its arguments or options cannot be serialized.
    """
    kind, encoding, data = serialization.dumps(dict(sig), _serializer_of(app, sig))
    if isinstance(data, str):
        data = data.encode(encoding)
    return zlib.compress(f"{kind} {encoding}\n".encode() + data, LEVEL)


def unpack(app: Any, packed: bytes, member: Mark) -> Any:
    """The signature of a member: ``apply_async()`` sends it again, as that member.

    Raises:
        kombu.exceptions.ContentDisallowed: The app does not accept what it was serialized with.
        kombu.exceptions.DecodeError: It cannot be read.
    """
    sig = load(app, packed)
    bind(sig, member, {BATCH: str(member)})
    return sig


def load(app: Any, packed: bytes) -> Any:
    """A signature as it was packed. Raises what ``unpack`` does."""
    head, _, data = zlib.decompress(packed).partition(b"\n")
    kind, encoding = head.decode().split(" ")
    accept = serialization.prepare_accept_content(app.conf.accept_content)
    return Signature.from_dict(serialization.loads(data, kind, encoding, accept=accept), app=app)


def bind(sig: Any, member: Mark, headers: dict[str, str]) -> None:
    """Give a signature its id, which is that of its last task, and its headers.

    Args:
        sig: The signature, without ids; it is changed.
        member: Its name is the id.
        headers: For all of its tasks.
    """
    if parts_of(sig) is None:
        sig.options["task_id"] = member.name
    else:
        sig.freeze(member.name)
    mark(sig, headers)


def _serializer_of(app: Any, sig: Any) -> str:
    """Of all that it is made of: the first that is none of the app's, whose tasks it is for."""
    usual = str(app.conf.task_serializer)
    for part in all_of(sig):
        given = part.options.get("serializer")
        given = given or getattr(app.tasks.get(part.task), "serializer", None)
        if given and given != usual:
            return str(given)
    return usual
