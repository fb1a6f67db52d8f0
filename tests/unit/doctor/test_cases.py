"""Each finding of a table: an app that has it, and one that has not."""

from __future__ import annotations

import pytest

from tests.support.doctor import Case
from tests.unit.doctor import test_environment, test_grace, test_monitors, test_tasks

CASES = [
    case
    for module in (test_environment, test_grace, test_monitors, test_tasks)
    for case in module.CASES
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_is_found(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_is_not_found(case: Case) -> None:
    case.check_good()
