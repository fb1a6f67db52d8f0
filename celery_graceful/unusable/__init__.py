"""Messages that a worker cannot make a task of: unknown here, or unusable anywhere.

Come in by `detection`, with the worker's consumer; without a worker, by `waiting`, which reads what
waits for one that knows its task, and `giving_back`.

May not know of the drain.
"""

__all__ = ["detection", "giving_back", "waiting"]
