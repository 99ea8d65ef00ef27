"""Test the layouts of published weights from which the renderer starts: SD1.5 and AnimateDiff."""

import logging

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter
from render_models import published

from xactor.render import published_components


def test_published_weights_load_by_their_names(tmp_path, caplog):
    folder = published(tmp_path)
    with caplog.at_level(logging.INFO, logger="xactor.render.components"):
        components = published_components(folder / "sd15", animatediff=folder / "animatediff")
    # The weights of the text attention are dropped, and the log lists them.
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" in caplog.text
    unet = UNet2DConditionModel.from_pretrained(folder / "sd15" / "unet", low_cpu_mem_usage=False)
    adapter = MotionAdapter.from_pretrained(folder / "animatediff", low_cpu_mem_usage=False)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    for model in (components.unet, components.reference_unet):
        assert torch.equal(model.state_dict()[name], unet.state_dict()[name])
    time = "down_blocks.1.motion_modules.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(components.unet.state_dict()[time], adapter.state_dict()[time])
    assert components.vae.config["scaling_factor"] == 0.18215


@pytest.mark.parametrize("guess", [(8, 8, 8), None])
def test_an_untrained_unet_equals_the_published_one_without_its_text(tmp_path, guess):
    """Compare a frame without a reference with the output of SD1.5's UNet whose text attention is set to zero."""
    components = published_components(published(tmp_path) / "sd15", guess_channels=guess)
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "sd15" / "unet", low_cpu_mem_usage=False).eval()
    for name, layer in plain.named_modules():
        if name.endswith("attn2.to_out.0"):
            for parameter in layer.parameters():
                torch.nn.init.zeros_(parameter)
    x, level = torch.randn(1, 1, 4, 8, 8), torch.tensor([400])
    with torch.no_grad():
        found = components.unet.eval()(
            x, level, torch.randn(1, 1, 512), torch.ones(1), None, torch.randn_like(x) if guess else None
        )
        expected = plain(x[:, 0], level, torch.zeros(1, 1, 80)).sample
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_weights_of_another_architecture_are_named(tmp_path):
    published(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights in .*unet: config\.json is missing"):
        published_components(tmp_path / "nowhere")
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32, 32, 32), cross_attention_dim=80, attention_head_dim=2,
        norm_num_groups=8, class_embed_type="timestep",
    ).save_pretrained(tmp_path / "sd15" / "unet")  # fmt: skip
    with pytest.raises(ValueError, match="foreign weights.*class_embedding"):
        published_components(tmp_path / "sd15")
