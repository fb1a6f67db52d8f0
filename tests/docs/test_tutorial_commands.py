"""The tutorial as its reader has it: each command is run, new code takes the place of old."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import RedisServer
from tests.support.pages import DOCS, blocks
from tests.support.workers import TIMEOUT, environment

#: What the reader sleeps for, in the order of the page; several times what it takes.
WAITS = [
    "more_rows 2",
    "ready 2",  # of the second worker
    "more_rows 2",
    "more_rows 2",
    "more_rows 2",
    "row 59",
]

FUNCTIONS = """
exec >> log 2>&1  # appended: `cat` and a worker write to it at the same time
set -m  # a job is the worker with its children, as at a terminal
trap 'kill -9 %celery' EXIT
trap 'exit 9' TERM
rows() { cat export.txt 2> /dev/null | wc -l; }
until_() {
    for n in {1..2000}; do "$@" && return; sleep 0.1; done
    echo "never: $*"; exit 9
}
has_rows() { [ "$(rows)" -ge "$1" ]; }
more_rows() { until_ has_rows $(($(rows) + $1)); }
are_ready() { [ "$(grep -c ' ready\\.$' log)" -ge "$1" ]; }
ready() { until_ are_ready "$1"; }
row() { until_ grep -qx "row $1" export.txt; }
"""


class Module:
    """A file that is written as the page says: what has the name of something takes its place."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[int, str]] = {}

    def put(self, code: str) -> None:
        for node in ast.parse(code).body:
            text = ast.get_source_segment(code, node)
            assert text is not None
            if isinstance(node, ast.FunctionDef):
                decorators = [f"@{ast.unparse(one)}" for one in node.decorator_list]
                self._parts[node.name] = (2, "\n".join([*decorators, text]))
            elif isinstance(node, ast.Assign):
                self._parts[ast.unparse(node.targets[0])] = (1, text)
            else:
                is_import = isinstance(node, (ast.Import, ast.ImportFrom))
                self._parts[text] = (0 if is_import else 1, text)

    @property
    def text(self) -> str:
        parts = sorted(self._parts.values(), key=lambda part: part[0])
        return "\n\n".join(text for _, text in parts) + "\n"


def script(server: RedisServer) -> Iterator[str]:
    """The page in the language of a shell, each block under its heading and its number."""
    module, waits = Module(), iter(WAITS)
    yield FUNCTIONS
    for number, block in enumerate(one for one in blocks() if one.page == DOCS / "tutorial.md"):
        yield f"echo '== {number}'"
        if block.text.startswith("# test_shop.py"):
            yield f"cat > test_shop.py << 'END'\n{block.text}END"
        elif block.language == "python":
            module.put(block.text)
            code = module.text.replace("redis://localhost/", server.url()[:-1])
            yield f"cat > shop.py << 'END'\n{code.replace('sleep(0.5)', 'sleep(0.2)')}END"
        elif block.language == "console":
            for line in re.findall(r"^\$ (.*)$", block.text, re.M):
                if not line.startswith(("pip install", "redis-server")):
                    yield re.sub(r"\bsleep \d+", lambda _: next(waits), line)
    yield "kill %celery; wait"
    assert next(waits, None) is None, "the page sleeps less often"


@pytest.mark.slow
def test_the_page(start_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = start_server(RedisServer)
    env = environment({"CI": ""})
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    text = "\n".join(script(server))
    reader = subprocess.Popen(["bash", "-c", text], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL)
    try:
        status = reader.wait(10 * TIMEOUT)
    finally:  # it takes its workers along
        reader.terminate()
        reader.wait(TIMEOUT)
        print((tmp_path / "log").read_text())  # for a test that fails
    log = (tmp_path / "log").read_text()
    assert status == 0
    said = re.findall(r"^== \d+\n(.*?)(?=^== \d+\n|\Z)", log, re.M | re.S)
    shown = [re.findall(r"^row \d+$", part, re.M) for part in said]

    killed, nothing, whole = [rows for rows in shown if rows]
    # The row that is being written at the kill may not be there yet when the file is looked at.
    assert nothing in (killed, [*killed, f"row {len(killed)}"]), "what plain Celery loses is lost"
    every = [f"row {number}" for number in range(60)]
    assert sorted(set(whole), key=every.index) == every
    assert len(whole) <= len(every) + 1, "the row in hand at the kill may come twice"
    assert len(re.findall(r"interrupted: it goes back to its queue", log)) == 2
    assert len(re.findall(r"Stopped: 0 finished, 1 interrupted, 0 given up", log)) == 2
    assert "Purged 1 message" in log
    assert "1 passed" in said[-2]
    assert "CG205" in said[-1]
