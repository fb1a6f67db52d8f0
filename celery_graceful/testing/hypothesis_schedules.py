"""Schedules of interruptions, for hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from celery_graceful.testing.events import (
    Event,
    interrupt_after_step,
    interrupt_at,
    interrupt_at_checkpoint,
    interrupt_in_step,
    kill_at,
)

__all__ = ["schedules"]


def schedules(
    *,
    rows: int = 0,
    steps: Sequence[str] = (),
    checkpoints: int = 0,
    kills: bool = True,
    most: int = 5,
) -> st.SearchStrategy[list[Event]]:
    """What happens to a task, one thing a delivery: for ``run.follow(*schedule)``.

    Args:
        rows: How many rows it has.
        steps: The names of its steps.
        checkpoints: How often it calls ``checkpoint``.
        kills: Whether it may be killed.
        most: Things that happen, at most.

    Raises:
        ValueError: It has neither rows nor steps nor checkpoints.
    """
    events: list[st.SearchStrategy[Event]] = []
    if rows:
        events.append(st.integers(1, rows).map(lambda row: interrupt_at(row=row)))
    if steps:
        events += [st.sampled_from(steps).map(interrupt_in_step)]
        events += [st.sampled_from(steps).map(interrupt_after_step)]
    if checkpoints:
        events.append(st.integers(1, checkpoints).map(interrupt_at_checkpoint))
    if kills:
        saved = st.booleans()
        if rows:
            events.append(
                st.builds(
                    lambda row, saved: kill_at(row=row, saved=saved), st.integers(1, rows), saved
                )
            )
        if steps:
            events.append(
                st.builds(
                    lambda step, saved: kill_at(step=step, saved=saved),
                    st.sampled_from(steps),
                    saved,
                )
            )
        if checkpoints:
            events.append(
                st.builds(
                    lambda number, saved: kill_at(checkpoint=number, saved=saved),
                    st.integers(1, checkpoints),
                    saved,
                )
            )
        if events:
            events.append(st.just(kill_at(end=True)))
    if not events:
        raise ValueError("schedules: say what the task has: rows=, steps= or checkpoints=")
    return st.lists(st.one_of(events), max_size=most)
