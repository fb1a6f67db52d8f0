"""How a task goes on where it stopped.

Come in by `resume.Resumable` (in a task), `checkpoint.Checkpoint` (one delivery's),
`discard` (of tasks that have ended; the main process), and `watch` (who looks on, in tests) with
`codec`; `place` says where a task stands.

May not know which pool runs the task, or how its message goes back.
"""

__all__ = ["checkpoint", "codec", "discard", "place", "resume", "watch"]
