"""What is shipped: version, exports, types, data."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import celery_graceful

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_graceful"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__main__.py", "watchdog.py", "green.py")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves a build folder behind where it builds.
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    argv = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(folder)]
    subprocess.run([*argv, str(source)], check=True, timeout=170)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def shipped(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_version() -> None:
    assert metadata.version("celery_graceful") == celery_graceful.__version__


def test_everything_public_is_exported() -> None:
    public = {
        name
        for name, value in vars(celery_graceful).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public | celery_graceful._ON_DEMAND.keys() == set(celery_graceful.__all__)
    assert all(hasattr(celery_graceful, name) for name in celery_graceful.__all__)
    assert celery_graceful.__all__ == sorted(
        celery_graceful.__all__, key=lambda name: (not name.isupper(), name)
    ), "constants first, then by name"


def test_everything_public_is_documented() -> None:
    for name in celery_graceful.__all__:
        value = getattr(celery_graceful, name)
        if callable(value):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize("module", MODULES)
def test_modules_export_what_they_say(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name in getattr(loaded, "__all__", ()):
        assert hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}"), name


def test_the_wheel_ships_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped(wheel) == {*sources, "celery_graceful_probe.py", "celery_graceful_pytest.py"}


def test_the_wheel_ships_types_and_scripts(wheel: zipfile.ZipFile) -> None:
    names = shipped(wheel)
    assert "celery_graceful/py.typed" in names
    assert "celery_graceful/store/lua/requeue.lua" in names


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(name).decode()
    assert f"Version: {celery_graceful.__version__}\n" in text
    assert "Requires-Python: >=3.10\n" in text
    for needed in ("celery[redis]", "kombu", "redis", "sentry-sdk"):
        assert f"Requires-Dist: {needed}" in text


def test_the_workflow_runs_what_we_say_that_we_support() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    ((pythons, series),) = re.findall(r"^env_list = py\{(.*)\}-celery\{(.*)\},", tox, re.M)
    listed = dict(re.findall(r"^        (python|celery): \[(.*)\]\n", workflow, re.M)[:2])
    assert listed["python"] == ", ".join(f'"3.{name[1:]}"' for name in pythons.split(","))
    assert listed["celery"] == ", ".join(f'"5.{name[1:]}"' for name in series.split(","))
    said = metadata.metadata("celery_graceful").get_all("Classifier") or ()
    assert [line for line in said if "Python :: 3." in line] == [
        f"Programming Language :: Python :: 3.{name[1:]}" for name in pythons.split(",")
    ]


def test_the_workflow_has_all_stages() -> None:
    """What ``.ci/run`` makes, and more."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    made = re.findall(r"make ([a-z-]+)(?: (\w+=\w+))?", (ROOT / ".ci" / "run").read_text())
    for target, option in made:
        wanted = target if option.startswith("VENV") else f"{target} {option}".strip()
        assert f"make {wanted}" in workflow or f'"{wanted}"' in workflow, wanted


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_the_pages_name_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:`|\b)((?:celery_graceful|tests|scripts|docs)/[\w./-]*\w/?)", text)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path
