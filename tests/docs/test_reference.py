"""The reference says what the code says."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import ModuleType

import celery
import pytest

import celery_graceful
import celery_graceful.operations
import celery_graceful.testing
from celery_graceful import aio, exceptions, sources, testing
from celery_graceful.settings import Settings
from tests.support.pages import DOCS, PAGES, ROOT, prose

#: Other names of ours that begin as settings do.
NO_SETTINGS = {
    "graceful_resume",
    "graceful_quiet",
    "graceful_stop",
    "graceful_status",
    "graceful_why",
    "graceful_queue",
    "graceful_run",
    "graceful_worker",
    "graceful_shutdown_timeout",  # Temporal's
}


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _documented() -> Iterator[tuple[str, Callable[..., object]]]:
    """The functions and methods of the page on Python, by their names."""
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    for kind, name in re.findall(r"auto(class|function):: celery_graceful\.([\w.]+)", page):
        found = operator.attrgetter(name)(celery_graceful)
        if kind == "function":
            yield name, found
        else:
            own = vars(found).keys() - vars(celery.Task).keys()
            for key in own:
                if inspect.isfunction(vars(found)[key]) and not key.startswith("_"):
                    yield f"{name}.{key}", vars(found)[key]


def test_what_users_give_is_explained() -> None:
    unexplained = []
    for name, fn in _documented():
        says = inspect.getdoc(fn) or ""
        for given in inspect.signature(fn).parameters.keys() - {"self"}:
            if not re.search(rf"^ +{given}: |``[^`]*\b{given}\b[^`]*``", says, re.M):
                unexplained.append(f"{name}({given})")
    assert unexplained == []


def test_the_settings_are_those_of_the_code() -> None:
    script = _script("settings_page")
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.rewritten(text), "run scripts/settings_page.py"
    assert set(re.findall("^### `graceful_(.*)`$", text, re.M)) == {
        f.name for f in fields(Settings)
    }


def test_settings_that_pages_name_are_there() -> None:
    known = {f"graceful_{field.name}" for field in fields(Settings)} | NO_SETTINGS
    for page in PAGES:
        named = set(re.findall(r"`(graceful_\w+[a-z])(?: = [^`]*)?`", prose(page)))
        assert named <= known, f"{page.name}: {named - known}"


def _keys_of_the_code() -> set[str]:
    """The first words of all keys: what stands between the first two colons."""
    found: set[str] = set()
    for path in (ROOT / "celery_graceful").rglob("*.lua"):
        code = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
        found |= set(re.findall(r"graceful:([a-z]+)", code))
    for path in (ROOT / "celery_graceful").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None  # a docstring
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"graceful:([a-z]+)", node.value))
    return found


def test_each_key_of_redis_is_told_of() -> None:
    told = prose(DOCS / "reference" / "redis-keys.md")
    assert _keys_of_the_code() == set(re.findall(r"`graceful:([a-z]+)", told))


@pytest.mark.parametrize("module", [celery_graceful, aio, sources, testing], ids=str)
def test_each_public_name_is_in_the_reference(module: ModuleType) -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    if f"automodule:: {module.__name__}\n" in page:
        return
    of_exceptions = exceptions.__all__ if "automodule:: celery_graceful.exceptions" in page else []
    for name in module.__all__:
        value = getattr(module, name)
        if not isinstance(value, ModuleType) and name not in of_exceptions:
            assert f":: {module.__name__}.{name}\n" in page, name


def test_the_checklist_has_each_code_of_the_doctor() -> None:
    codes = re.findall("^### (CG[0-9]+)$", (DOCS / "doctor.md").read_text(encoding="utf-8"), re.M)
    named = re.findall(r"\[(CG[0-9]+)\]\(", prose(DOCS / "howto" / "checklist.md"))
    assert sorted(named) == codes


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


TOPICS = ("Grace", "Before the signal", "Signals", "PID 1", "Probes")


@pytest.mark.parametrize("topic", TOPICS)
def test_each_page_of_a_platform_has_each_topic(topic: str) -> None:
    """One says so where its platform has no such thing."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = re.findall(
        r"^howto/.*$", index.partition(":caption: Platforms")[2].partition("```")[0], re.M
    )
    assert len(pages) == 8
    for page in pages:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        assert f"* **{topic}.** " in text, page


def test_what_is_said_of_others_has_its_source() -> None:
    text = (DOCS / "discussion" / "comparison.md").read_text(encoding="utf-8")
    sources = set(re.findall(r"^(\d+)\. ", text, re.M))
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else []
        if cells and not head:
            head = cells
        elif cells and set(line) > set("-|"):
            for name, cell in zip(head[2:], cells[2:], strict=True):
                numbers = set(re.findall(r"\[(\d+)\]", cell))
                assert numbers <= sources
                assert numbers or not cell or "found" in cell, f"{name}, {cells[0]}: {cell}"
        else:
            head = head if cells else []
