"""``python -m celery_graceful_probe live|ready``: what a worker says of itself in its file.

A module of its own that imports next to nothing: the package would import Celery, which takes many
times as long as the answer. The file is ``--file``, or ``GRACEFUL_PROBE_FILE`` in the environment.
Its two lines are ``stale <seconds>``, and ``ready`` or ``not ready: <why>``; it is touched for as
long as the worker is alive.

Exits with 0 for yes, 1 for no, 2 where the command line cannot be used, 3 where there is no file.
"""

import os
import sys
import time

__all__ = ["ENVIRON", "YES", "look", "main", "written"]

#: Names the file, to the worker and to those who ask.
ENVIRON = "GRACEFUL_PROBE_FILE"

YES, NO, USAGE, NONE = range(4)

_QUESTIONS = ("live", "ready")


def written(stale: float, not_ready: str) -> str:
    """What is in the file; ``not_ready`` says why it is not, and is empty if it is."""
    return f"stale {stale:g}\n{f'not ready: {not_ready}' if not_ready else 'ready'}\n"


def look(question: str, path: str) -> "tuple[int, str]":
    """Answer from a file.

    Args:
        question: ``live`` or ``ready``.
        path: The file.

    Returns:
        The exit status, and a line for people.
    """
    try:
        with open(path) as file:
            lines = file.read().splitlines()
            touched = os.fstat(file.fileno()).st_mtime
        stale, ready = float(lines[0].split()[1]), lines[1]
    except OSError as exc:
        return NONE, f"no worker has written {path}: {exc.strerror}"
    except (IndexError, ValueError):
        return NONE, f"{path} was not written by a worker"
    age = abs(time.time() - touched)  # a clock that was set back is set forth by the next touch
    if age > stale:
        return NO, f"not live: its event loop has not turned for {age:.0f} s, of {stale:g}"
    if question == "ready":
        return (YES if ready == "ready" else NO), ready
    return YES, "live"


def main(argv: "list[str]") -> int:
    """Answer the command line."""
    path = os.environ.get(ENVIRON, "")
    if len(argv) == 3 and "--file" in argv[:2]:
        at = argv.index("--file")
        _, path = argv.pop(at), argv.pop(at)
    if len(argv) != 1 or argv[0] not in _QUESTIONS or not path or "%" in path:
        print(f"celery_graceful_probe live|ready [--file FILE, else ${ENVIRON}]", file=sys.stderr)
        return USAGE
    status, said = look(argv[0], path)
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
