"""Test the engine: streams that step together equal the same streams alone, and a bad stream harms no other."""

import pytest
import torch
from motion_models import small_model

from xactor.motion import EngineFull, MotionEngine, MotionStream, SamplingConfig, sample_motion

CONFIGS = [
    SamplingConfig(steps=4),
    SamplingConfig(steps=2, audio_cfg=1),
    SamplingConfig(steps=3, history="vanilla", audio_cfg=5),
    SamplingConfig(steps=4, groups=4),
]


def speech(frames: int, seed: int) -> torch.Tensor:
    return torch.randn(frames, 2, 10, generator=torch.Generator().manual_seed(seed))


def alone(model, number: int, frames: int) -> torch.Tensor:
    """Return the latents of stream `number`, sampled without other streams."""
    return sample_motion(model, speech(frames, number)[None], seeds=[number], config=CONFIGS[number % 4])[0]


def drain(engine: MotionEngine, streams: list[MotionStream], limit: int = 2000) -> list[torch.Tensor]:
    """Step until no stream can step. Return the latents that each stream made."""
    made = [[stream.take()] for stream in streams]
    for _ in range(limit):
        if not engine.step():
            break
        for stream, pieces in zip(streams, made, strict=True):
            pieces.append(stream.take())
            stream.played = stream.made
    return [torch.cat(pieces) for pieces in made]


def test_streams_with_chunks_of_different_lengths_step_together():
    """The lengths of chunks are chosen per stream. The history has a whole number of any chunks."""
    model, frames = small_model(chunk_lengths=[2, 4, 8]), 24
    engine = MotionEngine(model)
    streams = [engine.open(seed=n, config=SamplingConfig(steps=3, chunk_frames=2 * 2**n)) for n in range(3)]
    for number, stream in enumerate(streams):
        stream.feed(speech(frames, number))
        stream.end()
    for number, z in enumerate(drain(engine, streams)):
        # A model with this chunk length only. Up to 24 frames, both see all of the history.
        only = small_model(chunk_frames=2 * 2**number, context_frames=24 + 2 * 2**number)
        config = SamplingConfig(steps=3)
        # The noise of the history depends on its capacity, which is the same here.
        [expected] = sample_motion(only, speech(frames, number)[None], seeds=[number], config=config)
        torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-4)


def test_a_chunk_length_that_the_model_was_not_trained_with_is_refused():
    with pytest.raises(ValueError, match="chunk_frames must be one of this model's, 4, 8, got 2"):
        MotionEngine(small_model(chunk_lengths=[4, 8])).open(seed=0, config=SamplingConfig(chunk_frames=2))
    with pytest.raises(ValueError, match=r"chunk_lengths must divide chunk_frames \(8\), got \[3\]"):
        small_model(chunk_lengths=[3])


@pytest.mark.parametrize("max_batch", [2, 8])
def test_streams_that_open_at_different_times_equal_each_alone(max_batch):
    """One forward pass mixes lengths, positions, noise levels, steps, guidance and histories."""
    model, lengths = small_model(), [45, 19, 40, 37, 8, 1]
    engine = MotionEngine(model, max_streams=len(lengths), max_batch=max_batch)
    streams, made = [], [[] for _ in lengths]
    while len(streams) < len(lengths) or not all(stream.done for stream in streams):
        if len(streams) < len(lengths):
            stream = engine.open(seed=len(streams), config=CONFIGS[len(streams) % 4])
            stream.feed(speech(lengths[len(streams)], len(streams)))
            stream.end()
            streams.append(stream)
        for _ in range(5):
            engine.step()
        for pieces, stream in zip(made, streams, strict=False):
            pieces.append(stream.take())
            stream.played = stream.made
    for number, frames in enumerate(lengths):
        together = torch.cat(made[number])
        torch.testing.assert_close(together, alone(model, number, frames), atol=1e-4, rtol=1e-4)
    assert not engine.streams


