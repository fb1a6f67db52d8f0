"""Where batches are in Redis.

Keys, ``<id>`` being that of a batch:

``graceful:batch:<id>``
    Hash; all keys of a batch live for its ``ttl`` after each end, or its ``linger`` at the end.

    =====================  =========================================================
    ``kind``               ``batch`` or ``chord``
    ``state``              ``open``, ``sending``, ``sent``, ``done``, ``cancelled``
    ``total``              how many members were registered
    ``inside``             how many of those members and callbacks have added
    ``cleared``            how many were revoked, where the sets of those that succeeded or were
                           revoked are gone: nothing can come any more
    ``cut``                it was completed by force before all of it was sent: it cannot succeed
    ``lost``               members that Redis has lost, given up by force
    ``missing``            how many were found missing, by the last look
    ``created``            when it was opened; also ``moved``, ``finished``: milliseconds
    ``outcome``            what it was to its parent when it finished
    ``ttl``                milliseconds that it lives; also ``linger``
    ``lingers``            it is at its end: nothing can come any more
    ``hopes``              what is inside of it may still succeed after all
    ``description``        the user's; also ``properties``, JSON, and ``key``
    ``broker``             where members are sent, if several brokers share the store
    ``repairs``            how often missing members were dealt with by workers
    ``resent``             members were sent again: ends look for them in the hash of that name
    ``parent``             the batch that it is a member of
    ``sender``             who sends its members; one who did before is refused
    ``heard``              when who sends them was last heard of; and ``told``, if it was said that
                           nothing was heard since
    ``task``, ``run``      the task that has added it to its parent, and which run of it sends it
    ``adds``               as what that task has done so: a member, ``callback:<name>``, or empty
    ``adding:<task>``      batches that a task adds to it, while they are sent, and what they are
                           like: ``<id> <like>``
    ``callback:<name>``    JSON of what ``batches.model.Callback`` says
    ``fired:<name>``       ``due``, ``published``, ``ended``
    ``copy:<name>``        which copy of its message runs
    ``publishing:<name>``  when who publishes it, in several steps, was last heard of
    ``begun:<name>``       one of the tasks that it begins with does, or has
    ``round:<name>``       how often it was sent by hand: what ran before does not count
    ``again:<name>``       it may run although it counts as ended
    =====================  =========================================================

``graceful:batch:<id>:pending``, ``:succeeded``, ``:failed``, ``:revoked``
    Sets of members. Each is in one of them, and goes from one to another in one command.
``graceful:batch:<id>:kids``
    Set: batches inside of it whose callbacks have not ended.
``graceful:batch:<id>:messages``
    Hash: member -> its message, compressed, until it succeeds.
``graceful:batch:<id>:unsent``
    Set: members that a member or callback added, and then could not send. It expires by itself.
``graceful:batch:<id>:resent``
    Hash: member, or ``callback:<name>``, that was sent again -> when, and when it has ended since:
    milliseconds, with a space between them. It expires by itself.
``graceful:batch:<id>:places``
    Hash, while it is sent: place of a batch inside of it, and what that is like -> its id.
``graceful:batch:<id>:copies``
    Hash: ``<callback>:<task>``, of a callback of several tasks that have one id in all copies ->
    round, and the copy that runs.
``graceful:batches:named:<key>``
    The batch of that key, while it is kept.
``graceful:batches``
    Sorted set: unfinished batch -> when it moved last, milliseconds of the server's clock.
``graceful:batches:outbox``
    Hash: ``<batch>:<callback>`` that is due and not published -> since when.

Missing members: see ``findings.py``, ``caretaker.py``, ``holders.py``.
"""

from __future__ import annotations

__all__ = ["INDEX", "OUTBOX", "key_named", "key_of"]

INDEX = "graceful:batches"
OUTBOX = "graceful:batches:outbox"


def key_of(batch_id: str, part: str = "") -> str:
    """The key of a batch, or of one of its sets."""
    return f"graceful:batch:{batch_id}{':' if part else ''}{part}"


def key_named(name: str) -> str:
    """Whose value is the batch that its user gave that key."""
    return f"{INDEX}:named:{name}"
