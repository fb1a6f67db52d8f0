"""Deaths, counted, and the quarantine for tasks that keep killing their process.

Come in by `deaths.judge` (a rescue), `post_mortem.PostMortems` (a worker), and
`quarantine` (the command line).

May not know of requests: of messages and claims only.
"""

__all__ = ["deaths", "owning_app", "post_mortem", "quarantine"]
