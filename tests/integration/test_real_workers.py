"""docs/testing.md, with real workers: its example as a user would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.servers import RedisServer

ROOT = Path(__file__).parents[2]

#: What the page has, for a machine that may stand still between a row and what the test does then:
#: rows take their time where a worker is stopped or killed in them.
SAID = "self.sleep(0.1)"
PATIENT = 'self.sleep(0 if self.request.hostname.startswith("w3-") else 0.4)'

CONFTEST = """
import pytest

from tests.support.patience import has_patience


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    has_patience(monkeypatch)
"""


def test_the_example_of_the_page(tmp_path: Path, redis_server: RedisServer) -> None:
    """Three workers: one is stopped, one is killed, one comes to the end."""
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    assert text.count(SAID) == 1
    text = text.replace(SAID, PATIENT)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.M | re.S):
        if name != "conftest.py":
            (tmp_path / name).write_text(code)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*argv, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
