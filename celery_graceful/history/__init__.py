"""The unusual moments of tasks: written where they happen, gathered, read by operators.

Come in by `journal` (writes), `entry` (what is written) and `reading`.

May not know what a task is, nor what becomes of one.
"""

__all__ = ["entry", "journal", "reading"]
