"""What the doctor says as a whole."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.doctor.report import CHECKS, examine
from celery_graceful.operations import asking
from celery_graceful.store.store import StoreAway, StoreForbidden
from tests.support.doctor import add_task, graceful_app, run
from tests.support.schema import conforms

DOCS = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")


def test_each_code_has_a_section_and_each_section_a_code() -> None:
    codes = [check.code for check in CHECKS]
    assert sorted(re.findall(r"^### (CG\d{3})$", DOCS, re.MULTILINE)) == sorted(codes)
    assert len({*codes}) == len(codes)
    for check in CHECKS:
        assert (check.find.__doc__ or "").startswith(f"{check.code}: ")


def test_json_is_as_the_docs_say() -> None:
    app = add_task(graceful_app(worker_soft_shutdown_timeout=3), time_limit=100)
    status, output = run(app, "--json", "--prestop", "20")
    said = json.loads(output)
    schema = json.loads(DOCS.split("```json\n")[1].split("```")[0])
    conforms(said, schema)
    with pytest.raises(AssertionError, match="findings"):
        conforms({**said, "findings": [{}]}, schema)
    assert status == 1
    assert said["counts"]["error"] >= 1
    assert said["findings"][0]["code"] == "CG106"
    assert said["findings"][0]["link"] == "docs/doctor.md#cg106"
    assert said["grace"]["hard"] == 25


def test_lines_are_no_longer_than_80_columns() -> None:
    app = add_task(graceful_app(worker_soft_shutdown_timeout=3), time_limit=100)
    _, output = run(app, "--prestop", "20")
    assert "CG106 error: --prestop = 20.0" in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"])
def test_a_server_that_is_away(url: str) -> None:
    status, output = run(graceful_app(url))
    assert "could not be checked: R" in output
    assert "127.0.0.1:1" in output
    assert status == 3
    status, _ = run(graceful_app(url), "--prestop", "20")
    assert status == 1, "errors come first"


@pytest.mark.parametrize("url", ["nonsense://here", "redis://127.0.0.1:port/0"])
def test_a_broker_that_there_cannot_be(url: str) -> None:
    status, output = run(graceful_app(url))
    assert "could not be checked: the broker: " in output
    assert status == 3


def test_what_is_not_a_server_need_not_be_reached() -> None:
    status, output = run(graceful_app(), "--command", "sh elsewhere.sh")
    assert "could not be checked: what --command starts: sh elsewhere.sh" in output
    assert status == 0


@pytest.mark.parametrize(("kind", "misses"), [(StoreAway, True), (StoreForbidden, False)])
def test_a_server_that_goes_away_meanwhile(kind: type[Exception], misses: bool) -> None:
    def find(exam: Examination) -> list[Trouble]:
        raise kind("the store: as it is")

    report = examine(Examination(graceful_app()), (Check("CG999", Severity.ERROR, find),))
    assert report.unchecked == {"CG999": "the store: as it is"}
    assert report.misses_a_server is misses


def test_a_check_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(exam: Examination) -> list[Trouble]:
        raise TypeError("what nobody has thought of")

    monkeypatch.setattr(
        "celery_graceful.cli.doctor.examine",
        lambda exam: examine(exam, (Check("CG999", Severity.NOTE, find),)),
    )
    status, said = run(graceful_app())
    assert said.splitlines()[-1] == "Nothing was found; not all could be checked."
    assert status == 3


def test_servers_that_do_not_say_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        app = graceful_app(f"amqp://127.0.0.1:{port}//", f"redis://127.0.0.1:{port}/0")
        monkeypatch.setattr(asking, "BROKER_TIMEOUT", 0.5)
        status, output = run(app)
    assert status == 3
    assert output.count(f"127.0.0.1:{port}") >= 2


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_hook_takes_seconds(seconds: str) -> None:
    status, output = run(graceful_app(), "--prestop", seconds)
    assert status == 2
    assert "Invalid value for '--prestop'" in output
