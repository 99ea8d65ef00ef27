"""Test the whole diffusers pipeline: saving, loading, assembling and streaming."""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from motion_models import small_model
from PIL import Image
from pipelines import LATENT_DIM, small_pipeline
from sounds import voice

import xactor
from xactor import RenderConfig, SamplingConfig, XActorPipeline
from xactor.audio.encoder import LogMelEncoder
from xactor.motion import sample_motion
from xactor.motion.loading import load_motion_model
from xactor.portrait import find_portrait, read_image
from xactor.rates import SAMPLES_PER_FRAME
from xactor.render import Renderer

QUICK = {"motion": SamplingConfig(steps=2), "render": RenderConfig(steps=2)}
COMPONENTS = [
    "motion",
    "motion_scheduler",
    "motion_encoder",
    "audio_encoder",
    "unet",
    "reference_unet",
    "vae",
    "scheduler",
]


@pytest.fixture(scope="module")
def pipeline(model_folder) -> XActorPipeline:
    loaded = XActorPipeline.from_pretrained(model_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def portrait(portrait_file):
    return find_portrait(read_image(portrait_file))


def test_a_saved_pipeline_is_a_diffusers_folder(model_folder):
    index = json.loads((model_folder / "model_index.json").read_text())
    assert index["_class_name"] == "XActorPipeline"
    for name in COMPONENTS:
        library, kind = index[name]
        assert library in ("xactor", "diffusers")
        assert getattr(import_module(library), kind).__name__ == kind
    assert sorted(path.name for path in model_folder.iterdir()) == sorted([*COMPONENTS, "model_index.json"])
    assert (model_folder / "audio_encoder" / "preprocessor_config.json").is_file()
    AutoencoderKL.from_pretrained(model_folder, subfolder="vae", low_cpu_mem_usage=False)


def test_a_loaded_pipeline_animates_as_the_saved_one(pipeline, portrait):
    samples = voice(0.5)
    saved = list(small_pipeline().animate(portrait, samples, seed=3, **QUICK))
    loaded = list(pipeline.animate(portrait, samples, seed=3, **QUICK))
    # 0.5 s are 12.5 frames, which round to the even number.
    assert len(loaded) == 12
    assert np.array_equal(saved, loaded)
    assert not np.array_equal(loaded, list(pipeline.animate(portrait, samples, seed=4, **QUICK)))


@pytest.mark.slow
def test_streamed_frames_equal_those_made_in_one_piece(pipeline, portrait):
    """Features, latents and frames that are passed on in pieces equal those that are made in one piece."""
    samples = voice(1.6)
    lead_frames = QUICK["render"].lead_frames
    features = pipeline.audio_encoder.features(np.pad(samples, (lead_frames * SAMPLES_PER_FRAME, 0)))
    z = sample_motion(pipeline.motion, torch.from_numpy(features)[None], seeds=[0], config=QUICK["motion"])[0]
    renderer = pipeline.renderer
    reference = renderer.reference(np.array(portrait.box.cut(portrait.picture, renderer.image_size)))
    whole = list(renderer.render(reference, z, seed=0, config=QUICK["render"], lead_frames=lead_frames))
    assert len(whole) == 40
    assert np.array_equal(list(pipeline.animate(portrait, samples, **QUICK)), whole)


@pytest.mark.slow
def test_the_first_frame_does_not_wait_for_the_last_chunk(pipeline, portrait):
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    hook = pipeline.motion.register_forward_hook(count)
    try:
        frames = pipeline.animate(portrait, voice(3.0), **QUICK)
        next(frames)
        first = calls
        assert sum(1 for _ in frames) == 74
    finally:
        hook.remove()
    assert 0 < first < calls / 2


def test_calling_reads_files_and_saves_a_video(pipeline, portrait_file, speech_file, tmp_path):
    animation = pipeline(portrait_file, speech_file, **QUICK)
    assert animation.frame_count == 30
    assert animation.save(tmp_path / "out.mp4") == 30
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_samples_may_replace_a_file(pipeline, portrait_file):
    animation = pipeline(portrait_file, voice(0.2), **QUICK)
    frames = list(animation.frames)
    assert animation.frame_count == 5
    assert len(frames) == 5
    assert all(frame.shape == (64, 64, 3) and frame.dtype == np.uint8 for frame in frames)


def test_diffusers_progress_bar_counts_frames(pipeline, portrait_file, capsys):
    pipeline.set_progress_bar_config(desc="speaking")
    try:
        list(pipeline(portrait_file, voice(0.2), **QUICK).frames)
    finally:
        pipeline.set_progress_bar_config(disable=True)
    bar = capsys.readouterr().err
    assert "speaking: 100%" in bar
    assert "5/5" in bar


def test_pictures_and_sounds_in_memory_give_the_same_video_as_files(pipeline, portrait_file):
    samples = voice(0.2)
    file = np.stack(list(pipeline(portrait_file, samples, **QUICK).frames))
    picture = read_image(portrait_file)
    np.testing.assert_array_equal(list(pipeline(picture, (16_000, samples), **QUICK).frames), file)
    stereo = (np.stack([samples, samples], axis=1) * 32_767).astype(np.int16)
    near = np.stack(list(pipeline(picture, (16_000, stereo), **QUICK).frames))
    assert np.abs(near.astype(int) - file).mean() < 2
    assert pipeline(picture, (48_000, np.zeros(48_000)), **QUICK).frame_count == 25


@pytest.mark.parametrize(
    ("kind", "shape", "high"), [("pil", (64, 64, 3), 255), ("np", (64, 64, 3), 1), ("pt", (3, 64, 64), 1)]
)
def test_frames_come_in_diffusers_output_types(pipeline, portrait_file, tmp_path, kind, shape, high):
    plain = np.stack(list(pipeline(portrait_file, voice(0.2), **QUICK).frames))
    frames = [np.asarray(f) for f in pipeline(portrait_file, voice(0.2), output_type=kind, **QUICK).frames]
    assert frames[0].shape == shape
    last = frames[-1].transpose(1, 2, 0) if kind == "pt" else frames[-1]
    np.testing.assert_allclose(last / high, plain[-1] / 255, atol=1e-6)
    animation = pipeline(portrait_file, voice(0.2), output_type=kind, **QUICK)
    assert animation.save(tmp_path / "out.mp4") == 5


def test_a_generator_gives_the_seed(pipeline, portrait_file):
    def frames(**options):
        return np.stack(list(pipeline(portrait_file, voice(0.2), **options, **QUICK).frames))

    generator = torch.Generator().manual_seed(5)
    first, second = frames(generator=generator), frames(generator=generator)
    assert (first != second).any()
    np.testing.assert_array_equal(frames(generator=torch.Generator().manual_seed(5)), first)


def test_diffusers_names_choose_steps_and_guidance_and_a_callback_sees_the_latents(pipeline, portrait_file):
    seen = []

    def callback(called, step, timestep, values):
        assert called is pipeline
        seen.append((step, timestep, tuple(values["latents"].shape)))
        return {"latents": values["latents"] * 0} if step == 2 else {}

    call = {"num_motion_steps": 2, "audio_guidance_scale": 1.0, "guidance_scale": 1.0}
    black = list(
        pipeline(
            portrait_file, voice(0.2), num_inference_steps=3, callback_on_step_end=callback, **call
        ).frames
    )
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1]
    assert seen[0][2] == (1, 5, 12, 16, 16)
    plain = list(pipeline(portrait_file, voice(0.2), num_inference_steps=3, **call).frames)
    assert (np.stack(black) != np.stack(plain)).any()
    configs = {
        "motion": SamplingConfig(steps=2, audio_cfg=1.0),
        "render": RenderConfig(steps=3, cfg=1.0),
    }
    np.testing.assert_array_equal(plain, list(pipeline(portrait_file, voice(0.2), **configs).frames))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": -1}, r"render steps must be within 0\.\.1000, got -1"),
        ({"guidance_scale": 21}, r"render cfg must be within 1\.\.20, got 21"),
        ({"num_motion_steps": 0}, r"steps must be within 1\.\.1000, got 0"),
        ({"audio_guidance_scale": 0.5}, r"audio_cfg must be within 1\.\.20, got 0\.5"),
        ({"motion": SamplingConfig(chunk_frames=3)}, r"chunk_frames must be one of this model's, \d+, got 3"),
        (
            {"render": RenderConfig(window_frames=64)},
            r"window_frames must be <= 32 for this renderer, got 64",
        ),
        ({"output_type": "latent"}, r"output_type must be one of uint8, pil, np, pt, got 'latent'"),
        (
            {"audio": (16_000, np.zeros((2, 2, 2)))},
            r"samples must be float or int16, .* got float64 \[2, 2, 2\]",
        ),
        (
            {"audio": (16_000, np.zeros(800, np.int64))},
            r"samples must be float or int16, .* got int64 \[800\]",
        ),
        ({"audio": (0, np.zeros(800))}, r"the sample rate must be >= 1 Hz, got 0"),
        ({"audio": np.full(800, np.nan)}, r"samples must be finite"),
        ({"audio": np.zeros(32_000), "max_seconds": 1}, r"longer than 1 s, the maximum"),
        ({"image": np.zeros((64, 64))}, r"the picture must be uint8 \[H, W, 3\], got float64 \[64, 64\]"),
    ],
)
def test_a_call_that_cannot_work_fails_at_the_call(pipeline, portrait_file, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"image": portrait_file, "audio": voice(0.2), **options})


