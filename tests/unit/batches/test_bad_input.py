"""What cannot be used is refused where it is given, by name, with the mend, and before anything."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature

from celery_graceful import Batch, BatchFinished, SettingsError, UnknownBatch
from celery_graceful.batches.batch import current_batch


@pytest.fixture
def app() -> Celery:
    app = Celery("bad", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task(name="bad.work", shared=False)
    def work(*args: Any) -> None: ...

    @app.task(name="bad.alone", shared=False)
    def alone() -> None: ...

    return app


class Unspeakable:
    def __repr__(self) -> str:
        return "Unspeakable()"


def test_what_is_no_member(app: Celery) -> None:
    work = app.tasks["bad.work"]

    @Celery("lazy", set_as_current=False).task(name="bad.lazy", shared=False)
    def lazy(*args: Any) -> None: ...

    for given, why in (
        (7, "7 is no member of a batch: give signatures"),
        ("bad.work", "'bad.work' is no member of a batch: give signatures"),
        (None, "None is no member"),
        (work, r"give its signature, such as work\.s\(1\)"),
        (lazy, r"give its signature, such as lazy\.s\(1\)"),
        (work.delay(1), "it was sent already: give the signature"),
        ({"no": "task"}, "is no member"),
    ):
        for members in (given, [given], [work.s(1), [given]], (one for one in [given])):
            batch = Batch(app=app)
            number = 2 if isinstance(members, list) and len(members) == 2 else 1
            with pytest.raises(TypeError, match=f"^member {number}: .*{why}"):
                batch.apply_async(members)
            with pytest.raises(UnknownBatch):
                batch.status()
        batch = Batch(app=app)
        with pytest.raises(TypeError, match=why):
            batch.add(work.s(1), given)


def test_nothing_is_begun_for_a_list_with_one_that_is_none(app: Celery) -> None:
    batch = Batch(app=app)
    with pytest.raises(TypeError):
        batch.apply_async([app.tasks["bad.work"].s(1), 7])
    with pytest.raises(UnknownBatch):
        batch.status()
    batch.apply_async([app.tasks["bad.work"].s(1)])
    assert batch.status().succeeded == 1


def test_members_without_a_last_task(app: Celery) -> None:
    work = app.tasks["bad.work"].s
    for given, why in (
        (chain(work(1), group(work(2), work(3))), "ends in a group"),
        (chord([work(1)], group(work(2), work(3))), "ends in a group"),
        (chord([work(1)]), "is a chord without a body"),
        (chain(), "has no tasks"),
    ):
        mend = "leave it out" if why == "has no tasks" else "end it with a task"
        with pytest.raises(ValueError, match=f"member 2, .*{why}.*: {mend}"):
            Batch(app=app).apply_async([work(1), given])


def test_a_member_that_cannot_be_serialized(app: Celery) -> None:
    with pytest.raises(TypeError, match=r"member 1, bad\.work\(Unspeakable\(\)\) cannot be serial"):
        Batch(app=app).apply_async([app.tasks["bad.work"].s(Unspeakable())])


def test_a_member_that_cannot_be_called(app: Celery) -> None:
    """Celery says so where it is sent: it would be registered by then, and never end."""
    work, alone = app.tasks["bad.work"], app.tasks["bad.alone"]
    for given in (
        alone.s(1),
        chain(alone.s(1), work.s()),
        chord([work.s(1), alone.s(1)], work.s()),
        chain(group(work.s(1), chain(alone.s(1), work.s())), work.s()),
        chain(work.s(1), alone.si(1)),
        chord([work.s(1)], chain(work.s(), alone.si(1))),
    ):
        for members in ([work.s(1), given], (one for one in [work.s(1), given])):
            batch = Batch(app=app)
            with pytest.raises(
                TypeError, match=r"member 2, bad\.alone\(1\) cannot be called: .*0 pos"
            ):
                batch.apply_async(members)
            with pytest.raises(UnknownBatch):
                batch.status()
    for given in (chain(work.s(), alone.si()), chain(alone.s(), work.s()), alone.s()):
        assert Batch(app=app).apply_async([given]).status().succeeded == 1


def test_a_member_for_a_queue_that_is_none(app: Celery) -> None:
    app.conf.task_create_missing_queues = False
    with pytest.raises(ValueError, match=r"member 1, .* cannot be sent: .*nowhere"):
        Batch(app=app).apply_async([app.tasks["bad.work"].s().set(queue="nowhere")])


def test_what_fails_before_anything_is_sent_can_be_sent_then(app: Celery) -> None:
    work, alone = app.tasks["bad.work"], app.tasks["bad.alone"]
    batch = Batch(app=app)
    batch.add(work.s(1))
    with pytest.raises(TypeError):
        batch.apply_async([alone.s(1)])
    assert batch.apply_async([alone.s()]).status().succeeded == 2


class Drained:
    """What can be iterated over, once, and is no iterator."""

    def __init__(self, members: list[Any]) -> None:
        self.members = members

    def __iter__(self) -> Any:
        while self.members:
            yield self.members.pop()


def test_what_makes_its_members_makes_them_once(app: Celery) -> None:
    work = app.tasks["bad.work"]
    made = Drained([work.s(n) for n in range(3)])
    assert Batch(app=app).apply_async([made, work.s(4)]).status().succeeded == 4
    batch = Batch(app=app)
    batch.add(Drained([work.s(n) for n in range(3)]))
    assert batch.apply_async().status().succeeded == 3
    lazy = group([work.s(1)])
    lazy.tasks = (work.s(n) for n in range(3))
    assert Batch(app=app).apply_async([group([lazy, work.s(3)])]).status().succeeded == 4


def inside(app: Celery, *members: Any, **callbacks: Any) -> Batch:
    batch = Batch(app=app, description="north", **callbacks)
    batch.add(*members)
    return batch


def test_a_batch_inside_that_cannot_be_sent(app: Celery) -> None:
    """It is seen before anything is, at any depth; and named."""
    work, alone = app.tasks["bad.work"], app.tasks["bad.alone"]
    twice, sent, loop = inside(app), inside(app), inside(app)
    Batch(app=app).apply_async([sent])
    loop.add(inside(app, loop))
    wrong = inside(app, work.s(), alone.s(1))
    for given, kind, why in (
        ([wrong], TypeError, r"member 2, bad\.alone\(1\) cannot be called"),
        ([inside(app, wrong)], TypeError, r"member 1, <.*member 2, bad\.alone\(1\) cannot be ca"),
        ([inside(app, [chain()])], ValueError, "member 1, .* has no tasks"),
        ([inside(app, on_success=alone.s())], TypeError, r"on_success: bad\.alone\(\) cannot be"),
        ([inside(app, sent)], ValueError, "member 1, .* was sent before: make another one"),
        ([sent], ValueError, "was sent before"),
        ([twice, twice], ValueError, "is given twice: make another one"),
        ([inside(app, twice, inside(app, twice))], ValueError, "is given twice: make another one"),
        ([inside(app, inside(app, twice)), twice], ValueError, "is given twice: make another one"),
        ([loop], ValueError, "would be inside of itself: leave it out"),
    ):
        number = 1 + len(given)
        batch = Batch(app=app)
        with pytest.raises(kind, match=rf"^member {number}, <Batch .* \(north\)>.*{why}"):
            batch.apply_async([work.s(0), *given])
        with pytest.raises(UnknownBatch):
            batch.status()
        if len(given) == 1 and given[0] is not loop:
            batch = Batch(app=app)
            with pytest.raises(kind, match=rf"^member 1, <Batch .* \(north\)>.*{why}"):
                batch.apply_async(iter(given))
            with pytest.raises(UnknownBatch):
                batch.status()
    with pytest.raises(ValueError, match="is given twice"):
        Batch(app=app).apply_async(iter([twice, twice]))


def test_a_batch_inside_of_itself(app: Celery) -> None:
    batch = Batch(app=app)
    batch.add(batch)
    with pytest.raises(ValueError, match=r"^member 1, .* would be inside of itself"):
        batch.apply_async()


def test_what_was_sent_is_not_sent_again(app: Celery) -> None:
    batch, work = Batch(app=app).apply_async(), app.tasks["bad.work"]
    with pytest.raises(BatchFinished, match="it was sent before; make a new one"):
        batch.apply_async()
    with pytest.raises(BatchFinished, match=r"for one that was sent: for a new one say Batch\("):
        Batch.load("nope", app=app).apply_async()
    with pytest.raises(BatchFinished, match="has ended"):
        batch.resume()

    def members() -> Any:
        yield work.s(1)
        yield inside(app, work.s(2))
        raise LookupError

    batch = Batch(app=app)
    with pytest.raises(LookupError) as caught:
        batch.apply_async(members())
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert "stays in state sending, with 2 members sent. Go on with Batch.load(id)" in note
    with pytest.raises(BatchFinished, match=r"a part of it was sent: go on with resume\(members\)"):
        batch.apply_async()


def test_a_chord_without_a_backend() -> None:
    """As Celery runs it where all is eager."""
    app = Celery("none", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task(name="none.work", shared=False)
    def work(*args: Any) -> None: ...

    assert Batch(app=app).apply_async([chord([work.s(1)], work.s())]).status().succeeded == 1
    app.conf.task_always_eager = False
    with pytest.raises(NotImplementedError):
        Batch(app=app).apply_async([chord([work.s(1)], work.s())])


def test_ids_given_twice(app: Celery) -> None:
    with pytest.raises(ValueError, match="two members have the id one"):
        Batch(app=app).apply_async([app.tasks["bad.work"].s(n).set(task_id="one") for n in (1, 2)])


@pytest.mark.parametrize("given", [7, "a\0b", "\udc80", "x" * 1001])
def test_ids_that_no_worker_takes(app: Celery, given: Any) -> None:
    with pytest.raises(ValueError, match=r"has the id .*: give text of up to 1000 characters"):
        Batch(app=app).apply_async([app.tasks["bad.work"].s(1).set(task_id=given)])


@pytest.mark.parametrize("name", ["on_success", "on_complete", "on_failure"])
def test_callbacks(app: Celery, name: str) -> None:
    work = app.tasks["bad.work"]
    for given, kind, why in (
        (work, TypeError, f"{name}: .* is no signature: give a signature"),
        ("bad.work", TypeError, "'bad.work' is no signature"),
        (dict(work.s()), TypeError, "is no signature"),
        (work.s(Unspeakable()), TypeError, rf"{name}: bad\.work\(Unspeakable\(\)\) cannot be ser"),
        (group(work.s(1), work.s(2)), ValueError, f"{name}: .* ends in a group"),
        (chain(work.s(1), group(work.s(1), work.s(2))), ValueError, "ends in a group"),
    ):
        with pytest.raises(kind, match=why):
            Batch(app=app, **{name: given})


def test_a_callback_that_takes_no_summary(app: Celery) -> None:
    alone = app.tasks["bad.alone"]
    for given in (alone.s(), chain(alone.s(), app.tasks["bad.work"].s())):
        batch = Batch(on_success=given, app=app)
        with pytest.raises(
            TypeError, match=r"gets the summary .*, and none as alone\.si\(\.\.\.\)"
        ):
            batch.apply_async()
        with pytest.raises(UnknownBatch):
            batch.status()
    assert Batch(on_success=alone.si(), app=app).apply_async().status().finished


def test_a_callback_for_no_queue(app: Celery) -> None:
    app.conf.task_create_missing_queues = False
    batch = Batch(on_success=app.tasks["bad.work"].s().set(queue="nowhere"), app=app)
    with pytest.raises(ValueError, match=r"on_success: .* cannot be sent: .*nowhere"):
        batch.apply_async()


def test_a_callback_of_another_project(app: Celery) -> None:
    """Its task is not known here: that is no error."""
    app.conf.task_always_eager = False
    batch = Batch(on_success=signature("elsewhere.task", app=app), app=app)
    with pytest.raises(
        SettingsError,
        match=r"graceful_store = None .* give the URL of one, .*; or app=, if bad is not",
    ):
        batch.apply_async()


def test_in_a_thread_that_has_no_app() -> None:
    """Celery makes one up there, which is nobody's."""
    said: list[str] = []

    def ask() -> None:
        try:
            Batch.load("one").status()
        except SettingsError as exc:
            said.append(str(exc))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "none is the current one of this thread: say app=, or app.set_default()" in said[0]


