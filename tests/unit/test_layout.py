"""The rules of the package's layout, each with who breaks it (``scripts/layout.py``)."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_spec = importlib.util.spec_from_file_location("layout", ROOT / "scripts" / "layout.py")
assert _spec is not None
assert _spec.loader is not None
layout = importlib.util.module_from_spec(_spec)
sys.modules["layout"] = layout
_spec.loader.exec_module(layout)

PACKAGE = layout.Package()


def test_few_modules_stand_at_the_root() -> None:
    assert len(PACKAGE.at_root) <= layout.MOST_AT_ROOT, PACKAGE.at_root


def test_each_folder_has_its_floor() -> None:
    on_floors = [room for rooms in layout.FLOORS for room in rooms]
    assert sorted(on_floors) == PACKAGE.folders
    assert sorted(PACKAGE.at_root) == sorted({*layout.GROUND, *layout.DOORS} - {"__init__"})


def test_imports_point_downwards() -> None:
    assert PACKAGE.upwards() == []


def test_there_are_no_circles() -> None:
    assert PACKAGE.circles() == []


def test_folders_are_entered_by_their_doors() -> None:
    assert PACKAGE.past_the_door() == []


def test_doors_lead_somewhere() -> None:
    entered = {tuple(arrow.target.split(".")[:2]) for arrow in PACKAGE.arrows}
    for folder in set(PACKAGE.folders) - {"cli"}:  # Celery comes in there
        for name in PACKAGE.doors(folder):
            if f"{folder}.{name}" in PACKAGE.files:
                assert (folder, name) in entered, (
                    f"{folder} names {name}, and nobody comes in by it"
                )


@pytest.mark.parametrize("folder", PACKAGE.folders)
def test_a_folder_says_what_it_is(folder: str) -> None:
    said = ast.get_docstring(PACKAGE.trees[folder])
    assert said, f"{folder}/__init__.py has no docstring"
    assert len(said.splitlines()) <= 10


def test_nobody_sets_the_attributes_of_others() -> None:
    assert PACKAGE.set_from_outside() == []


def test_files_are_short() -> None:
    """One concept a file: 50 to 300 lines is the aim."""
    assert PACKAGE.long_files(layout.TOO_LONG) == {}


def test_redis_is_imported_where_it_belongs() -> None:
    """Redis is the business of the store's client, and of the transport."""
    found = set()
    for module, tree in PACKAGE.trees.items():
        names = [
            *(a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names),
            *(n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)),
        ]
        if any(name.partition(".")[0] == "redis" for name in names):
            found.add(module)
    outside = {module for module in found if not module.startswith("demo.")}
    clients = {"store.answers", "store.client", "store.connections"}
    assert outside <= {*clients, "claims.transport", "claims.ringing"}


def test_the_picture_is_current() -> None:
    text = layout.PICTURE.read_text(encoding="utf-8")
    assert layout.redraw(text, PACKAGE.picture()) == text, "python scripts/layout.py --write"


def test_the_unit_tests_stand_as_the_package_does() -> None:
    folders = {path.name for path in (ROOT / "tests" / "unit").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} <= set(PACKAGE.folders)


def test_benchmarks_take_nothing_of_the_tests_but_servers_processes_and_chaos() -> None:
    allowed = {"tests.servers", "tests.support.processes", "tests.chaos.rounds"}
    found = {}
    for path in (ROOT / "benchmarks").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        found[path.name] = {name for name in names if name.partition(".")[0] == "tests"}
    assert set().union(*found.values()) == allowed, found


def test_all_slots_are_on_the_page() -> None:
    """What a process has one of, and what becomes of it in a fork."""
    page = layout.PICTURE.read_text(encoding="utf-8")
    written = {
        (name, where): fork
        for name, where, fork in re.findall(
            r"^\| ([^|]+) \| `(\w+/\w+\.py)` \| ([^|]+) \|", page, re.M
        )
    }
    declared = {
        (ast.literal_eval(node.args[0]), f"{module.replace('.', '/')}.py"): {
            word.arg: ast.unparse(word.value) for word in node.keywords
        }["in_fork"]
        for module, tree in PACKAGE.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Slot"
    }
    assert written.keys() == declared.keys()
    for slot, in_fork in declared.items():
        assert in_fork.startswith("_") or written[slot].startswith(in_fork), slot


