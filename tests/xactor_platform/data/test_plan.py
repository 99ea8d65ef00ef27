"""Test that a plan has every frame once, stays within its budget, and is the same for every number of ranks."""

import time
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xactor_platform.data.plan import Cursor, PlanConfig, plan_epoch, planned_steps, rank_micro_batches


@st.composite
def corpora(draw):
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=60))
    shard = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    return np.array(lengths), np.array(shard)


@st.composite
def configs(draw):
    context = draw(st.integers(1, 80))
    return PlanConfig(
        seed=draw(st.integers(0, 5)),
        micro_batches=draw(st.sampled_from([1, 4, 6, 8])),
        context_frames=context,
        budget_frames=context + draw(st.integers(0, 300)),
        shuffle_shards=draw(st.integers(1, 4)),
    )


def samples_of(batches):
    """Return the row, the start and the number of frames of every sample. Fillers are left out."""
    return [
        (int(row), int(start), int(frames))
        for batch in batches
        if not batch.is_filler
        for row, start, frames in zip(batch.row, batch.start, batch.frames, strict=True)
    ]


def steps_of(plan):
    return [plan.step(i) for i in range(plan.steps)]


@given(corpora(), configs(), st.integers(0, 3))
def test_every_frame_is_in_exactly_one_sample(corpus, config, epoch):
    lengths, shard = corpus
    plan = plan_epoch(lengths, shard, config, epoch)
    spans = sorted(samples_of(batch for step in steps_of(plan) for batch in step))
    for row, frames in enumerate(lengths):
        own = [(start, start + n) for r, start, n in spans if r == row]
        assert own[0][0] == 0
        assert own[-1][1] == frames
        assert all(end == start for (_, end), (start, _) in pairwise(own))


@given(corpora(), configs(), st.integers(0, 3))
def test_a_clip_has_as_many_whole_samples_as_fit_without_overlap(corpus, config, epoch):
    lengths, shard = corpus
    config = replace(config, whole=True)
    if lengths.max() < config.context_frames:
        with pytest.raises(ValueError, match=f"no clip has {config.context_frames} frames, the longest has"):
            plan_epoch(lengths, shard, config, epoch)
        return
    plan = plan_epoch(lengths, shard, config, epoch)
    spans = sorted(samples_of(batch for step in steps_of(plan) for batch in step))
    assert {n for _, _, n in spans} == {config.context_frames}
    for row, frames in enumerate(lengths):
        starts = [start for r, start, _ in spans if r == row]
        assert len(starts) == frames // config.context_frames
        assert all(b - a >= config.context_frames for a, b in pairwise(starts))
        assert not starts or (starts[0] >= 0 and starts[-1] + config.context_frames <= frames)


def test_whole_samples_reach_every_frame_over_the_epochs():
    lengths, config = np.array([37]), PlanConfig(micro_batches=1, context_frames=16, whole=True)
    seen = set()
    for epoch in range(60):
        for _, start, frames in samples_of(plan_epoch(lengths, np.zeros(1), config, epoch).step(0)):
            seen |= set(range(start, start + frames))
    assert seen == set(range(37))


@given(corpora(), configs(), st.integers(0, 3))
def test_a_step_has_m_micro_batches_each_within_budget_and_context(corpus, config, epoch):
    plan = plan_epoch(*corpus, config, epoch)
    for number, step in enumerate(steps_of(plan)):
        assert len(step) == config.micro_batches
        assert all(batch.padded_frames <= config.budget_frames for batch in step)
        assert all(batch.frames.max() <= config.context_frames for batch in step)
        assert not any(batch.is_filler for batch in step) or number == plan.steps - 1
        assert not step[0].is_filler
        assert plan.step_frames(number) == sum(n for _, _, n in samples_of(step))


@given(corpora(), configs())
def test_any_number_of_ranks_runs_the_same_steps(corpus, config):
    plan = plan_epoch(*corpus, config, 0)
    for step in steps_of(plan):
        for ranks in (n for n in range(1, config.micro_batches + 1) if config.micro_batches % n == 0):
            dealt = [rank_micro_batches(step, rank, ranks) for rank in range(ranks)]
            assert {len(own) for own in dealt} == {config.micro_batches // ranks}
            assert sorted(samples_of(b for own in dealt for b in own)) == sorted(samples_of(step))
            # In each turn the ranks' micro-batches cost about the same: a later turn's costliest micro-batch costs at
            # most as much as an earlier turn's cheapest.
            turns = [[batch.padded_frames for batch in turn] for turn in zip(*dealt, strict=True)]
            assert all(min(earlier) >= max(later) for earlier, later in pairwise(turns))


@given(corpora(), configs())
def test_a_plan_depends_only_on_its_arguments(corpus, config):
    once, again = plan_epoch(*corpus, config, 2), plan_epoch(*corpus, config, 2)
    for name in ("row", "start", "frames", "edges"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))


