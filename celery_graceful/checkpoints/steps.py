"""``step``: a part of a task that runs once, however often the task is resumed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from celery.utils.log import get_logger

from celery_graceful.checkpoints.checkpoint import STEP
from celery_graceful.checkpoints.codec import decode, encode
from celery_graceful.checkpoints.iteration import Progress, Scope
from celery_graceful.system.arguments import check_call

__all__ = ["step"]

T = TypeVar("T")

_RUN_IT = "give one that runs it to its end, such as lambda: asyncio.run(charge())"

logger = get_logger(__name__)


def step(
    progress: Progress, name: str, fn: Callable[..., T], args: tuple[Any, ...], kwargs: Any
) -> T:
    """Run ``fn`` unless an earlier run of the task has done so; its result in both cases.

    Raises:
        CheckpointError: The result is not JSON, or too large.
        Interrupted: The task has to stop; ``fn`` has not been called.
        TypeError: ``fn`` is no plain function.
    """
    what = f"step({name!r}, ...)"
    check_call(what, fn, why_not_async=_RUN_IT)
    scope, checkpoint = progress.scope, progress.checkpoint
    path = scope.path("step", name)
    field = STEP + path
    text = checkpoint.get(field)
    if text is not None:
        place, result = decode(text)
        if place < scope.last_place:
            logger.warning(
                "%s[%s]: the step %r was saved before the one that now comes first. Its result "
                "is used; what runs in between may expect another order",
                checkpoint.name,
                checkpoint.task_id,
                path,
            )
        progress.reach(path)
        scope.reach(place)
        progress.watch.step_known(path)
        return result  # type: ignore[no-any-return]
    _warn_renamed(progress, scope, path)
    progress.stand()
    before = checkpoint.state_in_hand
    progress.watch.step_begins(path)
    result = fn(*args, **kwargs)
    if inspect.isawaitable(result):
        check_call(what, result, why_not_async=_RUN_IT)
    progress.watch.step_ran(path)
    limit = checkpoint.settings.checkpoint_max_bytes
    encoded = encode(result, f"the result of step {path!r}", limit)
    scope.reach(scope.last_place + 1)
    checkpoint.put(field, f"[{scope.last_place},{encoded}]")
    if checkpoint.state_in_hand is not before:
        checkpoint.item_done()  # what a step has set is saved with it: it will not run again
    progress.save()
    progress.watch.step_saved(path)
    # As every later run will see it: a list of its own, for instance.
    return decode(encoded)  # type: ignore[no-any-return]


def _warn_renamed(progress: Progress, scope: Scope, path: str) -> None:
    here = len(scope.prefix)
    unreached = [p for p in progress.unreached(scope.prefix) if "@" not in p[here:]]
    if unreached:
        logger.warning(
            "%s[%s]: the step %r runs for the first time, although %s, which this run has not "
            "come to, has run already. If it was renamed, it runs a second time now",
            progress.checkpoint.name,
            progress.checkpoint.task_id,
            path,
            ", ".join(map(repr, unreached)),
        )
