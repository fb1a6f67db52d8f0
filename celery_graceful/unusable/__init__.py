"""Messages that a worker cannot make a task of: unknown here, or unusable anywhere.

Come in by `detection`, with the worker's consumer.

May not know of the drain.
"""

__all__ = ["detection"]
