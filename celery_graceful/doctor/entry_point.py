"""Whether a stop signal reaches the worker: what a container starts, and what that starts.

The first process of a container gets SIGTERM. If it is a shell that waits for its child, it ignores
that, as the first process does with all that it has no handler for; the worker hears nothing, and
is killed when the grace is over.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Started", "in_front", "read_dockerfile"]

SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}

#: Programs that hand signals on to their one child, and what makes them tell the whole group.
INITS = {"tini": {"-g"}, "tini-static": {"-g"}, "docker-init": {"-g"}, "catatonit": {"-g"}}
INITS |= {"dumb-init": set()}

#: Programs that run another one in their place.
PASS_ON = {"env", "exec", "gosu", "su-exec", "setpriv", "nice", "stdbuf"}

_EXEC = re.compile(r"^\s*(?:\w+=\S*\s+)*exec\s+[^<>\d\s]", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*(FROM|ENTRYPOINT|CMD|STOPSIGNAL|SHELL)\s+(.*)$", re.I | re.S)


@dataclass
class Started:
    """What a container starts.

    Attributes:
        argv: The command line.
        stop_signal: What it is stopped with.
        folder: Where scripts that it names may lie.
    """

    argv: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"
    folder: Path = Path()


def read_dockerfile(path: Path) -> Started:
    """What the image that is built from a file starts: that of its last stage.

    Raises:
        OSError: The file cannot be read.
    """
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = Started(folder=path.parent)
    shell = ["/bin/sh", "-c"]
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, value = match[1].upper(), match[2].strip()
        if name == "FROM":
            shell, entrypoint, command = ["/bin/sh", "-c"], None, None
            found.stop_signal = "SIGTERM"
        elif name == "STOPSIGNAL":
            found.stop_signal = value
        elif name == "SHELL":
            shell = _exec_form(value) or shell
        elif name == "ENTRYPOINT":
            form = _exec_form(value)
            # A shell's line takes no arguments; one in place of it takes those that come behind.
            entrypoint, command = form or [*shell, value], None if form else []
        elif entrypoint is None or command != []:
            command = _exec_form(value) or [*shell, value]
    found.argv = [*(entrypoint or []), *(command or [])]
    return found


def _exec_form(value: str) -> list[str] | None:
    try:
        argv = json.loads(value)
    except ValueError:
        return None
    return argv if isinstance(argv, list) and all(isinstance(a, str) for a in argv) else None


def in_front(argv: Sequence[str], folder: Path) -> tuple[str, bool] | None:
    """The shell that stands between the platform and the worker, if there is one.

    Args:
        argv: What is started.
        folder: Where scripts that it names may lie.

    Returns:
        What it is, for people, and whether that is sure: some shells replace themselves by a
        command that is the only one.

    Raises:
        FileNotFoundError: It is a script that is not there.
    """
    rest = list(argv)
    while rest:
        name = Path(rest[0]).name
        if name in INITS:
            options = rest[1 : next((i for i, a in enumerate(rest) if i and a[:1] != "-"), 1)]
            if name == "dumb-init" and not {"-c", "--single-child"} & {*options}:
                return None  # it tells all of the group
            if INITS[name] & {*options}:
                return None
            rest = rest[1 + len(options) :]
        elif name in PASS_ON:
            rest = _after(name, rest[1:])
        elif name in SHELLS:
            return _shell(name, rest[1:], folder)
        elif name.endswith((".sh", ".bash")) or _is_for_a_shell(_find(rest[0], folder)):
            return _script(rest[0], folder)
        else:
            return None
    return None


def _after(name: str, rest: list[str]) -> list[str]:
    """The command of a program that runs it in its place."""
    while rest and (rest[0].startswith("-") or "=" in rest[0]):
        rest = rest[1:]
    return rest[1:] if name in ("gosu", "su-exec") else rest  # the user


def _shell(name: str, rest: list[str], folder: Path) -> tuple[str, bool] | None:
    if name == "busybox":
        rest = rest[1:]
    while rest and rest[0].startswith("-"):
        option, rest = rest[0], rest[1:]
        if option.startswith("--"):
            continue
        if option.endswith("o"):  # -o pipefail
            rest = rest[1:]
        if "c" in option:
            return _line(name, rest[0] if rest else "")
    return _script(rest[0], folder) if rest else None


def _line(name: str, line: str) -> tuple[str, bool] | None:
    words = list(shlex.shlex(line.rstrip("; \n"), posix=True, punctuation_chars=True))
    ends = [i for i, word in enumerate(words) if set(word) <= set(";&|()")]
    last = words[ends[-1] + 1 :] if ends else words
    while last and re.fullmatch(r"\w+=.*", last[0]):
        last = last[1:]
    if last[:1] == ["exec"]:
        return None
    return f"{name} -c {line!r}", bool(ends)


def _find(path: str, folder: Path) -> Path | None:
    places = [folder / path.lstrip("/"), folder / Path(path).name, Path(path)]
    return next((place for place in places if place.is_file()), None)


def _is_for_a_shell(path: Path | None) -> bool:
    if path is None:
        return False
    with path.open("rb") as file:
        first = file.readline(200).decode(errors="replace")
    words = re.split(r"[\s/]+", first) if first.startswith("#!") else []
    return not SHELLS.isdisjoint(words)


def _script(path: str, folder: Path) -> tuple[str, bool] | None:
    found = _find(path, folder)
    if found is None:
        raise FileNotFoundError(path)
    return None if _EXEC.search(found.read_text(encoding="utf-8")) else (path, True)
