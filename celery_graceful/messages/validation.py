"""What is wrong with a message: why no task can be made of it.

Celery finds some of it, and lets go of the message; some of it takes the worker down, at once or
later, where the message is used. Each finding is a fixed sentence: what the message says itself is
not for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from celery.exceptions import InvalidTaskError
from celery.utils.time import maybe_iso8601, timezone
from kombu.asynchronous.timer import to_timestamp
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_graceful.messages.decoding import payload_of

__all__ = ["LONGEST", "flaw_of", "has_text", "reason_of"]

#: Longest id and name of a task that can be used.
LONGEST = 1000

# What most messages say there.
_NO_LIMITS = [None, None]
_NOTHING_FOLLOWS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

#: Years at whose ends another time zone is beyond what a date can say.
_EDGES = ("0001", "9999")


def reason_of(exc: BaseException) -> str:
    """What an exception says of a message, without what the message says."""
    if isinstance(exc, ContentDisallowed):
        return "its content type is not accepted (accept_content)"
    if isinstance(exc, DecodeError):
        return "its body cannot be decoded"
    if isinstance(exc, InvalidTaskError):
        return "it breaks Celery's task protocol"
    return f"nothing can be made of it ({type(exc).__name__})"


def has_text(value: Any) -> bool:
    """Whether it is text that a name or an id can be."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        return False
    if value.isascii():
        return "\0" not in value
    try:
        value.encode()
    except UnicodeEncodeError:  # half a pair of surrogates
        return False
    return "\0" not in value


def flaw_of(message: Any, *, runs_here: bool = False) -> str | None:
    """Why no task can be made of a message that names one; ``None`` if nothing is wrong.

    For each message: it looks at what Celery is about to use anyway.

    Args:
        message: kombu's.
        runs_here: Its task will run in this process.
    """
    fields = message.headers
    if not isinstance(message.delivery_info, dict) or not isinstance(message.properties, dict):
        return "where it was delivered to is nowhere"
    try:
        payload = payload_of(message, twice=runs_here)
        if "task" not in fields:
            fields = payload  # protocol 1
    except Exception as exc:
        return reason_of(exc)
    if not isinstance(fields, dict):
        return "it names no task"
    get = fields.get
    if not has_text(get("id")) and not _has_uuid(fields):
        return "its id is none"
    limits = get("timelimit")
    if limits and limits != _NO_LIMITS and not _are_limits(limits):
        return "its time limits are none"
    shadow = get("shadow")
    if shadow and not has_text(shadow):
        return "its shadow name is no text"
    if get("stamped_headers") and not _are_stamps(fields):
        return "its stamps are none"
    eta = get("eta")
    if eta and isinstance(eta, str) and eta.startswith(_EDGES) and not _is_time(eta):
        return "its ETA is beyond all time"
    return _flaw_of_payload(payload)


def _has_uuid(fields: dict[str, Any]) -> bool:
    """Whether an id is one as an object (``task_id=uuid4()``): then it is the text of that.

    kombu sends it as such. All that looks for a task by its id has text.
    """
    for name in ("id", "root_id", "parent_id", "group"):
        if isinstance(fields.get(name), UUID):
            fields[name] = str(fields[name])
    return has_text(fields.get("id"))


def _flaw_of_payload(payload: Any) -> str | None:
    if isinstance(payload, (list, tuple)) and len(payload) == 3:
        args, kwargs, embed = payload
    elif isinstance(payload, dict):  # protocol 1, or half of it
        args, kwargs, embed = payload.get("args", ()), payload.get("kwargs", {}), payload
    else:
        return "its body is not args, kwargs and options"
    if not isinstance(args, (list, tuple)):
        return "its args are no list"
    if kwargs != {} and not _are_names(kwargs):
        return "its kwargs are no names with values"
    if not embed or embed == _NOTHING_FOLLOWS:
        return None
    if not _are_names(embed):
        return "its options are no names with values"
    get = embed.get
    signatures = get("callbacks") or get("errbacks") or get("chain") or get("chord")
    return "what is to follow it is no task" if signatures and not _can_follow(embed) else None


def _are_names(values: Any) -> bool:
    if not isinstance(values, dict):
        return False
    # The first half is quick, and says it all of JSON.
    return {*map(type, values)} <= {str} or all(isinstance(key, str) for key in values)


def _can_follow(embed: Mapping[str, Any]) -> bool:
    """Whether what is called after the task, in whatever process, are tasks."""
    lists = [embed.get(name) or () for name in ("callbacks", "errbacks", "chain")]
    chord = embed.get("chord")
    if not all(isinstance(some, (list, tuple)) for some in lists):
        return False
    following = [one for some in lists for one in some] + ([chord] if chord else [])
    return all(isinstance(one, Mapping) and has_text(one.get("task")) for one in following)


def _are_limits(limits: Any) -> bool:
    return (
        isinstance(limits, (list, tuple))
        and len(limits) == 2
        and all(one is None or (type(one) in (int, float) and 0 <= one < 1e9) for one in limits)
    )


def _are_stamps(fields: Mapping[str, Any]) -> bool:
    names, stamps = fields["stamped_headers"], fields.get("stamps")
    return (
        isinstance(names, (list, tuple))
        and all(isinstance(name, str) for name in names)
        and (stamps is None or isinstance(stamps, Mapping))
    )


def _is_time(eta: str) -> bool:
    try:
        to_timestamp(timezone.to_system(maybe_iso8601(eta)))
    except (OverflowError, ValueError):
        return False
    except (AttributeError, TypeError):
        pass  # no time at all: Celery says so
    return True
