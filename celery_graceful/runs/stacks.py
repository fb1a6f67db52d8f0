"""Where a task stands in its code: files, lines and functions, and nothing of its values."""

from __future__ import annotations

import sys
from types import FrameType

from celery_graceful.runs.frames import is_hidden

__all__ = ["stack_of"]

#: Frames that are named, the innermost of them, and letters.
FRAMES, LETTERS = 25, 3500

#: Celery's, which calls tasks.
_TRACER = "celery.app.trace"


def stack_of(frame: FrameType | None) -> str:
    """The innermost frames from the task's own on, the last call last.

    Safe in a signal handler: it reads no file.
    """
    tracer = vars(sys.modules.get(_TRACER, sys))
    lines: list[str] = []
    letters = 0
    while frame is not None and len(lines) < FRAMES and frame.f_globals is not tracer:
        code = frame.f_code
        line = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'
        letters += len(line) + 1
        if letters > LETTERS:
            break
        if not is_hidden(code):
            lines.append(line)
        frame = frame.f_back
    return "\n".join(reversed(lines))
