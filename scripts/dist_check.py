#!/usr/bin/env python3
"""What would be uploaded: built, looked at, installed elsewhere, and used from there.

Usage: ``dist_check.py [PYTHON...]``, in a checkout, by a Python that has ``.[test,dist]``.

The wheel goes into an environment of each of the interpreters, and the quick start of the README
runs from it, on a Redis of its own. Then the source distribution takes its place.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.servers import RedisServer  # noqa: E402

#: Seconds that one command may take: the registry may be slow.
LIMIT = 900

#: Loaded by who uses them.
NOT_AT_IMPORT = ("django", "redis", "sentry_sdk", "sqlalchemy", "pytest", "asyncio")

IMPORTS = f"""
import sys
from celery import Celery, Task
Celery, Task
before = set(sys.modules)
import celery_graceful
from importlib.metadata import version
assert celery_graceful.__version__ == version("celery_graceful"), celery_graceful.__version__
assert celery_graceful.__file__.startswith(sys.prefix), celery_graceful.__file__
loaded = {{name for name in {NOT_AT_IMPORT!r} if name in sys.modules}} - before
assert not loaded, loaded
print(celery_graceful.__version__)
"""


def run(*argv: object, folder: Path = ROOT, **options: str) -> str:
    """Run a command; what it prints. Its output is shown when it fails."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | options
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, argv))}\n{done.stdout}\nexit {done.returncode}")
    return done.stdout


def main(pythons: Sequence[str]) -> None:
    """All of it; ends with status 1 and the reason at the first thing that is wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dist-check-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "validate_pyproject", "pyproject.toml")
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT)  # the wheel from the sdist
        (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
        check_contents(sdist, wheel)
        print(f"built: {sdist.name}, {wheel.name}", flush=True)
        for number, python in enumerate(pythons):
            run(python, "-m", "venv", folder / f"env-{number}")
            made = folder / f"env-{number}" / "bin" / "python"
            install(made, wheel)
            quick_start(made, folder / f"shop-{number}")
            install(made, sdist, "--force-reinstall", "--no-deps")
    print(f"dist-check: all well in {time.monotonic() - began:.0f} s")


def check_contents(sdist: Path, wheel: Path) -> None:
    """Nothing that is in version control is missing, and nothing else is there."""
    kept = set(run("git", "ls-files").split("\n"))
    with tarfile.open(sdist) as packed:
        names = {
            name.partition("/")[2] for name in packed.getnames() if packed.getmember(name).isfile()
        }
    made = {name for name in names if name == "PKG-INFO" or ".egg-info/" in name}
    unpacked = {name for name in kept if name.startswith((".ci/", ".github/", ".gitignore"))}
    same("the sdist", names - made, kept - unpacked - {""})
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {name for name in kept if name.startswith("celery_graceful")}
    same("the wheel", names, package)


def same(what: str, found: set[str], wanted: set[str]) -> None:
    """End where the files differ."""
    lines = [f"  missing: {name}" for name in sorted(wanted - found)]
    lines += [f"  nobody's: {name}" for name in sorted(found - wanted)]
    if lines:
        raise SystemExit("\n".join([f"{what} holds not what is in version control:", *lines]))


def install(python: Path, package: Path, *options: str) -> None:
    """Install it where nothing else is, and look at what is there then."""
    away = python.parent
    run(python, "-m", "pip", "install", "--disable-pip-version-check", *options, package)
    run(python, "-m", "pip", "check", "--disable-pip-version-check")
    version = run(python, "-c", IMPORTS, folder=away).strip()
    commands = run(python, "-m", "celery", "graceful", "--help", folder=away)
    if "doctor" not in commands:
        raise SystemExit(f"celery graceful --help:\n{commands}")
    name = run(python, "-c", "import sys; print(*sys.version_info[:3], sep='.')", folder=away)
    print(f"installed: {package.name} on Python {name.strip()}: {version}", flush=True)


def quick_start(python: Path, folder: Path) -> None:
    """That of the README, word for word; but for where Redis is, and for how long it sleeps."""
    code, commands, said = blocks()
    if RedisServer.missing():
        print("no redis-server: the quick start is left out", flush=True)
        return
    folder.mkdir()
    with RedisServer() as redis:
        (folder / "shop.py").write_text(code.replace("redis://localhost", redis.url()[:-2]))
        # Not so many seconds, but until there is something to interrupt.
        waits = "for n in {1..600}; do grep -q 'exporting' log && break; sleep 0.1; done"
        script = re.sub(r"^sleep \d+$", waits, commands, flags=re.M)
        script = f"exec > log 2>&1\nset -m\n{script}\nwait\n"
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        run("bash", "-c", script, folder=folder, PATH=path, CI="")
        log = (folder / "log").read_text()
        with redis.client() as client:
            waiting = client.llen("celery")
    for line in said:
        if not line.search(log):
            raise SystemExit(f"the quick start says {line.pattern!r}, the worker did not:\n{log}")
    if waiting != 1:
        raise SystemExit(f"{waiting} messages are back in the queue, not 1:\n{log}")
    print("the quick start of README.md runs from the wheel", flush=True)


def blocks() -> tuple[str, str, list[re.Pattern[str]]]:
    """Of the quick start: the module, the commands, and the lines that the worker writes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("```python\n", text.index("celery -A shop worker") - 2000)
    found = re.findall(r"^```(\w+)\n(.*?)^```", text[start:], re.M | re.S)
    code = next(body for kind, body in found if kind == "python" and "Celery(" in body)
    commands = next(body for _, body in found if "celery -A shop worker" in body)
    written = next(body for kind, body in found if kind == "text" and "Stopped: " in body)
    return code, commands, list(patterns(written))


def patterns(written: str) -> Iterator[re.Pattern[str]]:
    """What has to be in the log for each line that the README shows: numbers and ids differ."""
    for line in written.splitlines():
        pattern = re.escape(line)
        pattern = re.sub(r"\\\[.*?\\\]", r"\\[[^]]+\\]", pattern)
        pattern = pattern.replace(r"\.\.\.", ".*")
        pattern = re.sub(r"\d+\\\.\d+", r"[\\d.]+", pattern)
        pattern = re.sub(r"^Grace\\ period:.*", "Grace period: ", pattern)
        pattern = re.sub(r"\d+\\ s\\ of\\ grace\\ .*?,", r"[\\d.]+ s of grace .*,", pattern)
        yield re.compile(re.sub(r"in\\ \d+\\ s", r"in [\\d.]+ s", pattern))


if __name__ == "__main__":
    main(sys.argv[1:] or [sys.executable])