def test_properties(app: Celery) -> None:
    for given, kind, why in (
        ([1], TypeError, "is no dict of names"),
        ({1: 2}, TypeError, "is no dict of names"),
        ({"it": Unspeakable()}, TypeError, r"Unspeakable\(\)} is no JSON: .* ids in place"),
        ({"it": float("nan")}, TypeError, r"nan} is no JSON"),
        ({"it": "x" * 20_000}, ValueError, "20010 characters of JSON are too many"),
    ):
        with pytest.raises(kind, match=why):
            Batch(properties=given, app=app)  # type: ignore[arg-type]


def test_the_rest_of_the_arguments(app: Celery) -> None:
    with pytest.raises(TypeError, match=r"^Batch\.__init__\(\) got an unexpected keyword"):
        Batch(on_sucess=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="description: 7 is no text"):
        Batch(description=7, app=app)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"description: 'half \\udc80' cannot be encoded"):
        Batch(description="half \udc80", app=app)
    with pytest.raises(TypeError, match="key: 7 is no text"):
        Batch(key=7, app=app)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key: 201 characters are too many, give 200 at most"):
        Batch(key="x" * 201, app=app)
    for empty in ("", "  ", "two\nlines"):
        with pytest.raises(ValueError, match="says nothing, or not in one line"):
            Batch(key=empty, app=app)
    with pytest.raises(ValueError, match=r"'' is no id, give batch\.id"):
        Batch.load("", app=app)
    with pytest.raises(TypeError, match=r"7 is no id, give batch\.id"):
        Batch.load(7, app=app)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no number of seconds"):
        Batch(app=app).wait(timeout="1")  # type: ignore[arg-type]


def test_unknown(app: Celery) -> None:
    with pytest.raises(UnknownBatch, match="there is no batch 'nobody'"):
        Batch.load("nobody", app=app).status()
    with pytest.raises(UnknownBatch):
        Batch(app=app).status()
    assert current_batch() is None


def test_protocol_1(app: Celery) -> None:
    app.conf.update(task_always_eager=False, task_protocol=1)
    with pytest.raises(SettingsError, match="task_protocol = 1 cannot be used"):
        Batch(app=app).apply_async()
