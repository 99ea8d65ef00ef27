"""Test the scheduler, the draws of diffusion forcing, the plans of noise levels, and sampling."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from motion_models import small_model

from xactor.motion import (
    DiffusionForcing,
    ForcingBatch,
    ForcingConfig,
    MotionScheduler,
    SamplingConfig,
    draw,
    sample_motion,
    stream_motion,
)
from xactor.motion.sampling_plan import history_levels, sampling_plan
from xactor.randomness import frame_noise

KEY = (0, 3, "clip", 128)


def test_level_0_is_clean_and_1000_pure_noise():
    scheduler, z, eps = MotionScheduler(), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    z_k = scheduler.add_noise(z, eps, torch.tensor([[0, 1000]]))
    assert torch.equal(z_k[:, 0], z[:, 0])
    assert torch.equal(z_k[:, 1], eps[:, 1])
    v = scheduler.velocity(z, eps, torch.tensor([[0, 1000]]))
    assert torch.equal(v[:, 0], eps[:, 0])
    assert torch.equal(v[:, 1], -z[:, 1])


@given(k=st.integers(0, 1000), k_next=st.integers(0, 1000))
def test_a_step_with_the_true_velocity_lands_on_the_next_level(k, k_next):
    scheduler, z, eps = MotionScheduler(), torch.randn(1, 1, 6), torch.randn(1, 1, 6)
    k, k_next = torch.tensor([[k]]), torch.tensor([[k_next]])
    stepped = scheduler.step(scheduler.velocity(z, eps, k), scheduler.add_noise(z, eps, k), k, k_next)
    torch.testing.assert_close(stepped, scheduler.add_noise(z, eps, k_next), atol=1e-5, rtol=1e-5)


def test_a_saved_scheduler_loads_and_a_foreign_one_is_refused(tmp_path):
    MotionScheduler().save_pretrained(tmp_path)
    assert isinstance(MotionScheduler.from_pretrained(tmp_path), MotionScheduler)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    with pytest.raises(ValueError, match="DDIMScheduler"):
        MotionScheduler.from_pretrained(tmp_path)


def test_a_draw_depends_on_its_key_alone():
    a, b = draw(KEY, 20, 8, 4, ForcingConfig()), draw(KEY, 20, 8, 4, ForcingConfig())
    assert torch.equal(a.eps, b.eps)
    assert torch.equal(a.k, b.k)
    assert a.keep == b.keep
    other = draw((*KEY[:3], 129), 20, 8, 4, ForcingConfig())
    assert not torch.equal(a.eps, other.eps)


def test_noise_levels_are_drawn_by_frame_or_by_chunk():
    per_frame = draw(KEY, 64, 8, 16, ForcingConfig()).k
    assert len(per_frame.unique()) > 32
    per_chunk = draw(KEY, 70, 8, 16, ForcingConfig(noise="per_chunk")).k
    assert [len(part.unique()) for part in per_chunk.split(16)] == [1] * 5
    assert len(per_chunk.unique()) > 2
    # A tenth of the draws drop the audio.
    drops = [draw((0, 0, str(i), 0), 4, 8, 4, ForcingConfig()).keep for i in range(2000)]
    assert abs(drops.count(0.0) / 2000 - 0.1) < 0.03


def test_the_length_of_chunks_is_drawn_for_each_sample():
    config = ForcingConfig(chunk_lengths=(4, 8, 16))
    draws = [draw((0, 0, str(i), 0), 48, 8, 16, config) for i in range(600)]
    for length in config.chunk_lengths:
        share = sum(one.chunk_frames == length for one in draws) / len(draws)
        assert abs(share - 1 / 3) < 0.06
    assert draw(KEY, 48, 8, 16, ForcingConfig()).chunk_frames is None
    per_chunk = draw(KEY, 48, 8, 16, ForcingConfig(noise="per_chunk", chunk_lengths=(4,))).k
    assert [len(part.unique()) for part in per_chunk.split(4)] == [1] * 12


def batch_of(frames: list[int], *, weight=None, lengths=()) -> ForcingBatch:
    g = torch.Generator().manual_seed(1)
    draws = [
        draw((0, 0, str(i), 0), n, 32, 8, ForcingConfig(chunk_lengths=lengths)) for i, n in enumerate(frames)
    ]
    width = max(frames)
    return ForcingBatch.build(
        torch.randn(len(frames), width, 32, generator=g),
        torch.randn(len(frames), width, 2, 10, generator=g),
        torch.tensor(frames),
        torch.tensor(weight or [1.0] * len(frames)),
        draws,
    )


@pytest.mark.parametrize("lengths", [(), (2, 4)])
@pytest.mark.parametrize("forcing", ["diffusion", "teacher"])
def test_loss_of_a_batch_is_the_sum_of_each_alone(forcing, lengths):
    objective = DiffusionForcing(small_model(), ForcingConfig(forcing=forcing))
    both = batch_of([20, 13], lengths=lengths)
    alone = 0.0
    for row, n in enumerate((20, 13)):
        one = ForcingBatch(
            **{name: None if value is None else value[row : row + 1] for name, value in vars(both).items()}
        )
        unpadded = replace(one, z=one.z[:, :n], audio=one.audio[:, :n], eps=one.eps[:, :n], k=one.k[:, :n])
        alone += objective(unpadded)
    torch.testing.assert_close(objective(both), alone, atol=1e-4, rtol=1e-5)


def test_samples_of_weight_0_add_nothing_and_keep_the_graph():
    objective = DiffusionForcing(small_model(), ForcingConfig())
    loss = objective(batch_of([20, 13], weight=[0.0, 0.0]))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_every_weight_gets_a_gradient():
    objective = DiffusionForcing(small_model(), ForcingConfig(audio_drop=0.5))
    batch = batch_of([20] * 8)
    assert 0 < batch.keep.sum() < 8
    objective(batch).backward()
    for name, weight in objective.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_history_levels_of_each_kind():
    assert history_levels(5, 5, "linear").tolist() == [1000, 750, 500, 250, 0]
    assert history_levels(2, 5, "linear").tolist() == [250, 0]
    assert history_levels(3, 5, "vanilla", history_level=200).tolist() == [200] * 3
    assert history_levels(8, 8, "fractional").tolist() == [1000, 1000, 666, 666, 333, 333, 0, 0]
    with pytest.raises(ValueError, match=r"0\.\.5 frames, got 6"):
        history_levels(6, 5, "linear")


@given(
    frames=st.integers(0, 448),
    steps=st.integers(1, 60),
    groups=st.integers(1, 60),
    history=st.sampled_from(["linear", "vanilla", "fractional"]),
)
def test_noise_levels_of_a_plan_end_at_zero_and_never_rise(frames, steps, groups, history):
    groups = min(groups, steps)
    plan = sampling_plan(frames, 64, 448, SamplingConfig(steps=steps, history=history, groups=groups))
    assert plan.shape[1] == frames + 64
    group_delay = math.ceil(steps / groups)
    assert len(plan) == steps + 1 + (groups - 1) * group_delay
    assert (plan[steps, frames : frames + 64 // groups] == 0).all()
    # Earlier frames are never noisier than later ones.
    assert (plan[:, frames:].diff(dim=1) >= 0).all()
    assert (plan[0, frames:] == 1000).all()
    assert (plan[-1, frames:] == 0).all()
    assert (plan.diff(dim=0) <= 0).all()
    assert (plan[:, :frames].diff(dim=1) <= 0).all()
    assert (plan[:, :frames] == plan[:1, :frames]).all()


def uncached(model, audio, seed: int, config: SamplingConfig):
    """Sample by the definition, without a cache: each step passes the history and the chunk through the model."""
    size, window = model.config.chunk_frames, model.config.audio_window
    capacity = model.config.context_frames - size
    scheduler, total = MotionScheduler(), audio.shape[0]
    z = torch.zeros(0, model.config.latent_dim)
    for first in range(0, total, size):
        last, start = min(first + size, total), max(first - capacity, 0)
        plan = sampling_plan(first - start, size, capacity, config)[:, : last - start]
        past_eps = frame_noise(seed, "history", start, first - start, z.shape[1])
        history = scheduler.add_noise(z[start:first], past_eps, plan[0, : first - start])
        chunk = frame_noise(seed, "chunk", first, last - first, z.shape[1])
        for k, k_next in zip(plan[:-1], plan[1:], strict=True):
            # Later groups of the chunk may still be pure noise. They take no part yet.
            moving = int((k_next[first - start :] < 1000).sum())
            k, k_next = k[: first - start + moving], k_next[first - start :][:moving]
            rows = [t if 0 <= t < total else None for t in range(start - window, first + moving + window)]
            real = torch.tensor([[t is not None for t in rows]])
            z_k = torch.cat([history, chunk[:moving]])[None]
            branches = []
            for keep in (1.0, 0.0):
                embedded = model.embed_audio(audio[None], torch.tensor([keep]))[0]
                around = torch.stack(
                    [embedded[t] if t is not None else torch.zeros_like(embedded[0]) for t in rows]
                )
                branches.append(model(z_k, k[None], around[None], real)[0, first - start :])
            cond, uncond = branches
            guided = uncond + config.audio_cfg * (cond - uncond)
            kept = cond.norm(dim=1, keepdim=True) / guided.norm(dim=1, keepdim=True)
            guided = guided * (1 - config.cfg_rescale + config.cfg_rescale * kept)
            stepped = scheduler.step(guided, chunk[:moving], k[first - start :], k_next)
            chunk = torch.cat([stepped, chunk[moving:]])
        z = torch.cat([z, chunk])
    return model.destandardise(z)


@pytest.mark.parametrize("attention", ["chunk", "causal"])
@pytest.mark.parametrize(
    ("history", "groups", "rescale"),
    [("linear", 1, 0.0), ("vanilla", 1, 0.0), ("fractional", 1, 0.7), ("linear", 4, 0.7)],
)
def test_cached_sampling_equals_uncached(attention, history, groups, rescale):
    model = small_model(attention=attention)
    # Five chunks and five frames: the context fills and slides, and the last chunk is cropped.
    audio = torch.randn(45, 2, 10)
    config = SamplingConfig(steps=4, history=history, history_level=100, groups=groups, cfg_rescale=rescale)
    with torch.no_grad():
        expected = uncached(model, audio, 7, config)
    got = sample_motion(model, audio[None], seeds=[7], config=config)[0]
    assert got.shape == (45, 32)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_batched_recordings_equal_each_alone():
    model, audio = small_model(), torch.randn(3, 30, 2, 10)
    config = SamplingConfig(steps=3)
    together = sample_motion(model, audio, seeds=[1, 2, 3], config=config)
    for row in range(3):
        alone = sample_motion(model, audio[row : row + 1], seeds=[row + 1], config=config)
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    again = sample_motion(model, audio[:1], seeds=[9], config=config)
    assert not torch.allclose(again, together[:1])


@pytest.mark.parametrize("piece_frames", [1, 7, 24, 60])
def test_streamed_motion_equals_the_whole_recordings(piece_frames):
    model, audio = small_model(), torch.randn(45, 2, 10)
    config = SamplingConfig(steps=2)
    whole = sample_motion(model, audio[None], seeds=[1], config=config)[0]
    chunks = list(stream_motion(model, audio.split(piece_frames), seed=1, config=config))
    assert [len(chunk) for chunk in chunks] == [8, 8, 8, 8, 8, 5]
    assert torch.equal(torch.cat(chunks), whole)


def test_a_chunk_comes_as_soon_as_its_audio_is_there():
    fed = 0

    def speech():
        nonlocal fed
        for piece in torch.randn(45, 2, 10).split(1):
            fed += 1
            yield piece

    model = small_model()
    for number, _ in enumerate(stream_motion(model, speech(), seed=1, config=SamplingConfig(steps=1))):
        ahead = model.config.audio_window
        assert fed == min(8 * (number + 1) + ahead, 45)


def test_guidance_of_1_equals_the_conditional_branch():
    model, audio = small_model(), torch.randn(1, 20, 2, 10)
    one = sample_motion(model, audio, seeds=[1], config=SamplingConfig(steps=3, audio_cfg=1))
    near = sample_motion(model, audio, seeds=[1], config=SamplingConfig(steps=3, audio_cfg=1.0001))
    torch.testing.assert_close(one, near, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps must be within 1\.\.1000, got 0"),
        ({"audio_cfg": 0.5}, r"audio_cfg must be within 1\.\.20, got 0\.5"),
        ({"cfg_rescale": 1.1}, r"cfg_rescale must be within 0\.\.1, got 1\.1"),
        ({"steps": 10, "groups": 11}, r"groups must be within 1\.\.10 \(steps\), got 11"),
        ({"group_delay": 51}, r"group_delay must be within 1\.\.50 \(steps\), got 51"),
        ({"history": "none"}, "history must be one of linear, vanilla, fractional, got 'none'"),
        ({"history": "vanilla", "history_level": 1001}, r"history_level must be within 0\.\.1000, got 1001"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


def test_each_recording_needs_its_seed():
    with pytest.raises(ValueError, match="seeds must be one per recording, 2, got 1"):
        sample_motion(small_model(), torch.randn(2, 9, 2, 10), seeds=[1])