def test_closing_a_stream_within_a_chunk_leaves_the_others_unchanged():
    model = small_model()
    engine = MotionEngine(model, max_streams=2)
    kept, dropped = (engine.open(seed=n, config=CONFIGS[n]) for n in (0, 1))
    for number, stream in enumerate((kept, dropped)):
        stream.feed(speech(30, number))
        stream.end()
    with pytest.raises(EngineFull, match="at most 2 streams may be open"):
        engine.open(seed=3)
    for _ in range(3):
        engine.step()
    dropped.close()
    # The new stream takes the slot of the closed one.
    newcomer = engine.open(seed=2, config=CONFIGS[2])
    newcomer.feed(speech(30, 2))
    newcomer.end()
    first, second = drain(engine, [kept, newcomer])
    torch.testing.assert_close(first, alone(model, 0, 30), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second, alone(model, 2, 30), atol=1e-4, rtol=1e-4)


def test_bad_audio_is_refused_and_changes_nothing():
    model = small_model()
    engine = MotionEngine(model)
    stream, other = engine.open(seed=0, config=CONFIGS[0]), engine.open(seed=1, config=CONFIGS[1])
    other.feed(speech(20, 1))
    other.end()
    with pytest.raises(ValueError, match="the stream is empty"):
        stream.end()
    stream.feed(speech(20, 0)[:10])
    with pytest.raises(ValueError, match=r"features must be \[n, 2, 10\], got \[5, 3, 10\]"):
        stream.feed(torch.zeros(5, 3, 10))
    with pytest.raises(ValueError, match="got NaN or infinite numbers from frame 10"):
        stream.feed(torch.full((5, 2, 10), torch.nan))
    stream.feed(speech(20, 0)[10:])
    stream.end()
    with pytest.raises(ValueError, match="must not follow the stream's end, which is at frame 20"):
        stream.feed(speech(5, 0))
    for number, z in enumerate(drain(engine, [stream, other])):
        torch.testing.assert_close(z, alone(model, number, 20), atol=1e-4, rtol=1e-4)


def test_nonfinite_latents_stop_only_their_stream():
    model = small_model()
    engine = MotionEngine(model)
    failing, healthy = engine.open(seed=0, config=CONFIGS[0]), engine.open(seed=1, config=CONFIGS[1])
    for number, stream in enumerate((failing, healthy)):
        stream.feed(speech(20, number))
        stream.end()
    for _ in range(2):
        engine.step()
    with torch.inference_mode():
        failing.advance(torch.full_like(failing.step_input().z_k, torch.nan))
    made = []
    while not healthy.done:
        engine.step()
        made.append(healthy.take())
        healthy.played = healthy.made
    torch.testing.assert_close(torch.cat(made), alone(model, 1, 20), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="NaN or infinite latents at frame 0"):
        failing.take()
    assert not failing.done
    assert not engine.streams


def test_the_stream_whose_viewer_waits_first_steps_first():
    engine = MotionEngine(small_model(), max_batch=1)
    config = SamplingConfig(steps=3)
    ahead, behind = engine.open(seed=0, config=config), engine.open(seed=1, config=config)
    for stream in (ahead, behind):
        stream.feed(speech(40, 0))
    while ahead.made < 8:
        # Neither viewer waits longer than the other, so the stream that opened first steps first.
        assert engine.step() == [ahead]
    assert engine.step() == [behind]
    ahead.played = 8
    behind.made = 4
    assert engine.step() == [ahead]


def test_a_stream_pauses_while_it_is_far_ahead_of_its_viewer():
    engine = MotionEngine(small_model(), run_ahead_frames=16)
    stream = engine.open(seed=0, config=SamplingConfig(steps=2))
    stream.feed(speech(80, 0))
    stream.end()
    while engine.step():
        stream.take()
    assert stream.made == 16
    stream.played = 1
    assert engine.step() == [stream]