def test_pasted_back_frames_equal_the_picture_outside_of_the_face(pipeline, portrait_file):
    animation = pipeline(portrait_file, voice(0.2), paste_back=True, **QUICK)
    picture = read_image(portrait_file)
    box = find_portrait(picture).box
    outside = np.ones(picture.shape[:2], bool)
    outside[max(box.top, 0) : box.top + box.side, max(box.left, 0) : box.left + box.side] = False
    for frame in animation.frames:
        assert np.array_equal(frame[outside], picture[outside])
        assert not np.array_equal(frame, picture)


def test_large_and_odd_pictures_get_a_size_that_h264_supports(pipeline, portrait_file):
    with Image.open(portrait_file) as photograph:
        face = np.asarray(photograph.crop((110, 0, 330, 220)).resize((1001, 1001)))
    picture = np.pad(face, ((0, 0), (700, 800), (0, 0)), mode="edge")
    for wide, shape in ((picture, (768, 1920, 3)), (picture[:, 600:1801], (1000, 1200, 3))):
        animation = pipeline(Image.fromarray(wide), voice(0.05), paste_back=True, **QUICK)
        assert [frame.shape for frame in animation.frames] == [shape]


def test_a_model_on_the_hub_is_loaded_by_its_name_and_revision(model_folder, tmp_path):
    """The cache has the hub's own layout, so nothing is downloaded."""
    cached = tmp_path / "models--studio--actor"
    shutil.copytree(model_folder, cached / "snapshots" / "a1b2c3")
    (cached / "refs").mkdir()
    (cached / "refs" / "v2").write_text("a1b2c3")
    hub = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = XActorPipeline.from_pretrained("studio/actor", revision="v2", **hub)
    assert loaded.renderer.image_size == 64
    with pytest.raises(ValueError, match="studio/other: no such folder, and the hub gives no such model: "):
        XActorPipeline.from_pretrained("studio/other", **hub)


