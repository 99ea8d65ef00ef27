"""Make the folders that a mutation campaign damages, and read them as the project does.

A reader runs in a process of its own and returns its findings, so that it may hang, crash or use up its memory.
"""

import contextlib
import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLIPS = [5, 40, 12, 33, 400, 21, 70, 8, 15, 27, 31, 6, 90, 17]
"""Lengths of the clips of latents, in frames."""
VIDEOS = [20, 30, 45, 26, 18, 33]
"""Lengths of the videos, in frames."""
RUN_STEPS = 24
"""Number of steps that the run has done."""


@dataclass
class Reading:
    """Hold what one call gave: values by name, or an error."""

    call: str
    values: dict[str, Any] = field(default_factory=dict)
    """Digest or value of each thing that was read."""
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by key of each sample that was reported as bad."""
    error: str = ""
    """Name of the error's type and of its base types, empty if there was no error."""
    message: str = ""
    said: str = ""
    """Everything that was printed and logged."""


def digest(*parts: Any) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part if isinstance(part, bytes) else repr(part).encode())
    return sha256.hexdigest()[:16]


def attempt(call: str, work: Callable[[Reading], None]) -> Reading:
    """Run one call. Keep its error, and what it prints and logs."""
    reading, said = Reading(call), io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(said):
            work(reading)
    except Exception as error:
        reading.error = " ".join(kind.__name__ for kind in type(error).__mro__)
        reading.message = str(error)
    finally:
        logging.getLogger().removeHandler(handler)
    reading.said = said.getvalue()
    return reading


def make_latents(folder: Path) -> None:
    from xactor_platform.data.index_file import load_index
    from xactor_platform.data.shards import ShardWriter

    generator = np.random.default_rng(0)
    for split, lengths in (("train", CLIPS), ("test", CLIPS[:4])):
        with ShardWriter(str(folder), split, samples_per_shard=5) as writer:
            for i, frames in enumerate(lengths):
                motion = generator.standard_normal((frames, 6)).astype(np.float16)
                audio = generator.standard_normal((frames, 2, 5)).astype(np.float16)
                meta = {"frames": frames, "fps": 25, "speaker": f"s{i % 3}", "sync_confidence": 5.5}
                writer.write(f"{split}-{i:04d}", {"motion.npy": motion, "audio.npy": audio, "json": meta})
    load_index(str(folder))


def read_latents(folder: str) -> list[Reading]:
    """Read every sample: each clip whole, and in two halves."""
    from xactor_platform.data.batch import read_batch
    from xactor_platform.data.index_file import load_index
    from xactor_platform.data.plan import MicroBatch

    def read(reading: Reading) -> None:
        index = load_index(folder, max_bad_fraction=1.0)
        for sample in index.bad:
            reading.bad[sample.key or sample.shard] = str(sample)
        for row, (key, frames) in enumerate(zip(index.key, index.frames.tolist(), strict=True)):
            half = frames // 2
            for start, count in ((0, frames), (0, half), (half, frames - half)):
                if not count:
                    continue
                spans = (np.array([n]) for n in (row, start, count))
                batch = read_batch(index, MicroBatch(*spans))
                if batch.bad:
                    reading.bad[key] = str(batch.bad[0])
                    continue
                about = index.speaker[row], float(index.sync_confidence[row])
                reading.values[f"{key} {start} {count}"] = digest(
                    *about, batch.motion.tobytes(), batch.audio.tobytes()
                )

    return [attempt("samples", read)]


