#!/usr/bin/env python3
"""How the package is laid out: its figures, the arrows that break a rule, and its picture.

Run it in the project's root: it prints the figures and the offenders, and fails if there is one.
``--write`` draws the picture of the folders anew, in ``docs/design.md``.
``tests/unit/test_layout.py`` runs the same checks.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

NAME = "celery_graceful"
ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "design.md"

#: The rooms of the package, from the bottom to the top: folders, and the modules at its root.
#: A room imports from floors below its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("system",),
    ("timeline",),
    ("store", "cleanup", "runs", "messages", "probes"),
    ("history",),
    ("sources", "claims", "monitors"),
    ("checkpoints", "metrics", "results"),
    ("batches",),
    ("task", "poison"),
    ("deliveries",),
    ("unusable", "membership", "pools"),
    ("operations",),
    ("worker", "doctor"),
    ("cli", "demo", "testing"),
)

#: At the root: what everything stands on, and what users import.
GROUND = ("exceptions", "phases", "settings", "signals")
DOORS = ("__init__", "aio", "plugin")

#: Lines at which a file is said to be long, and at which it is refused.
LONG, TOO_LONG = 400, 450

#: Attributes of Celery's objects that one of ours has by the same name.
CELERYS = (
    "box.loop",
    "cached_property.lock",
    "consumer.callbacks",
    "sig.tasks",
    "task.run",
    "worker.graceful",
)

#: Modules at the root that are too many.
MOST_AT_ROOT = 8


class Arrow(NamedTuple):
    """``source`` imports ``target``; both without the package's name."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