def test_exports_of_both_stages_make_a_pipeline(model_folder, portrait, pipeline, tmp_path):
    stage1, stage2 = tmp_path / "1", tmp_path / "2"
    for folder, names in (
        (stage1, ("motion_encoder", "unet", "reference_unet", "vae", "scheduler")),
        (stage2, COMPONENTS),
    ):
        for name in names:
            shutil.copytree(model_folder / name, folder / name)
    shutil.rmtree(stage2 / "unet")
    assembled = XActorPipeline.from_stages(stage1, stage2)
    samples = voice(0.2)
    frames = list(assembled.animate(portrait, samples, **QUICK))
    assert np.array_equal(frames, list(pipeline.animate(portrait, samples, **QUICK)))
    with pytest.raises(ValueError, match=r"1: the component motion/ is missing"):
        XActorPipeline.from_stages(stage2, stage1)


@pytest.mark.slow
def test_models_are_cast_but_the_audio_encoder_is_not(model_folder, portrait):
    pipeline = XActorPipeline.from_pretrained(model_folder, torch_dtype=torch.bfloat16)
    assert {pipeline.motion.dtype, pipeline.unet.dtype, pipeline.vae.dtype} == {torch.bfloat16}
    samples = voice(0.2)
    assert pipeline.audio_encoder.features(samples).dtype == np.float32
    assert len(list(pipeline.animate(portrait, samples, **QUICK))) == 5


