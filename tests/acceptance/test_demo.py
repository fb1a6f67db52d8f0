"""The demo, run as a person runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.servers import RedisServer
from tests.support.workers import TIMEOUT

ROOT = Path(__file__).parents[2]


def run_demo(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "celery_graceful.demo", *args]
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
    )


def rows(output: str) -> dict[str, list[str]]:
    """The table at the end, by task: started on, interrupted, finished on."""
    table = output.partition("Every task\n\n")[2].partition("\n\n")[0].splitlines()
    cells = [re.split(r"\s{2,}", line) for line in table if re.match(r"\w+-\d+ ", line)]
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_nothing_is_lost_and_no_kill_is_needed(pool: str, tmp_path: Path) -> None:
    require(RedisServer)

    # From elsewhere: nothing is needed that is not in the package.
    demo = run_demo("--pool", pool, cwd=tmp_path)

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert "\033" not in demo.stdout
    assert "SIGKILL: was not needed" in demo.stdout
    assert "export: each row once" in demo.stdout
    assert "broker: 0 messages waiting, 0 claimed" in demo.stdout
    total = re.fullmatch(r"sent (\d+), finished (\d+), lost 0", demo.stdout.splitlines()[-1])
    assert total
    table = rows(demo.stdout)
    assert int(total[1]) == int(total[2]) == len(table) > 20
    assert {finished for _, _, finished in table.values()} == {"worker-1", "worker-2"}
    for task, how in (
        ("export_orders-1", r"\+\d+\.\d\d at a safe point, after row \d+; went on at row \d+"),
        ("call_carrier-1", r"\+\d+\.\d\d at a safe point"),
        ("rebuild_index-1", r"\+([5-9]|\d\d)\.\d\d by the soft deadline"),
        ("resize_photos-1", r"\+([7-9]|\d\d)\.\d\d by the hard deadline, given up"),
    ):
        started, interrupted, finished = table[task]
        assert started == "worker-1, worker-2"
        assert re.fullmatch(how, interrupted)
        assert finished == "worker-2"
    stopped, went_on = map(int, re.findall(r"row (\d+)", table["export_orders-1"][1]))
    assert went_on == stopped + 1 > 5


def test_plain_celery_loses_what_the_demo_says_it_does() -> None:
    require(RedisServer)

    demo = run_demo("--plain")

    assert demo.returncode == 1, demo.stdout + demo.stderr
    assert "SIGKILL: was needed" in demo.stdout
    assert re.search(r"lost [1-9]\d*$", demo.stdout)


def test_a_missing_redis_is_one_clear_line(tmp_path: Path) -> None:
    demo = run_demo(PATH=str(tmp_path))

    assert demo.returncode == 2
    assert demo.stdout == ""
    assert re.fullmatch(r"error: redis-server is not on the PATH.*\n", demo.stderr)