def make_videos(folder: Path) -> None:
    from xactor.faces.landmarks import LANDMARK_FRAMES, MEAN_LANDMARKS
    from xactor.media import write_video
    from xactor_platform.data.index_file import load_index
    from xactor_platform.data.shards import ShardWriter

    with (
        tempfile.TemporaryDirectory() as scratch,
        ShardWriter(str(folder), "train", samples_per_shard=2) as writer,
    ):
        for i, frames in enumerate(VIDEOS):
            clip = Path(scratch, f"{i}.mp4")
            write_video(clip, pictures(frames, seed=i), samples=np.zeros(frames * 640, np.float32))
            track = np.random.default_rng(i).standard_normal((frames, 57)).astype(np.float32)
            landmarks = np.tile(MEAN_LANDMARKS, (LANDMARK_FRAMES, 1, 1))
            tracks = {"controls.npy": track, "landmarks.npy": landmarks}
            meta = {"frames": frames, "fps": 25, "speaker": f"s{i % 3}"}
            writer.write(f"clip-{i}", {"mp4": clip.read_bytes(), **tracks, "json": meta})
    load_index(str(folder))


def pictures(frames: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """Draw a square that moves over another colour, uint8 [frames, side, side, 3]."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros((frames, side, side, 3), np.uint8) + generator.integers(40, 216, 3).astype(np.uint8)
    for n in range(frames):
        left = (n * 2) % (side // 2)
        drawn[n, 8:20, left : left + side // 3] = generator.integers(0, 255, 3)
    return drawn


def read_videos(folder: str) -> list[Reading]:
    """Read every video whole, with its tracks."""
    from xactor_platform.data.index_file import load_index
    from xactor_platform.data.plan import MicroBatch
    from xactor_platform.data.video import VideoReader

    def read(reading: Reading) -> None:
        index = load_index(folder, max_bad_fraction=1.0)
        for sample in index.bad:
            reading.bad[sample.key or sample.shard] = str(sample)
        reader = VideoReader(index, image_size=32, seed=0, stills=lambda step: None, tracks=True)
        for row, (key, frames) in enumerate(zip(index.key, index.frames.tolist(), strict=True)):
            request = reader.request(MicroBatch(*(np.array([n]) for n in (row, 0, frames))), step=0, epoch=0)
            batch = reader.batch(request, reader.read([request])[0])
            if batch.bad:
                reading.bad[key] = str(batch.bad[0])
                continue
            tracks = (None if a is None else a.tobytes() for a in (batch.controls, batch.landmarks))
            reading.values[f"{key} 0 {frames}"] = digest(index.speaker[row], batch.targets.tobytes(), *tracks)

    return [attempt("videos", read)]


def make_run(folder: Path) -> None:
    """Write a run's folder as a training does that was stopped after step 24 of 60, and the shards that it reads."""
    import torch
    from small_run import config_of, write_corpus

    from xactor_platform.data.fingerprint import fingerprint
    from xactor_platform.data.index_file import load_index
    from xactor_platform.training.run.checkpoints import FORMAT, Checkpoints, Manifest
    from xactor_platform.training.run.folder import BAD, CONFIG, METRICS, RunFolder
    from xactor_platform.training.run.run_log import RunLog
    from xactor_platform.training.train_config import as_dict

    shards = write_corpus(str(folder / "shards"))
    config = config_of(shards, folder, "run")
    run = RunFolder.of(config.run)
    index = load_index(shards, max_bad_fraction=0.5)
    saved = {"config": as_dict(config), "shard_digests": fingerprint(index), **config.prepare(index, None)}
    run.write_text(CONFIG, json.dumps(saved, indent=2) + "\n")
    for name in (METRICS, BAD):
        log = RunLog(run, name)
        for step in range(1, RUN_STEPS + 1):
            log.write({"step": step, "attempt": 1, "loss": 1 / step, "frames": 300, "skipped": 0})
        log.close()
    checkpoints = Checkpoints(run, keep=2)
    for step in (12, 24):
        for rank in range(2):
            state = {"step": step, "weight": torch.arange(3000.0) + step + rank}
            checkpoints.write_rank(step, rank, "token", {f"state/part_{rank}.pt": state})
        files = checkpoints.wait_for_ranks(step, 2, "token", 5)
        facts = {"format": FORMAT, "step": step, "ranks": 2, "parameters": 6000, "score": 0.5}
        checkpoints.commit(
            Manifest(**facts, config=as_dict(config), packages={"torch": torch.__version__}, files=files)
        )


def read_run(folder: str) -> list[Reading]:
    """Run the checks of a resume, and read the newest intact checkpoint and the logs."""
    import torch
    from small_run import config_of

    from xactor_platform.training import launch
    from xactor_platform.training.run.checkpoints import Checkpoints, Corrupt
    from xactor_platform.training.run.folder import RunFolder
    from xactor_platform.training.run.lease import lease
    from xactor_platform.training.run.restore import _code_in
    from xactor_platform.training.run.run_log import last_attempts, read_metrics

    config = config_of(str(Path(folder, "shards")), folder, "run")
    run = RunFolder(folder, "run", storage_timeout_s=1)

    def check(reading: Reading) -> None:
        _, corpus, facts = launch._check(config, run)
        with lease(run):
            complete = Checkpoints(run).complete()
            if complete:
                launch.refuse_changes(complete[0].config, config, f"{run.uri}/{complete[0].folder}")
                launch._check_newest(complete[0], config, run)
        reading.values = {"corpus": corpus, "facts": sorted(facts), "newest": [m.step for m in complete]}

    def restore(reading: Reading) -> None:
        checkpoints = Checkpoints(run)
        complete, faults = checkpoints.complete(), []
        if not complete:
            raise ValueError(f"no checkpoint can be loaded, manifest.json of {checkpoints.unreadable()}")
        for manifest in complete:
            with tempfile.TemporaryDirectory() as target:
                try:
                    checkpoints.fetch(manifest, Path(target))
                except Corrupt as error:
                    faults.append(f"CORRUPT {manifest.folder}: {error}")
                    continue
                assert not _code_in(Path(target))
                for file in sorted(Path(target).rglob("*.pt")):
                    state = torch.load(file, weights_only=True)
                    reading.values[file.name] = digest(state["step"], state["weight"].numpy().tobytes())
            break
        else:
            raise ValueError(f"no checkpoint of {len(complete)} can be loaded: {'; '.join(faults)}")
        print("\n".join(faults))

    def logs(reading: Reading) -> None:
        rows = read_metrics(run)
        # The recorder of a resumed run counts the attempts, and looks at the losses.
        attempts = max((row["attempt"] for row in rows), default=0)
        losses = [float(row["loss"]) for row in last_attempts(rows, RUN_STEPS)]
        reading.values = {"rows": len(losses), "attempts": attempts}

    return [attempt("resume", check), attempt("restore", restore), attempt("logs", logs)]


def make_model(folder: Path) -> None:
    from pipelines import small_pipeline

    from xactor.options import PAPER, QUALITIES, Recommended

    pipeline = small_pipeline()
    pipeline.recommended = Recommended(options={name: dict(PAPER) for name in QUALITIES}, from_model=True)
    pipeline.save_pretrained(folder)


def read_model(folder: str) -> list[Reading]:
    """Load the whole pipeline, and what the driver of a bulk job reads of it."""
    from xactor.motion.loading import load_motion_model
    from xactor.options import recommended
    from xactor.pipeline import XActorPipeline
    from xactor.render import Renderer
    from xactor_platform.dubbing.model_facts import read_model_facts

    def load(reading: Reading) -> None:
        pipeline = XActorPipeline.from_pretrained(folder)
        reading.values["recommended"] = str(pipeline.recommended)
        for name, component in pipeline.components.items():
            if hasattr(component, "state_dict"):
                weights = sorted(component.state_dict().items())  # pyright: ignore
                reading.values[name] = digest(*(w.numpy().tobytes() for _, w in weights))

    def read_options(reading: Reading) -> None:
        reading.values["recommended"] = str(recommended(folder))

    def read_facts(reading: Reading) -> None:
        reading.values["side"] = read_model_facts(folder).image_size

    def load_parts(reading: Reading) -> None:
        Renderer.from_pretrained(folder)
        load_motion_model(folder)

    calls = {"pipeline": load, "parts": load_parts, "recommended": read_options, "facts": read_facts}
    return [attempt(name, call) for name, call in calls.items()]


def make_media(folder: Path) -> None:
    from sounds import write_sound

    from xactor.media import write_video
    from xactor_platform.demo_corpus.identity import held_out_identities, render_frame

    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    write_video(folder / "a.mp4", pictures(50, side=64), samples=noise)
    write_video(folder / "b.mp4", pictures(30, seed=1, side=64), samples=noise[:19_200])
    write_sound(folder / "a.wav", 1.5)
    write_sound(folder / "b.wav", 0.7, rate_hz=44_100, layout="stereo")
    face = render_frame(held_out_identities()[0], np.zeros(57, np.float32), 128)
    for name in ("a.png", "b.jpg", "c.png"):
        Image.fromarray(face).save(folder / name)


def read_media(folder: str) -> list[Reading]:
    """Read every file in every way that fits it."""
    from xactor.media import read_audio, read_frames, read_span
    from xactor.portrait import read_image
    from xactor_platform.curation.curation_stage import Unusable
    from xactor_platform.curation.probe import read_facts

    def frames(path: Path) -> Callable[[Reading], None]:
        return lambda reading: reading.values.update(frames=sum(1 for _ in islice(read_frames(path), 5000)))

    def span(path: Path) -> Callable[[Reading], None]:
        return lambda reading: reading.values.update(frames=sum(1 for _ in read_span(path, 10, 20)))

    def sound(path: Path) -> Callable[[Reading], None]:
        return lambda reading: reading.values.update(samples=len(read_audio(path, max_seconds=60)))

    def image(path: Path) -> Callable[[Reading], None]:
        return lambda reading: reading.values.update(pixels=digest(read_image(path).tobytes()))

    def probe(path: Path) -> Callable[[Reading], None]:
        def work(reading: Reading) -> None:
            try:
                facts = read_facts(str(path), max_input_bytes=1 << 30, max_s=3600, max_pixels=1 << 24)
                reading.values["facts"] = str(facts)
            # The stage names the video in the row of the report.
            except (Unusable, ValueError) as error:
                detail = error.detail if isinstance(error, Unusable) else str(error)
                raise ValueError(f"{path}: {detail}") from error

        return work

    readings = []
    for name in ("a.mp4", "b.mp4", "a.wav", "b.wav", "a.png", "b.jpg", "c.png"):
        path = Path(folder, name)
        calls = {".mp4": [frames, span, sound, probe], ".wav": [sound]}.get(path.suffix, [image])
        readings += [attempt(f"{call.__name__} {name}", call(path)) for call in calls]
    return readings


@dataclass(frozen=True)
class Target:
    """Describe a folder that is damaged."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[str], list[Reading]]
    patterns: tuple[str, ...]
    """Files that are damaged."""
    deadline_s: float
    """Seconds that the reading of a damaged folder may take."""
    checked: bool
    """Whether each value must equal the truth. Formats without checksums, such as safetensors, cannot tell."""

    def files(self, folder: Path) -> list[str]:
        found = {path for pattern in self.patterns for path in folder.glob(pattern) if path.is_file()}
        return sorted(str(path.relative_to(folder)) for path in found)


TARGETS = [
    Target("shards", make_latents, read_latents, ("*.tar",), 20, True),
    Target("index", make_latents, read_latents, ("index.parquet",), 20, True),
    Target("video shards", make_videos, read_videos, ("*.tar",), 30, True),
    Target("run", make_run, read_run, ("run/**/*",), 40, False),
    Target("model", make_model, read_model, ("**/*",), 60, False),
    Target("media", make_media, read_media, ("*",), 60, False),
]


def copy_of(pristine: Path, target: Path) -> None:
    """Copy a folder with the times of its files."""
    shutil.copytree(pristine, target, copy_function=shutil.copy2, symlinks=True)


def prepare() -> None:
    """Import what the readers import, so that no deadline counts it."""
    for module in (
        "xactor.pipeline",
        "xactor_platform.curation.probe",
        "xactor_platform.data.video",
        "xactor_platform.training.launch",
        "xactor_platform.training.run.restore",
    ):
        import_module(module)