def test_a_loaded_component_replaces_the_folders(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    shutil.rmtree(folder / "motion")
    motion = small_model(latent_dim=LATENT_DIM, audio_layers=1, audio_dim=64)
    assert XActorPipeline.from_pretrained(folder, motion=motion).motion is motion


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_missing_component_is_named(model_folder, tmp_path, name):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=f"{folder}: the component {name}/ is missing"):
        XActorPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_foreign_component_is_named(model_folder, tmp_path, name):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    shutil.rmtree(folder / name)
    foreign = {"motion_scheduler": "scheduler", "scheduler": "motion_scheduler", "vae": "unet"}.get(
        name, "vae"
    )
    shutil.copytree(model_folder / foreign, folder / name)
    with pytest.raises(ValueError, match=f"{folder}: the component {name}/ is no "):
        XActorPipeline.from_pretrained(folder)


def test_truncated_and_missing_weights_are_named(model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{folder}: the component unet/ is no RendererUNet"):
        XActorPipeline.from_pretrained(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["motion_norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"component unet/ .* weights are missing: motion_norm\.weight"):
        XActorPipeline.from_pretrained(folder)


def test_folders_without_a_pipeline_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no model folder"):
        XActorPipeline.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="_class_name must be XActorPipeline, got StableDiffusionPipeline"):
        XActorPipeline.from_pretrained(tmp_path)


def test_components_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"latents of 48 numbers, the renderer takes 32"):
        small_pipeline(motion=small_model(latent_dim=48, audio_layers=1, audio_dim=64))
    with pytest.raises(ValueError, match=r"features of 1 layers of 64, the audio encoder makes 1 of 80"):
        small_pipeline(audio_encoder=LogMelEncoder(mels=20))


def test_audio_too_short_or_too_long_is_refused(pipeline, portrait_file, speech_file):
    with pytest.raises(ValueError, match=r"the audio: 20 ms of audio are too short"):
        pipeline(portrait_file, voice(0.02), **QUICK)
    with pytest.raises(ValueError, match=r"a\.wav: longer than 1 s"):
        pipeline(portrait_file, speech_file, max_seconds=1, **QUICK)


def test_the_package_imports_lazily_and_has_all_its_names():
    code = "import sys, xactor; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    for name in xactor.__all__:
        assert getattr(xactor, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = xactor.Nothing


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("motion/config.json", {"backbone": {"rms_norm_eps": None}}),
        ("motion/config.json", {"backbone": {"layer_types": ["full_attention", -1, "full_attention"]}}),
        ("vae/config.json", {"block_out_channels": []}),
        ("unet/config.json", {"block_out_channels": []}),
        ("unet/config.json", {"sample_size": ""}),
        ("scheduler/scheduler_config.json", {"beta_schedule": 3}),
    ],
)
def test_a_config_with_a_value_of_another_kind_is_named_in_one_line(model_folder, tmp_path, file, change):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((folder / file).read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(config))
    component = file.partition("/")[0]
    loads = [XActorPipeline.from_pretrained]
    loads.append(load_motion_model if component == "motion" else Renderer.from_pretrained)
    for load in loads:
        with pytest.raises(ValueError, match=f"{folder}: the component {component}/ is no ") as raised:
            load(folder)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 1000
