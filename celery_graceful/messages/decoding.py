"""JSON, decoded as kombu does it, in fewer steps; and not twice where that can be spared."""

from __future__ import annotations

from json import JSONDecoder
from json.scanner import make_scanner
from typing import Any

from kombu.message import Message
from kombu.serialization import registry
from kombu.utils import json

__all__ = ["decoded", "loads", "payload_of", "unseen_of"]

_JSON = "application/json"

#: kombu's looks at each object for a type of its own.
_with_types = JSONDecoder(object_hook=json.object_hook).decode
_scan = make_scanner(JSONDecoder())  # type: ignore[arg-type]

#: Types of values that nobody can change.
_FIXED = frozenset((str, int, float, bool, type(None)))
_NOTHING = frozenset((type(None),))


def loads(text: str) -> Any:
    """As ``kombu.utils.json.loads``, with its types only where they may be.

    Raises:
        ValueError: It is no JSON.
    """
    if "__type__" not in text and "\\u00" not in text:  # nor in other words
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            pass
        else:
            if end == len(text):
                return value
    return _with_types(text)


def decoded(body: Any, content_type: Any, encoding: Any, accept: Any) -> Any:
    """What kombu decodes it to.

    Args:
        body: Of a message, without what its transport has done to it.
        content_type: As the message says.
        encoding: As the message says.
        accept: Content types that may be decoded.

    Returns:
        ``None`` where it is left to kombu, which also says what is wrong.
    """
    if (
        content_type == _JSON
        and accept
        and _JSON in accept
        and (encoding is None or encoding == "utf-8")
        and registry._decoders.get(_JSON) is json.loads
    ):
        try:
            return loads(body if isinstance(body, str) else body.decode())
        except Exception:
            return None
    return None


def payload_of(message: Any, *, twice: bool = False) -> Any:
    """As ``message.payload``, which it is from then on.

    Args:
        message: kombu's.
        twice: Its body will be decoded again in this process: keep a copy for ``unseen_of``.

    Raises:
        Exception: As that does.
    """
    if not message._decoded_cache and type(message)._decode is Message._decode:
        content_type, encoding = message.content_type, message.content_encoding
        payload = decoded(message.body, content_type, encoding, message.accept)
        if payload is not None:
            message._decoded_cache = payload
            if twice:
                message._unseen = _own_copy(payload)
    return message.payload


def unseen_of(message: Any, body: Any) -> Any:
    """What comes out of decoding ``body`` a second time, once.

    Nobody has seen it, while what ``message.payload`` is may have been changed since: by a handler
    of ``task_received``, who changes what the request says and not what the task is given.

    Returns:
        ``None`` where it has to be decoded: also where the body is not the message's any more.
    """
    unseen = vars(message).pop("_unseen", None)
    return unseen if body is message.body else None


def _own_copy(payload: Any) -> Any:
    """Args, kwargs and options as they come out of decoding a body a second time.

    Returns:
        A copy that shares nothing that could be changed; ``None`` where that is not quickly made.
    """
    if type(payload) not in (list, tuple) or len(payload) != 3:
        return None
    args, kwargs, options = payload
    if type(args) is not list or type(kwargs) is not dict or type(options) is not dict:
        return None
    for values, fixed in ((args, _FIXED), (kwargs.values(), _FIXED), (options.values(), _NOTHING)):
        if not fixed.issuperset(map(type, values)):
            return None
    return [args.copy(), kwargs.copy(), options.copy()]