def test_epochs_and_seeds_differ():
    lengths, shard = np.arange(20, 220), np.arange(200) // 20
    config = PlanConfig(budget_frames=512, context_frames=64)
    orders = [
        samples_of(b for step in steps_of(plan_epoch(lengths, shard, c, epoch)) for b in step)
        for c, epoch in (
            (config, 0),
            (config, 1),
            (PlanConfig(seed=1, budget_frames=512, context_frames=64), 0),
        )
    ]
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]
    assert orders[2] != orders[0]
    for order in orders[:2]:
        assert {row for row, _, _ in order} == set(range(200))


def test_the_batches_mix_differently_each_epoch():
    """Clips of one length are not always batched with the same neighbours."""
    lengths, shard = np.full(64, 10), np.arange(64) // 8
    config = PlanConfig(budget_frames=40, context_frames=20)
    groups = [
        {
            frozenset(batch.row.tolist())
            for step in steps_of(plan_epoch(lengths, shard, config, e))
            for batch in step
        }
        for e in (0, 1)
    ]
    assert len(groups[0] & groups[1]) < 4


def test_walking_from_a_cursor_gives_the_remaining_steps():
    lengths, shard = np.arange(20, 120), np.arange(100) // 10
    config = PlanConfig(budget_frames=256, context_frames=64, micro_batches=4)
    steps = plan_epoch(lengths, shard, config, 0).steps
    whole = list(islice(planned_steps(lengths, shard, config, Cursor()), 2 * steps))
    assert whole[steps].cursor == Cursor(epoch=1, step=0)
    for at in (1, steps - 1, steps, steps + 2):
        resumed = list(islice(planned_steps(lengths, shard, config, whole[at - 1].following), 2 * steps - at))
        assert [s.cursor for s in resumed] == [s.cursor for s in whole[at:]]
        assert [samples_of(s.micro_batches) for s in resumed] == [
            samples_of(s.micro_batches) for s in whole[at:]
        ]
        assert [s.frames for s in resumed] == [s.frames for s in whole[at:]]


def test_the_papers_corpus_is_planned_fast_and_with_little_padding(paper_lengths):
    started = time.perf_counter()
    plan = plan_epoch(paper_lengths, np.arange(len(paper_lengths)) // 256, PlanConfig(), 0)
    assert time.perf_counter() - started < 5
    assert plan.padding < 0.05
    assert plan.frames.sum() == paper_lengths.sum()


@pytest.fixture
def paper_lengths():
    """Return lengths of 160K clips (5 s on average, at most 10 s) and 280K clips (15 s on average, 10 to 60 s)."""
    generator = np.random.default_rng(0)
    short = np.clip(generator.gamma(4, 1.27, 160_000), 0.4, 10)
    long = np.clip(10 + generator.exponential(5, 280_000), 10, 60)
    lengths = (np.concatenate([short, long]) * 25).astype(int)
    generator.shuffle(lengths)
    return lengths


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget_frames": 100}, r"budget_frames must be >= context_frames \(512\), got 100"),
        ({"micro_batches": 0}, "micro_batches must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PlanConfig(**change)


def test_ranks_that_do_not_divide_m_are_refused_with_the_allowed_ones_named():
    with pytest.raises(
        ValueError, match=r"ranks must divide micro_batches \(12\): one of 1, 2, 3, 4, 6, 12; got 5"
    ):
        PlanConfig(micro_batches=12).check_ranks(5)


def test_an_empty_corpus_and_an_empty_clip_are_refused():
    with pytest.raises(ValueError, match="nothing to train on"):
        plan_epoch(np.array([], int), np.array([], int), PlanConfig(), 0)
    with pytest.raises(ValueError, match=r">= 1 frames, got 0 in row 1"):
        plan_epoch(np.array([5, 0]), np.array([0, 0]), PlanConfig(), 0)


def test_a_cursor_past_its_epoch_is_refused():
    with pytest.raises(ValueError, match="step must be < 1 in epoch 0, got 9"):
        next(planned_steps(np.array([5]), np.array([0]), PlanConfig(), Cursor(0, 9)))
