"""How far a worker is on its way to a stop, in memory that all of its processes share.

Come in by `board` (a worker's own), `worker_state` (what this process sees of it) and
`grace_period`.

May not know who runs, or who is told.
"""

__all__ = ["board", "grace_period", "successors", "tallies", "worker_state"]