def test_memory_does_not_grow_with_the_length():
    engine = MotionEngine(small_model())
    stream = engine.open(seed=0, config=SamplingConfig(steps=1))

    def bytes_held() -> int:
        tensors = [value for value in vars(stream).values() if isinstance(value, torch.Tensor)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    sizes = []
    for number in range(40):
        stream.feed(speech(8, number))
        drain(engine, [stream])
        sizes.append(bytes_held())
    assert stream.made > 300
    assert len(set(sizes[10:])) == 1


def test_pipelined_frames_come_early_and_with_little_audio():
    """The first group has two frames. It is clean after `steps` passes, and needs the audio of two more frames."""
    model, config = small_model(), SamplingConfig(steps=4, groups=4, group_delay=4)
    engine, audio = MotionEngine(model), speech(30, 3)
    stream = engine.open(seed=3, config=config)
    stream.feed(audio[: 2 + 1])
    assert not engine.step()
    stream.feed(audio[3 : 2 + 2])
    for made in (0, 0, 0, 2):
        assert engine.step() == [stream]
        assert stream.made == made
    assert not engine.step()
    stream.feed(audio[4:])
    stream.end()
    whole = sample_motion(model, audio[None], seeds=[3], config=config)[0]
    torch.testing.assert_close(drain(engine, [stream])[0], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["max_streams", "max_batch", "run_ahead_frames"])
def test_sizes_below_1_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        MotionEngine(small_model(), **{name: 0})


@pytest.mark.parametrize("number", range(4))
def test_a_stream_continues_in_another_engine(number):
    """The state of a stream is its history and its audio, and nothing else."""
    model, frames, chunk = small_model(), 45, 8
    whole = alone(model, number, frames)
    for first in (8, 24, 40):
        engine = MotionEngine(model)
        stream = engine.open(seed=number, config=CONFIGS[number], first_frame=first, history=whole[:first])
        # The history has at most 24 frames, and a frame attends to the audio of 2 frames before and after it.
        first_audio = model.config.first_audio_frame(first)
        assert first_audio == max(first - 24 - 2, 0)
        stream.feed(speech(frames, number)[first_audio : first + chunk + 2])
        if first + chunk + 2 >= frames:
            stream.end()
        [made] = drain(engine, [stream])
        torch.testing.assert_close(made, whole[first : first + len(made)], atol=1e-4, rtol=1e-4)
        assert len(made) == min(chunk, frames - first)


def test_a_history_that_does_not_fit_is_refused():
    engine = MotionEngine(small_model())
    with pytest.raises(
        ValueError, match="from frame 16 on must have at least the 16 latents before it, got 3"
    ):
        engine.open(seed=0, first_frame=16, history=torch.zeros(3, 32))
    with pytest.raises(ValueError, match="at least the 24 latents before it, got 0"):
        engine.open(seed=0, first_frame=80)
    with pytest.raises(ValueError, match=r"history must be \[n, 32\], got \[8, 5\]"):
        engine.open(seed=0, first_frame=8, history=torch.zeros(8, 5))
    with pytest.raises(ValueError, match="history must be finite"):
        engine.open(seed=0, first_frame=8, history=torch.full((8, 32), torch.nan))
    assert not engine.streams


def test_audio_that_ends_before_the_first_frame_to_make_is_refused():
    stream = MotionEngine(small_model()).open(seed=0, first_frame=8, history=torch.zeros(8, 32))
    stream.feed(speech(6, 0))
    with pytest.raises(
        ValueError, match="must reach frame 8, where the stream continues, it ends at frame 6"
    ):
        stream.end()


def test_a_stream_does_not_see_what_another_left_in_the_cache():
    """New memory and failed streams may leave NaN in the cache, and a mask does not keep NaN out."""
    model = small_model()
    engine = MotionEngine(model, max_streams=2)
    for keys, values in engine._cache.layers:
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
    streams = []
    # Histories of different lengths, so that the shorter one is padded.
    for number, first in enumerate((0, 8)):
        past = alone(model, number, 40)[:first]
        stream = engine.open(seed=number, config=CONFIGS[number], first_frame=first, history=past)
        stream.feed(speech(40, number)[model.config.first_audio_frame(first) :])
        stream.end()
        streams.append(stream)
    for number, made in enumerate(drain(engine, streams)):
        wanted = alone(model, number, 40)[8 * number :]
        torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)
