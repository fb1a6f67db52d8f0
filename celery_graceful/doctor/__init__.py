"""What is wrong with an app and its environment, before a worker finds out.

Come in by `examination` and `findings`.

May not know of a running worker: what workers say of themselves is in the store.
"""

__all__ = ["examination", "findings", "report"]
