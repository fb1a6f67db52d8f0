"""Whether a stop signal reaches the worker: what a container starts, and what that starts.

The first process of a container gets SIGTERM. If it is a shell that waits for its child, it ignores
that, as the first process does with all that it has no handler for; the worker hears nothing, and
is killed when the grace is over.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["Started", "for_a_shell", "in_front", "read_dockerfile"]

SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}

#: Programs that hand signals on to their one child, and what makes them tell the whole group.
INITS = {"tini": {"-g"}, "tini-static": {"-g"}, "docker-init": {"-g"}, "catatonit": {"-g"}}
INITS |= {"dumb-init": set()}

#: Programs that run another one in their place.
PASS_ON = {"env", "exec", "gosu", "su-exec", "setpriv", "nice", "stdbuf"}

_EXEC = re.compile(r"^\s*(?:\w+=\S*\s+)*exec\s+[^<>\d\s]", re.MULTILINE)
_INSTRUCTION = re.compile(r"\s*([a-z]+)\s+(.*)", re.I | re.S)
_ESCAPE = re.compile(r"(?:\s*#\s*\w+\s*=.*\n)*?\s*#\s*escape\s*=\s*`", re.I)

#: Instructions behind which other lines may stand, up to one that says that they are over.
_WITH_LINES = {"RUN", "COPY", "ADD", "ONBUILD"}
_HERE = re.compile(r"\d*<<(-?)([^<]+)")

#: An escaped character, or a variable, and what is there without it (``-``) or with it (``+``).
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?:(:?)([-+])([^{}$]*))?\})?")

_BY_SHELL = re.compile(r"&&|\|\|?|&|[^\s;]*;|\d*[<>]\S*")


@dataclass
class Started:
    """What a container starts.

    Attributes:
        argv: The command line.
        stop_signal: What it is stopped with; ``None``: who builds the image says so.
        folder: Where scripts that it names may lie.
    """

    argv: list[str] = field(default_factory=list)
    stop_signal: str | None = "SIGTERM"
    folder: Path = Path()


@dataclass
class _Stage:
    """What an image has that is built from a stage, or from those lines of it that were read."""

    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    stop_signal: str | None = "SIGTERM"
    build_args: dict[str, str | None] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)
    #: A shell's line as the entry point takes no arguments.
    takes_command: bool = True
    #: An entry point takes away the command of the stage that this one is built from.
    has_command: bool = False

    def next(self) -> _Stage:
        """One that is built from it."""
        return replace(
            self, build_args=dict(self.build_args), env=dict(self.env), has_command=False
        )

    def read(self, name: str, value: str, outside: _Stage) -> None:
        """One instruction.

        Args:
            name: Of the instruction.
            value: What stands behind it.
            outside: The lines before the first stage, for their arguments.
        """
        if name == "STOPSIGNAL":
            self.stop_signal = self.expanded(value.strip("\"'"))
        elif name == "SHELL":
            self.shell = _exec_form(value) or self.shell
        elif name == "ENTRYPOINT":
            form = _exec_form(value)
            self.entrypoint = [*self.shell, value] if form is None else form
            self.takes_command = form is not None
            if not self.has_command:
                self.command = []
        elif name == "CMD":
            form = _exec_form(value)
            self.command = [*self.shell, value] if form is None else form
            self.has_command = True
        elif name in ("ARG", "ENV"):
            self._set(name, value, outside)

    def _set(self, name: str, value: str, outside: _Stage) -> None:
        try:
            words = shlex.split(value)
        except ValueError:
            return
        if name == "ENV" and words and "=" not in words[0]:
            words = [f"{words[0]}={' '.join(words[1:])}"]
        variables = self.build_args if name == "ARG" else self.env
        for word in words:
            key, is_set, default = word.partition("=")
            if is_set:
                variables[key] = self.expanded(default)
            elif key in outside.build_args:
                variables[key] = outside.build_args[key]

    def expanded(self, text: str) -> str | None:
        """The text with what its variables are unless somebody sets others, if that is known."""
        known = {**self.build_args, **self.env}
        is_known = True

        def value(match: re.Match[str]) -> str:
            nonlocal is_known
            escaped, plain, name, or_empty, sign, word = match.groups()
            if escaped:
                return str(escaped)
            found = known.get(plain or name or "")
            if sign == "-":
                return word if found is None or (or_empty and not found) else found
            if found is None:
                is_known = False
                return ""
            if sign == "+":
                return "" if or_empty and not found else word
            return found

        text = _VARIABLE.sub(value, text)
        return text if is_known else None


def read_dockerfile(path: Path) -> Started:
    """What the image that is built from a file starts: that of its last stage.

    Raises:
        OSError: The file cannot be read.
    """
    stage = outside = _Stage()
    named: dict[str, _Stage] = {}
    for name, value in _instructions(path.read_text(encoding="utf-8-sig")):
        if name != "FROM":
            stage.read(name, value, outside)
            continue
        words = [word for word in value.split() if not word.startswith("--")]
        image = (outside.expanded(words[0]) if words else None) or ""
        stage = named.get(image.lower(), _Stage()).next()
        if [word.lower() for word in words[1:2]] == ["as"]:
            named[words[-1].lower()] = stage
    argv = [*stage.entrypoint, *(stage.command if stage.takes_command else [])]
    return Started(argv, stage.stop_signal, path.parent)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile, in capitals, with what stands behind it."""
    escape = "`" if _ESCAPE.match(text) else "\\"
    lines = text.splitlines()[::-1]
    while lines:
        line = ""
        while lines:
            part = lines.pop().rstrip()
            if part.lstrip().startswith("#") or (line and not part):
                continue
            line += part
            if not line.endswith(escape):
                break
            line = line[:-1]
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, value = match[1].upper(), match[2].strip()
        if name in _WITH_LINES:
            _skip_lines(value, lines)
        yield name, value


def _skip_lines(value: str, lines: list[str]) -> None:
    """Take away those that belong to an instruction (``<<EOF``); the last of them is next."""
    try:
        words = shlex.split(value, posix=False)
    except ValueError:
        words = value.split()
    for match in filter(None, map(_HERE.fullmatch, words)):
        last = match[2].strip("\"'")
        for i in reversed(range(len(lines))):
            if (lines[i].lstrip("\t") if match[1] else lines[i]) == last:
                del lines[i:]
                break


def _exec_form(value: str) -> list[str] | None:
    try:
        argv = json.loads(value)
    except ValueError:
        return None
    return argv if isinstance(argv, list) and all(isinstance(a, str) for a in argv) else None


def for_a_shell(argv: Sequence[str]) -> str | None:
    """The first word that is for a shell which has the line, such as ``&&``, if there is one."""
    if argv and re.match(r"\w+=", argv[0]):
        return argv[0]
    return next((word for word in argv if _BY_SHELL.fullmatch(word)), None)


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
    # bash (5.2) puts the last one of a row into its place, others that one alone.
    is_replaced = name == "bash" and ends and words[ends[-1]] in (";", "&&", "||")
    return f"{name} -c {line!r}", bool(ends) and not is_replaced


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
