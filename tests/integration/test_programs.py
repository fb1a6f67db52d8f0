"""Random programs of loops, steps and checkpoints, cut off anywhere, against whole runs."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.deliveries import Kill, bench

# A program is a list of nodes. What it does is the list of its effects: the paths of the
# steps that were run, and of the items of innermost loops.
STEP = st.tuples(st.just("step"), st.sampled_from("ab"))
CHECKPOINT = st.just(("checkpoint",))
LEAF = st.tuples(st.just("items"), st.integers(0, 4), st.booleans())
PROGRAMS = st.recursive(
    st.lists(STEP | CHECKPOINT | LEAF, min_size=1, max_size=4),
    lambda inner: st.lists(
        STEP | CHECKPOINT | LEAF | st.tuples(st.just("loop"), st.integers(0, 3), inner),
        min_size=1,
        max_size=4,
    ),
    max_leaves=12,
)


@dataclass
class Machine:
    """Runs a program as a task; `cuts` says what happens after which effect, counted over all."""

    program: list
    every: int | None
    cuts: dict[int, str] = field(default_factory=dict)
    effects: list = field(default_factory=list)
    steps: set = field(default_factory=set)
    killed: Counter = field(default_factory=Counter)

    def __call__(self, task, bench):
        self.bench = bench
        self.block(task, self.program, ())

    def block(self, task, nodes, path):
        for place, node in enumerate(nodes):
            here = (*path, place)
            if node[0] == "step":
                self.steps.add(here)
                assert task.step(node[1], self.effect, here) == str(here)
            elif node[0] == "checkpoint":
                task.checkpoint({"at": here})
                assert task.state == {"at": here}
            elif node[0] == "items":
                source = range(node[1]) if node[2] else iter(range(node[1]))
                for number in task.iterate(source, every=self.every):
                    self.effect((*here, number))
            else:
                for number in task.iterate(range(node[1]), every=self.every):
                    self.block(task, node[2], (*here, number))

    def effect(self, path):
        self.effects.append(path)
        cut = self.cuts.pop(len(self.effects), None)
        if cut == "interrupt":
            self.bench.interrupt()
        elif cut == "kill":
            self.killed[path] += 1
            raise Kill
        elif cut == "error":
            raise OSError
        return str(path)


def run(client, machine, interval=3600.0):
    """Deliver until it succeeds; a failure is tried again, as by a retry."""
    with bench(client, graceful_store=client.store_url) as b:

        def task(self):
            machine(self, b)

        made = b.task(task, checkpoint_interval=interval)
        for number in itertools.count():
            b.new_worker()
            try:
                state, result = b.deliver(made, id="t", redelivered=number > 0)
            except Kill:
                continue
            if state == "SUCCESS":
                break
            assert state == "IGNORED" or isinstance(result, OSError), result
        fields = b.saved(made, "t")
        client.flushdb()
    return fields


@pytest.fixture
def client(redis_db):
    redis_db.client.store_url = redis_db.url
    return redis_db.client


def whole(client, program):
    machine = Machine(program, None)
    run(client, machine)
    return machine.effects


def dedupe(effects):
    return list(dict.fromkeys(effects))


many = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CUTS = st.dictionaries(
    st.integers(1, 30), st.sampled_from(["kill", "error", "interrupt"]), max_size=6
)
PLACES = st.lists(st.integers(1, 30), max_size=6, unique=True)


@many
@given(program=PROGRAMS, places=PLACES)
def test_interrupts_change_nothing(client, program, places):
    machine = Machine(program, None, dict.fromkeys(places, "interrupt"))
    fields = run(client, machine)
    assert machine.effects == whole(client, program)
    # What inner loops and their steps had to remember is gone.
    assert not [name for name in fields if "@" in name]


@many
@given(program=PROGRAMS, cuts=CUTS)
def test_every_item_saved_repeats_one_effect_a_cut(client, program, cuts):
    machine = Machine(program, 1, dict(cuts))
    run(client, machine)
    # Only the effect in hand can be repeated, and at once.
    repeats = [a == b for a, b in itertools.pairwise(machine.effects)].count(True)
    assert repeats <= sum(cut != "interrupt" for cut in cuts.values())
    assert [key for key, _ in itertools.groupby(machine.effects)] == whole(client, program)


@many
@given(program=PROGRAMS, places=PLACES, interval=st.sampled_from([0.0, 3600.0]))
def test_kills_skip_nothing(client, program, places, interval):
    machine = Machine(program, None, dict.fromkeys(places, "kill"))
    run(client, machine, interval)
    expected = whole(client, program)
    assert dedupe(machine.effects) == expected
    # A step that has come back from its function has been saved.
    for path in machine.steps:
        assert machine.effects.count(path) == 1 + machine.killed[path]
