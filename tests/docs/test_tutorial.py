"""The tutorial: the code of each step runs, and does what the step says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from celery_graceful.testing import graceful_run, kill_at
from tests.support.pages import DOCS, blocks

ROWS = ["row 0", "row 1", "row 2"]


class Shop:
    """The reader's ``shop.py``, after the first steps."""

    def __init__(self, steps: int) -> None:
        code = [block for block in blocks("python") if block.page == DOCS / "tutorial.md"]
        self.names: dict[str, Any] = {"__name__": "shop"}
        for block in code[:steps]:
            exec(compile(block.text, str(block), "exec"), self.names)
        self.names["render"] = lambda row: f"row {row}"  # without its pause

    @property
    def export(self) -> Any:
        return self.names["export"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exported() -> list[str]:
    return Path("export.txt").read_text().splitlines()


def test_a_plain_app() -> None:
    Shop(1).export(3)
    assert exported() == ROWS


def test_a_graceful_task_starts_over() -> None:
    run = graceful_run(Shop(3).export, 3)
    run.interrupt_at_checkpoint(3)
    assert (run.outcome, exported()) == ("interrupted", ROWS[:2])
    run.resume()
    assert (run.outcome, exported()) == ("succeeded", ROWS[:2] + ROWS)


def test_it_goes_on_where_it_stopped() -> None:
    run = graceful_run(Shop(4).export, 3)
    run.interrupt_at(row=1)
    assert (run.outcome, exported()) == ("interrupted", ROWS[:1])
    run.kill_at(row=2)
    run.resume()
    assert run.outcome == "succeeded"
    assert sorted(set(exported())) == ROWS


def test_its_last_step_survives_and_the_one_before_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)
    vars(module).update(Shop(5).names)
    shop = Shop(6)
    shop.names["test_export_survives"]()
    once_too_often = Shop(4).export
    survives = shop.names["assert_survives_interruptions"]

    def clear() -> None:
        Path("export.txt").unlink(missing_ok=True)

    with pytest.raises(AssertionError, match="kill -9 after row 1, before that is saved"):
        survives(
            once_too_often,
            3,
            effects=exported,
            reset=clear,
            schedules=[[kill_at(row=1)]],
        )
