"""``make suites``: a suite that comes to no end says so in a line, and the others go on."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.suites import __main__ as suites
from tests.suites import plugin

TESTS = "def test_fine():\n    pass\n\ndef test_other():\n    assert False\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "test_ends.py").write_text(TESTS)
    (tmp_path / "t" / "test_hangs.py").write_text("def test():\n    import time; time.sleep(600)\n")
    (tmp_path / "t" / "test_none.py").touch()
    return tmp_path


def test_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SUITES", raising=False)
    monkeypatch.setattr(suites, "fetch", lambda: folder)
    monkeypatch.setattr(suites, "KEPT", folder / "kept")
    monkeypatch.setattr(suites, "TIMEOUT", 1)
    hangs, none, ends = (suites.Suite(n, (f"t/test_{n}.py",)) for n in ("hangs", "none", "ends"))
    monkeypatch.setattr(suites, "ALL", (hangs,))
    assert suites.main() == 1
    assert capsys.readouterr().out == "hangs: plain has not ended within 1 s\n"
    monkeypatch.setattr(suites, "TIMEOUT", 120)
    monkeypatch.setattr(suites, "ALL", (none, ends))
    assert suites.main() == 1
    out = capsys.readouterr().out
    assert "none: plain has run no test:\n" in out
    assert "ends: plain 1/2, graceful 1/2 passed, 0 differ, " in out
    monkeypatch.setattr(suites, "ALL", (ends,))
    assert suites.main() == 0


def test_one_that_breaks_off_is_no_outcome(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks = (
        "def test_one():\n    pass\n\ndef test_two():\n    import pytest; pytest.exit('over', 3)\n"
    )
    (folder / "t" / "test_breaks.py").write_text(breaks)
    monkeypatch.setattr(suites, "KEPT", folder / "kept")
    log = folder / "kept" / "breaks, plain.log"
    said = f"has broken off after 1 tests with code 3: see {log}"
    with pytest.raises(suites.NoOutcome, match=f"^{re.escape(said)}$"):
        suites.run(suites.Suite("breaks", ("t/test_breaks.py",)), folder, "")
    assert "over" in log.read_text()


def test_a_test_that_is_run_once_more_has_its_last_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: dict[str, str] = {}
    monkeypatch.setattr(plugin, "_outcomes", outcomes)
    for outcome in ("rerun", "passed"):
        plugin.pytest_runtest_logreport(SimpleNamespace(nodeid="t", outcome=outcome, when="call"))
    assert outcomes == {"t": "passed"}