def test_files_that_the_docs_name_are_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"`((?!t/)(?:\w+/)+\w+\.\w+)`", page.read_text(encoding="utf-8")):
            places = (ROOT / name, ROOT / layout.NAME / name)
            assert any(place.exists() for place in places), f"{page.name}: {name}"


@pytest.mark.parametrize("folder", PACKAGE.folders)
def test_the_table_of_folders_names_each_module(folder: str) -> None:
    """In the row of its folder, so that whoever looks for a concept finds its file."""
    text = layout.PICTURE.read_text(encoding="utf-8")
    row = re.search(rf"^\| `{folder}/` \|(.*)\|$", text, re.M)
    assert row is not None, folder
    modules = {path.name for name, path in PACKAGE.files.items() if name.startswith(f"{folder}.")}
    assert set(re.findall(r"`(\w+\.py)`", row[1])) == modules


def _named_in_the_journeys() -> list[tuple[str, str]]:
    """``file: function`` pairs of the design page."""
    text = layout.PICTURE.read_text(encoding="utf-8")
    return re.findall(r"`(\w+/\w+\.py)`:\s+`([\w.]+)`", text)


def test_the_journeys_lead_past_what_is_there() -> None:
    pairs = _named_in_the_journeys()
    assert len(pairs) > 30
    for file, name in pairs:
        tree = PACKAGE.trees.get(file.removesuffix(".py").replace("/", "."))
        assert tree is not None, file
        for part in name.split("."):
            tree = next((n for n in tree.body if getattr(n, "name", None) == part), None)
            assert tree is not None, f"{file}: {name}"


class TestRulesFail:
    """A rule that cannot fail is none: each, on a package that breaks it."""

    @staticmethod
    def package(folder: Path, **files: str) -> object:
        for name, text in files.items():
            path = folder.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            if path.parent != folder:
                (path.parent / "__init__.py").touch()
            path.write_text(text)
        (folder / "__init__.py").touch()
        return layout.Package(folder)

    def test_an_arrow_up(self, tmp_path: Path) -> None:
        under = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
        package = self.package(
            tmp_path,
            system__a=under + "from celery_graceful.worker.b import B",
            worker__b="class B: ...",
            runs__c="step = 'celery_graceful.worker.b:B'",
        )
        assert package.upwards() == ["runs.c -> worker.b", "system.a -> worker.b"]

    def test_a_circle_of_files(self, tmp_path: Path) -> None:
        package = self.package(
            tmp_path,
            system__a="def f():\n    from celery_graceful.system import b",
            system__b="from celery_graceful.system.a import f",
        )
        assert len(package.circles()) == 1

    def test_a_circle_of_folders(self, tmp_path: Path) -> None:
        package = self.package(
            tmp_path,
            system__a="from celery_graceful.worker import c",
            system__b="",
            worker__c="",
            worker__d="from celery_graceful.system import b",
        )
        assert len(package.circles()) == 1

    def test_a_side_door(self, tmp_path: Path) -> None:
        package = self.package(
            tmp_path, system__a="", worker__b="from celery_graceful.system import a"
        )
        assert package.past_the_door() == ["worker.b -> system.a"]
        (tmp_path / "system" / "__init__.py").write_text('__all__ = ["a"]')
        assert layout.Package(tmp_path).past_the_door() == []

    def test_an_attribute_set_from_outside(self, tmp_path: Path) -> None:
        package = self.package(
            tmp_path,
            system__a="class A:\n    def __init__(self):\n        self.x = 1",
            worker__b="def f(a):\n    a.x = 2\n    b = B()\n    b.x = 3\n    a.foreign = 4",
        )
        assert package.set_from_outside() == ["worker.b:2 a.x"]
