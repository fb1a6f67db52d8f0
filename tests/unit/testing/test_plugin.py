"""The fixtures for pytest, and what is imported for whom."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

TESTS = """
import sys


def test_who_asks_for_nothing_pays_nothing():
    assert not {"celery", "celery_graceful"} & sys.modules.keys()


def test_fixtures(graceful_run, assert_survives_interruptions):
    from celery import Celery
    from celery_graceful import Graceful, GracefulTask

    app = Celery("mine")
    Graceful(app)
    seen = {}

    @app.task(base=GracefulTask, bind=True)
    def export(self):
        for row in self.iterate("abc"):
            seen[row] = True

    assert graceful_run(export).interrupt_at(row=1).resume().outcome == "succeeded"
    assert_survives_interruptions(export, effects=seen)
    assert not {"hypothesis", "redis", "sentry_sdk"} & sys.modules.keys()


def test_without_redis(request, monkeypatch):
    monkeypatch.setenv("PATH", "")
    request.getfixturevalue("graceful_worker")
"""


def test_fixtures(tmp_path: Path) -> None:
    """Hypothesis's own plugin is left out, which imports it."""
    (tmp_path / "test_mine.py").write_text(TESTS)
    plugins = ["-p", "celery_graceful_pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            *plugins,
            "--rootdir",
            str(tmp_path),
            "test_mine.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 skipped" in done.stdout
    assert "graceful_worker needs redis-server in PATH" in done.stdout


def test_pytest_finds_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entry = setup["options.entry_points"]["pytest11"].strip()
    assert entry == "celery_graceful_pytest = celery_graceful_pytest"
    assert "celery_graceful_pytest" in setup["options"]["py_modules"].split(", ")
