"""JSON in fewer steps comes out as kombu decodes it."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message
from kombu.utils import json

from celery_graceful.messages.decoding import loads, payload_of, unseen_of

TEXTS = [
    "[1, 2.5, null, true, NaN, Infinity]",
    ' {"a": 1}\n',
    '{"__type__": "decimal", "__value__": "1.5"}',
    r'{"\u005f_type__": "decimal", "__value__": "1.5"}',
    r'{"__\u0074ype__": "decimal", "__value__": "1.5"}',
    r'["\u00e9", "\ud83d\ude00", "\ud800"]',
    '["é", "😀"]',
]
BROKEN = ["", " ", "[1", "[1] 2", "\ufeff[1]", '{"__type__": "none", "__value__": 1}', "{'a': 1}"]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("text", TEXTS)
def test_as_kombu(text: str) -> None:
    assert repr(loads(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", BROKEN)
def test_what_kombu_refuses_is_refused(text: str) -> None:
    assert refusal(loads, text) == refusal(json.loads, text)


def refusal(decode: Any, text: str) -> type[ValueError]:
    try:
        raise AssertionError(decode(text))
    except ValueError as exc:
        return type(exc)


@given(VALUES)
def test_whatever_is_sent(value: Any) -> None:
    assert loads(json.dumps(value)) == value


def test_types_of_kombus() -> None:
    value = [Decimal("1.5"), datetime(2026, 1, 2, tzinfo=timezone.utc), b"\xff"]
    assert loads(json.dumps(value)) == value


def message(body: Any, **options: Any) -> Message:
    options = {"accept": {"application/json"}, "content_encoding": "utf-8", **options}
    return Message(body=body, content_type="application/json", **options)


@pytest.mark.parametrize("body", ["[[], {}, {}]", b"[[], {}, {}]", b'[["\xc3\xa9"], {}, {}]'])
@pytest.mark.parametrize("options", [{}, {"accept": None}, {"content_encoding": "latin-1"}])
def test_a_payload_is_the_messages_own(body: Any, options: dict[str, Any]) -> None:
    found = message(body, **options)
    assert payload_of(found) == message(body, **options).payload
    assert found.payload is payload_of(found)


def test_a_body_that_is_no_text() -> None:
    with pytest.raises(DecodeError):
        payload_of(message(b'["\xff"]'))


def test_what_is_not_accepted() -> None:
    with pytest.raises(ContentDisallowed):
        payload_of(message("[]", accept={"application/x-yaml"}))


def test_a_decoder_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serialization.registry._decoders, "application/json", lambda data: "ours")
    assert payload_of(message("[]")) == "ours"


def test_a_message_that_decodes_by_itself() -> None:
    class Own(Message):  # type: ignore[misc]
        def _decode(self) -> str:
            return "ours"

    own = Own(body="[]", content_type="application/json", accept={"application/json"})
    assert payload_of(own) == "ours"


def test_what_a_task_is_given_is_what_nobody_has_seen() -> None:
    body = '[[1, "a", null], {"b": 2.5}, {"chain": null}]'
    found = message(body)
    args, kwargs, _ = payload_of(found, twice=True)
    args.append("seen")
    kwargs["b"] = "***"
    assert unseen_of(found, body) == [[1, "a", None], {"b": 2.5}, {"chain": None}]
    assert unseen_of(found, body) is None, "a second run would share it"


def test_what_another_process_decodes_is_not_copied() -> None:
    found = message("[[], {}, {}]")
    payload_of(found)
    assert unseen_of(found, found.body) is None


def test_a_body_that_somebody_has_put_in_its_place() -> None:
    found = message("[[], {}, {}]")
    payload_of(found, twice=True)
    assert unseen_of(found, "[[1], {}, {}]") is None


def test_what_was_decoded_before_may_have_been_seen() -> None:
    found = message("[[], {}, {}]")
    assert found.payload == payload_of(found, twice=True)
    assert unseen_of(found, found.body) is None


@pytest.mark.parametrize(
    "payload",
    [
        [[[]], {}, {}],
        [[], {"a": {}}, {}],
        [[], {}, {"callbacks": []}],
        [[Decimal(1)], {}, {}],
        [[], {}, None],
        {"args": [], "kwargs": {}},
        None,
    ],
)
def test_what_could_change_is_decoded_again(payload: Any) -> None:
    found = message(json.dumps(payload))
    assert payload_of(found, twice=True) == payload
    assert unseen_of(found, found.body) is None
