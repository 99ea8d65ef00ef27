"""Write folders in the layouts of published weights, with the right names and shapes and no numbers.

A dry run loads these folders with the code that loads the real ones. Files with weights are sparse: they take a few
megabytes on the disk. They can be loaded only under torch's FakeTensorMode, which does not read the numbers.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from xactor_platform.training.stage1_config import RendererConfig, Stage1Config
from xactor_platform.training.stage2_config import MotionConfig

# Published configurations, as arguments that differ from the classes' defaults. SD1.5's UNet, the VAE of Stable
# Diffusion, and version 1.5.3 of AnimateDiff's adapter for SD1.5.
_SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
_SD_VAE: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_ANIMATEDIFF: dict[str, Any] = {"use_motion_mid_block": False}
_QWEN_VOCABULARY = 152_064
_WEIGHTS_PER_FILE = 64


@contextmanager
def published_layouts(config: Any) -> Iterator[Any]:
    """Give a config whose folders of published weights exist, for as long as the block runs.

    A folder that holds a config.json decides the layout. Otherwise it is the published one. FakeTensorMode must be
    active.

    Args:
        config: the config of a training of stage 1 or 2.

    Raises:
        ValueError: the config continues the training of a trained model.
    """
    if config.model.start:
        raise ValueError(
            f"a dry run cannot start from a trained model: describe its sizes by options, got model.start "
            f"{config.model.start}"
        )
    write: Any = _write_stage1 if isinstance(config, Stage1Config) else _write_stage2
    # transformers loads weights in other threads, in which FakeTensorMode is not active.
    saved = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        with tempfile.TemporaryDirectory(prefix="xactor-layout-") as folder, _quiet():
            yield replace(config, model=write(config.model, Path(folder)))
    finally:
        if saved is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = saved


def _write_stage1(config: RendererConfig, folder: Path) -> RendererConfig:
    changes: dict[str, Any] = {}
    if config.sd15:
        changes["sd15"] = str(folder / "sd15")
        _write(UNet2DConditionModel, Path(config.sd15, "unet"), _SD15_UNET, folder / "sd15" / "unet")
        if not config.vae:
            _write(AutoencoderKL, Path(config.sd15, "vae"), _SD_VAE, folder / "sd15" / "vae")
    if config.vae:
        changes["vae"] = str(folder / "vae")
        _write(AutoencoderKL, Path(config.vae), _SD_VAE, folder / "vae")
    if config.animatediff:
        changes["animatediff"] = str(folder / "animatediff")
        _write(MotionAdapter, Path(config.animatediff), _ANIMATEDIFF, folder / "animatediff")
    return replace(config, **changes)


def _write(model: Any, published: Path, options: dict[str, Any], folder: Path) -> None:
    """Write a diffusers model, as config.json in `published` describes it, or as `options` do if there is none."""
    if (published / "config.json").is_file():
        built = model.from_config(model.load_config(published))
    else:
        built = model(**options)
    built.save_config(folder)
    _save(built.state_dict(), folder / "diffusion_pytorch_model.bin")


def _write_stage2(config: MotionConfig, folder: Path) -> MotionConfig:
    if not config.backbone:
        return config
    if Path(config.backbone, "config.json").is_file():
        qwen = Qwen2Config.from_pretrained(config.backbone)
    else:
        qwen = Qwen2Config(
            vocab_size=_QWEN_VOCABULARY,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.mlp,
        )
    qwen.save_pretrained(folder)
    _save_shards(Qwen2ForCausalLM(qwen).state_dict(), folder)
    return replace(config, backbone=str(folder))


def _save(weights: dict[str, Any], path: Path) -> None:
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(weights, path)


def _save_shards(weights: dict[str, Any], folder: Path) -> None:
    """Save weights in several files, as large models are published. The system may refuse to map one huge file."""
    files: dict[str, str] = {}
    names_of_all = list(weights)
    for number, first in enumerate(range(0, len(names_of_all), _WEIGHTS_PER_FILE), start=1):
        names = names_of_all[first : first + _WEIGHTS_PER_FILE]
        file = f"pytorch_model-{number:05d}.bin"
        _save({name: weights[name] for name in names}, folder / file)
        files |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the libraries' warnings that weights are not in safetensors files, and their progress bars."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
