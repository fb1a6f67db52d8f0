"""Commands that are told to people, to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

__all__ = ["pasted"]


def pasted(command: Sequence[str], name: str) -> str:
    """A command with its options, and the name of what it is about.

    Args:
        command: Its words and options.
        name: An id, or a name, which may look like an option.
    """
    return shlex.join([*command, *(["--"] if name.startswith("-") else []), name])