class Package:
    """The modules of the package, and what they import of each other.

    What only type checkers see counts, what is imported inside of functions too, and what is
    imported by its name (``"celery_graceful.worker.bootsteps:WorkerStep"``).
    """

    def __init__(self, folder: Path = ROOT / NAME) -> None:
        self.files = {self._name(p.relative_to(folder)): p for p in sorted(folder.rglob("*.py"))}

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {
            name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()
        }

    @staticmethod
    def _name(path: Path) -> str:
        parts = path.with_suffix("").parts
        return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)

    @property
    def folders(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in self.files if "." in name})

    @property
    def at_root(self) -> list[str]:
        """The modules side by side at the root."""
        return [n for n in self.files if "." not in n and n not in self.folders and n != "__init__"]

    @cached_property
    def arrows(self) -> list[Arrow]:
        """Between modules; of a folder's ``__init__`` only those of whom imports from it."""
        return sorted(
            {Arrow(name, target) for name, tree in self.trees.items() for target in self._of(tree)}
            - {Arrow(name, name) for name in self.files}
        )

    def _of(self, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = re.findall(rf"^({NAME}\.[\w.]+):\w+$", node.value)
            else:
                continue
            for name in names:
                head, _, rest = name.partition(".")
                if head == NAME:
                    while rest and rest not in self.files:  # a name in a module
                        rest = rest.rpartition(".")[0]
                    yield rest or "__init__"

    def rooms(self) -> set[Arrow]:
        """The arrows between folders."""
        ends = {(a.source.partition(".")[0], a.target.partition(".")[0]) for a in self.arrows}
        return {Arrow(a, b) for a, b in ends if a != b and {a, b} <= set(self.folders)}

    # -- what is against a rule ----------------------------------------------------------

    def upwards(self) -> list[str]:
        """Arrows to a floor that is not below."""
        floor = {room: n for n, rooms in enumerate(FLOORS, 1) for room in rooms}
        floor |= dict.fromkeys(GROUND, 0)
        wrong = []
        for arrow in self.arrows:
            source, target = (name.partition(".")[0] for name in arrow)
            if source == target or source in (*DOORS, "demo") or {source, target} <= {*GROUND}:
                continue
            if target in DOORS or floor[target] >= floor[source]:
                wrong.append(str(arrow))
        return wrong

    def circles(self) -> list[str]:
        """One circle of files, and one of folders, if there are any."""
        found = []
        for arrows in (self.arrows, self.rooms()):
            graph: dict[str, set[str]] = {}
            for source, target in arrows:
                graph.setdefault(source, set()).add(target)
            try:
                TopologicalSorter(graph).prepare()
            except CycleError as exc:
                found.append(" <- ".join(exc.args[1]))
        return found

    def past_the_door(self) -> list[str]:
        """Imports of what a folder does not name in its ``__all__``."""
        wrong = []
        for arrow in self.arrows:
            room, _, inside = arrow.target.partition(".")
            if inside and room != arrow.source.partition(".")[0] and inside not in self.doors(room):
                wrong.append(str(arrow))
        return wrong

    def doors(self, folder: str) -> list[str]:
        """What others may import of a folder."""
        for node in self.trees[folder].body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return list(ast.literal_eval(node.value))
        return []

    def set_from_outside(self) -> list[str]:
        """Attributes of our objects that another file than the one of their class sets.

        Not what a function sets on what it has just made itself.
        """
        ours: dict[str, set[str]] = {}
        for name, tree in self.trees.items():
            for cls in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
                for attribute in _attributes(cls):
                    ours.setdefault(attribute, set()).add(name)
        return [
            f"{name}:{node.lineno} {ast.unparse(node)}"
            for name, tree in self.trees.items()
            for node in _outside_sets(tree)
            if node.attr in ours
            and name not in ours[node.attr]
            and ast.unparse(node) not in CELERYS
        ]

    def long_files(self, most: int) -> dict[str, int]:
        """Files of more lines than that."""
        texts = {name: path.read_text(encoding="utf-8") for name, path in self.files.items()}
        lengths = {name: len(text.splitlines()) for name, text in texts.items()}
        return {name: lines for name, lines in lengths.items() if lines > most}

    # -- what is drawn -----------------------------------------------------------------

    def picture(self) -> str:
        """The folders and their arrows in Mermaid; arrows that follow from others are left out."""
        arrows = self.rooms()
        reach: dict[str, set[str]] = {}
        for floor in FLOORS:
            for room in floor:
                below = {a.target for a in arrows if a.source == room}
                reach[room] = below.union(*(reach[b] for b in below)) if below else set()
        lines = ["```mermaid", "graph TD", "    accTitle: Which folder imports from which"]
        for floor in reversed(FLOORS):
            for room in floor:
                below = {a.target for a in arrows if a.source == room}
                direct = [b for b in sorted(below) if not any(b in reach[o] for o in below)]
                lines += [f"    {room} --> {target}" for target in direct] or [f"    {room}"]
        return "\n".join([*lines, "```"])


def _attributes(cls: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            base = node.value
            yield from [node.attr] * (isinstance(base, ast.Name) and base.id in ("self", "cls"))
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _outside_sets(tree: ast.Module) -> Iterator[ast.Attribute]:
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        made = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                base = node.value
                if not (isinstance(base, ast.Name) and base.id in {"self", "cls", *made}):
                    yield node


BEGIN, END = "<!-- drawn by scripts/layout.py -->", "<!-- end of the drawing -->"


def redraw(text: str, picture: str) -> str:
    """A page with the picture as it is now."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{picture}\n{END}", text, flags=re.DOTALL)


def main() -> int:
    package = Package()
    if "--write" in sys.argv:
        PICTURE.write_text(redraw(PICTURE.read_text(), package.picture()))
    at_root, long = package.at_root, package.long_files(LONG)
    rules = {
        "arrows up": package.upwards(),
        "circles": package.circles(),
        "past a folder's door": package.past_the_door(),
        "attributes set from outside": package.set_from_outside(),
    }
    print(f"modules at the root: {len(at_root)} ({', '.join(at_root)})")
    print(f"folders: {len(package.folders)}; arrows between them: {len(package.rooms())}")
    print(f"files: {len(package.files)}; arrows between them: {len(package.arrows)}")
    print(f"files over {LONG} lines: {len(long)} {long or ''}")
    for rule, offenders in rules.items():
        print(f"{rule}: {len(offenders)}", *offenders, sep="\n    ")
    wrong = len(at_root) > MOST_AT_ROOT or package.long_files(TOO_LONG) or any(rules.values())
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
