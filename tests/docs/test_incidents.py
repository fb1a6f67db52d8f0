"""What the page of incidents shows is what is printed."""

from __future__ import annotations

import re
from itertools import pairwise

from celery_graceful.doctor.report import CHECKS
from celery_graceful.operations.findings import Unknown, findings_of
from celery_graceful.operations.history import Late
from celery_graceful.operations.records import DeadWorker
from tests.support.pages import DOCS, blocks
from tests.unit.cli.test_tables import worker

PAGE = DOCS / "incidents.md"


def _shape(text: str) -> str:
    return re.sub(r"\d+|\b\w+@\w+", "#", text)


def _printed() -> set[tuple[str, str]]:
    full = "the broker: OutOfMemoryError: command not allowed when used memory > 'maxmemory'. "
    dead = (DeadWorker("w2@host:1", "w2@host", 2, False),)
    found = [
        *findings_of((), dead, 1, ["b"], unconsumed={"shop": 1}),
        *findings_of((), (), 0, (), unconsumed={"shop": 4}),
        *findings_of((), (), 0, (), without_claims=4, unknown=Unknown(["p1@host"])),
        *findings_of((worker("w1@a"),), (), 0, (), late=Late(6, 9.0, ["k1@host"])),
        *findings_of((), (), 0, (), no_writes=[f"{full}(127.0.0.1:7391)"]),
    ]
    command = "celery -A shop graceful "
    return {
        (_shape(one.what), _shape(f"  -> {command if one.is_command else ''}{one.mend}"))
        for one in found
    }


def test_findings() -> None:
    shown = [
        pair
        for block in blocks("console")
        if block.page == PAGE and "graceful status" in block.text
        for pair in pairwise(block.text.splitlines())
        if pair[1].startswith("  -> ") and not pair[0].startswith(" ")
    ]
    assert len(shown) >= 8
    for what, mend in shown:
        assert (_shape(what), _shape(mend)) in _printed()


def test_codes() -> None:
    codes = set(re.findall(r"CG\d{3}", PAGE.read_text(encoding="utf-8")))
    assert len(codes) > 5
    assert codes <= {check.code for check in CHECKS}
