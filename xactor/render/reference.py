"""Define the reference network, which computes features of the portrait for each self-attention of the renderer's UNet.

The renderer's UNet contains the same layers. Each of its self-attentions also sees the features that the reference
network computed for the same self-attention.
"""

from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from xactor.render.attention import ReferenceFeatures, WriteReference, own_config, spatial_blocks


class ReferenceUNet(UNet2DConditionModel):
    """Run SD1.5's UNet, without the text cross-attention, over the portrait (Paper 3.1.1, after Hu 2024).

    The arguments are those of diffusers' UNet2DConditionModel. `attention_head_dim` is the number of heads, as in
    SD1.5's config.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        attention_head_dim: int = 8,
    ):
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            attention_head_dim=attention_head_dim,
            # The width of the text cross-attentions. Any width will do, because they are removed below.
            cross_attention_dim=8,
        )
        for name, block in spatial_blocks(self):
            block.attn2 = block.norm2 = None
            block.attn1.set_processor(WriteReference(f"{name}.attn1"))
        # Only the inputs of self-attentions are used. These layers come after the last one, so they are not trained.
        for layer in (self.conv_norm_out, self.conv_out):
            if layer is not None:
                layer.requires_grad_(False)

    def to_json_string(self) -> str:
        return own_config(self)

    def features(self, latents: Tensor) -> ReferenceFeatures:
        """Return the features of portraits, given their clean latents [B, C, h, w]."""
        bank: ReferenceFeatures = {}
        self(latents, 0, encoder_hidden_states=None, cross_attention_kwargs={"bank": bank})
        return bank
