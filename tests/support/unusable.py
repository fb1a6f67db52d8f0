"""Messages that no task can be made of, and how to put them into a queue."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import amqp
from celery import Celery
from hypothesis import strategies as st

__all__ = ["BODY", "KINDS", "SECRET", "headers_of", "put", "raw_of", "wild"]

#: In all that a message says; a worker's log must not have it.
SECRET = "s3cret"

#: args, kwargs and options, as Celery sends them.
BODY = [[SECRET], {"key": SECRET}, {"callbacks": None, "errbacks": None, "chain": None}]

_NESTED = "[" * 100_000 + "]" * 100_000


def headers_of(**changed: Any) -> dict[str, Any]:
    """Of a message for the task ``known``."""
    return {"lang": "py", "task": "known", "id": "unusable", "argsrepr": SECRET, **changed}


#: Name -> what differs from a good message: headers, body (bytes, or JSON), content type, encoding.
KINDS: dict[str, dict[str, Any]] = {
    "no base64": {"raw_body": f"%{SECRET}"},
    "four parts": {"body": [*BODY, SECRET]},
    "two parts": {"body": BODY[:2]},
    "a number": {"body": 5},
    "no JSON": {"body": f"{{{SECRET}".encode()},
    "deep": {"body": _NESTED.encode()},
    "no UTF-8": {"body": b'["\xff\xfe"]'},
    "args are no list": {"body": [{SECRET: 1}, {}, {}]},
    "kwargs are no mapping": {"body": [[], [SECRET], {}]},
    "options are no mapping": {"body": [[], {}, [SECRET]]},
    "callbacks": {"body": [[], {}, {"callbacks": [[SECRET]]}]},
    "errbacks": {"body": [[], {}, {"errbacks": SECRET}]},
    "chain": {"body": [[], {}, {"chain": [{"tusk": SECRET}]}]},
    "ETA": {"headers": headers_of(eta=f"tomorrow {SECRET}")},
    "ETA is a number": {"headers": headers_of(eta=5)},
    "ETA before all time": {"headers": headers_of(eta="0001-01-01T00:00:00+14:00")},
    "expires": {"headers": headers_of(expires=[SECRET])},
    "time limits": {"headers": headers_of(timelimit=[SECRET, None])},
    "no id": {"headers": {"task": "known", "argsrepr": SECRET}},
    "id is a list": {"headers": headers_of(id=[SECRET])},
    "task is a list": {"headers": headers_of(task=[SECRET])},
    "task is nothing": {"headers": headers_of(task=None)},
    "no task": {"headers": {"who": SECRET}, "body": {"what": SECRET}},
    "stamps": {"headers": headers_of(stamped_headers=SECRET, stamps=[SECRET])},
    "shadow": {"headers": headers_of(shadow=[SECRET])},
    "refused": {"body": b"- " + SECRET.encode(), "content_type": "application/x-yaml"},
    "refused pickle": {
        "body": pickle.dumps(BODY),
        "content_type": "application/x-python-serialize",
        "content_encoding": "binary",
    },
    "unknown compression": {"headers": headers_of(compression=f"application/{SECRET}")},
    "compression": {"headers": headers_of(compression="application/x-gzip")},
    "protocol 1, kwargs": {
        "headers": {},
        "body": {"task": "known", "id": "unusable", "args": [], "kwargs": SECRET},
    },
    "protocol 1, no id": {"headers": {}, "body": {"task": "known", "args": [SECRET], "kwargs": {}}},
    "nothing": {"headers": {}, "body": b""},
}


def _body_of(kind: dict[str, Any]) -> bytes:
    body = kind.get("body", BODY)
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def raw_of(kind: dict[str, Any]) -> str:
    """As kombu puts it into a list of Redis."""
    body = kind.get("raw_body", base64.b64encode(_body_of(kind)).decode())
    properties = {
        "delivery_tag": "x",
        "delivery_mode": 2,
        "priority": 0,
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "celery"},
    }
    message = {
        "body": body,
        "content-type": kind.get("content_type", "application/json"),
        "content-encoding": kind.get("content_encoding", "utf-8"),
        "headers": kind.get("headers", headers_of()),
        "properties": {**properties, **kind.get("properties", {})},
    }
    return json.dumps(message)


def put(app: Celery, kind: dict[str, Any]) -> None:
    """Put it into the queue, past all that looks at it."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        if connection.transport.driver_type == "redis":
            channel.client.lpush("celery", kind.get("raw") or raw_of(kind))
            return
        channel.queue_declare("celery", durable=True, auto_delete=False)
        message = amqp.Message(
            kind.get("raw") or _body_of(kind),
            content_type=kind.get("content_type", "application/json"),
            content_encoding=kind.get("content_encoding", "utf-8"),
            application_headers=kind.get("headers", headers_of()),
        )
        channel.basic_publish(message, exchange="", routing_key="celery")


# -- anything ----------------------------------------------------------------------------

_NAMES = [
    *("task", "id", "eta", "expires", "timelimit", "retries", "shadow", "root_id", "parent_id"),
    *("group", "group_index", "stamps", "stamped_headers", "ignore_result", "argsrepr", "meth"),
    *("kwargsrepr", "origin", "lang", "compression", "redelivered", "replaced_task_nesting"),
    *("sentry-monitor-slug", "sentry-monitor-start-timestamp-s", "sentry-monitor-check-in-id"),
    *("sentry-monitor-config", "graceful_delivery", "graceful_sent_again"),
]

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["known", "unusable", "2030-01-01T00:00:00", "9999-12-31T23:59:59-12:00", ""])
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def wild(draw: st.DrawFn, *, amqp: bool = False) -> dict[str, Any]:
    """A message in which anything may stand anywhere; most name the task ``known``."""
    headers = draw(st.dictionaries(st.sampled_from(_NAMES), _values, max_size=5))
    known = {"task": "known", "id": draw(st.uuids()).hex}
    protocol_1 = draw(st.integers(0, 4)) == 0
    if not protocol_1 and draw(st.integers(0, 5)):
        headers = {**headers, **known} if draw(st.booleans()) else {**known, **headers}
    body = draw(
        st.just(BODY)
        | _values
        | st.lists(_values, min_size=3, max_size=3)
        | st.tuples(
            st.lists(_values, max_size=2),
            st.dictionaries(st.text(max_size=5), _values, max_size=2),
            st.dictionaries(
                st.sampled_from(["callbacks", "errbacks", "chain", "chord", "x"]),
                _values,
                max_size=3,
            ),
        ).map(list)
    )
    if protocol_1:
        fields = {"args": [], "kwargs": {}, **known, **headers}
        body, headers = draw(st.just(fields) | st.just(body)), {}
    kind = {
        "headers": headers,
        "body": draw(st.just(body) | st.binary(max_size=20))
        if draw(st.integers(0, 9)) == 0
        else body,
        "content_type": draw(
            st.sampled_from(
                ["application/json"] * 9
                + ["application/x-yaml", "application/x-python-serialize", "text/plain", "x/y"]
            )
        ),
        "content_encoding": draw(
            st.sampled_from(["utf-8"] * 6 + ["binary", "us-ascii", "nonsense"])
        ),
    }
    if amqp:
        return kind
    message = json.loads(raw_of(kind))
    for part in draw(st.lists(st.sampled_from(sorted(message)), max_size=1)):
        message[part] = draw(_values)
    if isinstance(message["properties"], dict):
        names = sorted(message["properties"])
        for part in draw(st.lists(st.sampled_from(names), max_size=1)) if names else []:
            message["properties"][part] = draw(_values)
    raw: Any = json.dumps(message if draw(st.integers(0, 9)) else draw(_values))
    if draw(st.integers(0, 19)) == 0:
        raw = draw(st.binary(max_size=30))
    return {"raw": raw or "x"}
