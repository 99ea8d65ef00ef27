"""Test the motion transformer: masks, windowed audio attention, the loaded backbone, padding and saving."""

from functools import partial
from pathlib import Path

import pytest
import torch
from motion_models import QWEN, SIZES, small_model
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from xactor.motion import MotionTransformer, MotionTransformerConfig
from xactor.motion.audio_attention import WindowedAudioAttention
from xactor.motion.masks import dense_mask, make_mask, teacher_visible, visible


def drawing(predicate, size: int, chunk_frames: int) -> list[str]:
    """Draw a mask with one string per query: `x` is a visible key, `.` a hidden one."""
    positions = torch.arange(size)
    return [
        "".join("x" if seen else "." for seen in row)
        for row in dense_mask(predicate, positions, positions, chunk_frames)[0, 0]
    ]


def test_chunk_mask_is_full_inside_and_causal_across():
    seen = drawing(partial(visible, attention="chunk"), 6, chunk_frames=2)
    assert seen == ["xx....", "xx....", "xxxx..", "xxxx..", "xxxxxx", "xxxxxx"]


def test_causal_mask_hides_later_frames():
    seen = drawing(partial(visible, attention="causal"), 4, chunk_frames=2)
    assert seen == ["x...", "xx..", "xxx.", "xxxx"]


def test_teacher_mask_shows_clean_history_and_own_noised_chunk():
    seen = drawing(partial(teacher_visible, frames=4, attention="chunk"), 8, chunk_frames=2)
    assert seen == [
        "xx......",
        "xx......",
        "xxxx....",
        "xxxx....",
        "....xx..",
        "....xx..",
        "xx....xx",
        "xx....xx",
    ]


def forward(model, frames: int = 20, batch: int = 2, seed: int = 0, lengths=None, **kwargs):
    """Run the model on random inputs. Return the output and the inputs (z, k, audio, real)."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, frames, 32, generator=g).to(model.device)
    k = torch.randint(1001, (batch, frames), generator=g).to(model.device)
    audio = torch.randn(batch, frames + 4, 24, generator=g).to(model.device)
    real = torch.ones(batch, frames + 4, dtype=torch.bool, device=model.device)
    return model(z, k, audio, real, frames=lengths, **kwargs), (z, k, audio, real)


def compare_flex_with_sdpa(device: str, *, teacher: bool):
    sdpa, flex = small_model().to(device), small_model().to(device)
    flex.backbone.set_attn_implementation("flex_attention")
    lengths = torch.tensor([20, 13], device=device)
    clean = torch.randn(2, 20, 32, device=device) if teacher else None
    with torch.no_grad():
        expected, _ = forward(sdpa, lengths=lengths, clean=clean)
        got, _ = forward(flex, lengths=lengths, clean=clean)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(got[row, :length], expected[row, :length], atol=1e-5, rtol=1e-5)


def test_rows_with_chunks_of_different_lengths_equal_models_with_those_lengths():
    model = small_model()
    mixed, _ = forward(model, chunk_frames=torch.tensor([4, 8]))
    for row, length in enumerate((4, 8)):
        alone, _ = forward(small_model(chunk_frames=length))
        torch.testing.assert_close(mixed[row], alone[row], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[0], forward(model)[0][0], atol=1e-3)


@pytest.mark.slow
def test_flex_attention_equals_sdpa():
    # Only without teacher forcing: torch 2.13's CPU kernel returns NaN for the mask of teacher forcing.
    compare_flex_with_sdpa("cpu", teacher=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("teacher", [False, True])
def test_flex_attention_equals_sdpa_on_a_gpu(teacher):
    compare_flex_with_sdpa("cuda", teacher=teacher)


@pytest.mark.parametrize("chunk_frames", [8, torch.tensor([4, 2])])
@pytest.mark.parametrize("teacher", [False, True])
def test_dense_and_block_masks_agree(teacher, chunk_frames):
    positions = torch.arange(20)
    real = torch.arange(20)[None] < torch.tensor([20, 9])[:, None]

    predicate = partial(visible, attention="chunk")
    if teacher:
        predicate = partial(teacher_visible, frames=10, attention="chunk")
    dense = make_mask("sdpa", predicate, positions, positions, chunk_frames, real)
    block = make_mask("flex_attention", predicate, positions, positions, chunk_frames, real)
    for b in range(2):
        for q in range(0, 20, 3):
            for kv in range(20):
                assert bool(block.mask_mod(torch.tensor(b), 0, torch.tensor(q), torch.tensor(kv))) == bool(
                    dense[b, 0, q, kv]
                )


def test_windowed_audio_attention_equals_masked_full_attention():
    torch.manual_seed(0)
    module = WindowedAudioAttention(hidden=32, audio=12, heads=4, window=2, eps=1e-6)
    torch.nn.init.normal_(module.place)
    x, audio = torch.randn(2, 9, 32), torch.randn(2, 13, 12)
    real = torch.ones(2, 13, dtype=torch.bool)
    real[:, :2] = real[:, -2:] = False
    got = module(x, audio, real)

    q = module.q_proj(module.norm(x)).view(2, 9, 4, 8)
    expected = torch.zeros(2, 9, 4, 8)
    for t in range(9):
        places = [p for p in range(5) if real[0, t + p]]
        k = torch.stack([module.k_proj(audio[:, t + p]) + module.place[p] for p in places], 1).view(
            2, -1, 4, 8
        )
        v = torch.stack([module.v_proj(audio[:, t + p]) + module.place[p] for p in places], 1).view(
            2, -1, 4, 8
        )
        weights = (torch.einsum("bhd,bphd->bhp", q[:, t], k) / 8**0.5).softmax(-1)
        expected[:, t] = torch.einsum("bhp,bphd->bhd", weights, v)
    torch.testing.assert_close(got, module.o_proj(expected.flatten(2)), atol=1e-5, rtol=1e-5)


def test_audio_affects_the_frames_around_it_and_their_chunks():
    """A change in the audio of frame 12 affects all chunks from the first one with a frame whose window holds it."""
    model = small_model()
    before, (z, k, audio, real) = forward(model)
    audio = audio.clone()
    audio[:, 12 + 2] += 1.0
    after = model(z, k, audio, real)
    moved = (after - before).abs().amax((0, 2)) > 1e-6
    # The window of the first chunk's last frame ends at frame 9.
    assert not moved[:8].any()
    assert moved[8:].all()
    assert not torch.equal(after[:, 10:15], before[:, 10:15])


def test_a_later_chunk_never_affects_an_earlier_one():
    model = small_model()
    before, (z, k, audio, real) = forward(model)
    z = z.clone()
    z[:, 16:] += 1.0
    after = model(z, k, audio, real)
    torch.testing.assert_close(after[:, :16], before[:, :16], atol=1e-6, rtol=0)
    assert (after - before)[:, 16:].abs().amax() > 1e-3


@pytest.mark.parametrize("teacher", [False, True])
def test_padding_changes_nothing(teacher):
    model = small_model()
    lengths = torch.tensor([20, 13])
    clean = torch.randn(2, 20, 32) if teacher else None
    _, (z, k, audio, real) = forward(model, lengths=lengths, clean=clean)
    real = real.clone()
    real[:, :2] = False
    for row, n in enumerate(lengths.tolist()):
        real[row, n + 2 :] = False
    out = model(z, k, audio, real, frames=lengths, clean=clean)
    for row, n in enumerate(lengths.tolist()):
        alone = model(
            z[row : row + 1, :n],
            k[row : row + 1, :n],
            audio[row : row + 1, : n + 4],
            real[row : row + 1, : n + 4],
            clean=None if clean is None else clean[row : row + 1, :n],
        )
        torch.testing.assert_close(out[row, :n], alone[0], atol=1e-5, rtol=1e-5)


def test_teacher_forcing_equals_one_forward_pass_per_chunk():
    """One pass over 2T tokens equals the definition: chunk c is noised, and the chunks before it are clean."""
    model = small_model()
    clean = torch.randn(2, 24, 32)
    out, (z, k, audio, real) = forward(model, frames=24, clean=clean)
    for first in range(0, 24, 8):
        last = first + 8
        z_mixed = torch.cat([clean[:, :first], z[:, first:last]], 1)
        k_mixed = torch.cat([torch.zeros_like(k[:, :first]), k[:, first:last]], 1)
        one = model(z_mixed, k_mixed, audio[:, : last + 4], real[:, : last + 4])
        torch.testing.assert_close(out[:, first:last], one[:, first:last], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_an_untrained_model_equals_its_loaded_backbone(tmp_path, max_shard_size):
    """The published layout is a Qwen2ForCausalLM folder with one or several safetensors files."""
    torch.manual_seed(3)
    published = Qwen2ForCausalLM(Qwen2Config(**QWEN, vocab_size=500)).eval()
    published.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    model = MotionTransformer.from_backbone(tmp_path, **SIZES).eval()

    z, k = torch.randn(2, 24, 32), torch.randint(1001, (2, 24))
    audio, real = torch.randn(2, 28, 24), torch.ones(2, 28, dtype=torch.bool)
    hidden = []
    model.backbone.norm.register_forward_hook(lambda module, args, out: hidden.append(out))
    model(z, k, audio, real)
    positions = torch.arange(24)
    mask = dense_mask(partial(visible, attention="chunk"), positions, positions, 8)
    inputs = model.latent_in(z) + model.level(k)
    expected = published.model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden[0], expected, atol=1e-5, rtol=1e-5)
    assert not any("embed_tokens" in name or "lm_head" in name for name in model.state_dict())


def test_qwen_2_5_has_the_published_size():
    """The 7B's backbone has 6.53 G parameters without its token embedding (7.07 G with) and head."""
    with torch.device("meta"):
        qwen = Qwen2Config(
            hidden_size=3584,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            intermediate_size=18944,
        )
        model = MotionTransformer(MotionTransformerConfig(backbone=qwen))
    backbone = sum(weight.numel() for weight in model.backbone.parameters())
    assert abs(backbone / 6.53e9 - 1) < 0.005


def test_a_saved_model_gives_the_same_output(tmp_path):
    model = small_model()
    model.set_latent_statistics(torch.arange(32.0), torch.linspace(0.5, 2, 32))
    model.save_pretrained(tmp_path)
    again = MotionTransformer.from_pretrained(tmp_path).eval()
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(forward(again)[0], forward(model)[0])
    z = torch.randn(2, 5, 32)
    torch.testing.assert_close(again.destandardise(again.standardise(z)), z)


def gradients(model: MotionTransformer) -> dict[str, torch.Tensor]:
    forward(model)[0].square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, checkpointed = small_model().train(), small_model().train()
    checkpointed.enable_checkpointing()
    expected, found = gradients(plain), gradients(checkpointed)
    assert expected.keys() == found.keys()
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name


def test_checkpointing_keeps_only_the_input_of_each_block():
    """A block is a layer and its audio attention, whose windows would need as much memory as the layer."""
    model, kept = small_model().train(), []
    model.enable_checkpointing()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        forward(model)
    # Keys in windows of five positions.
    assert not [shape for shape in kept if len(shape) == 5]
    # The SiLU of the MLP is 96 wide, and nothing outside the blocks is.
    assert not [shape for shape in kept if 96 in shape]


# Dynamo looks at the gradients of inputs, and warnings are errors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_give_the_same_gradients_and_share_their_code():
    """The backend aot_eager captures and transforms the graphs, and runs them without a compiler."""
    from torch._dynamo.testing import CompileCounterWithBackend

    expected = gradients(small_model().train())
    model, counter = small_model().train(), CompileCounterWithBackend("aot_eager")
    model.compile_blocks(counter)
    model.enable_checkpointing()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], msg=name)
    # There are three blocks. The first one's input is another kind of tensor.
    assert counter.frame_count <= 2


def test_a_backbone_in_the_type_of_its_files_is_not_copied(tmp_path):
    """The ranks of a node share the pages of the file. Only the new layers need memory of their own."""
    qwen = {**QWEN, "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 1024}
    Qwen2Model(Qwen2Config(**qwen, vocab_size=8)).to(torch.bfloat16).save_pretrained(tmp_path)
    model = MotionTransformer.from_backbone(tmp_path, dtype=torch.bfloat16, **SIZES)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.latent_std.dtype == torch.float32
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list mapped files")
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in maps.read_text().splitlines()
        if line.endswith("model.safetensors")
    ]
    mapped = [any(a <= p.data_ptr() < b for a, b in ranges) for p in model.backbone.layers.parameters()]
    assert all(mapped)
    copied = MotionTransformer.from_backbone(tmp_path, **SIZES)
    assert {p.dtype for p in copied.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_frames": 30}, "multiple of chunk_frames.*got 30"),
        ({"context_frames": 8}, "at least two"),
        ({"chunk_frames": 0}, "chunk_frames must be >= 1, got 0"),
        ({"attention": "full"}, "'chunk' or 'causal', got 'full'"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MotionTransformerConfig(**{**SIZES, **changes})


def test_foreign_backbones_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        MotionTransformer.from_backbone(tmp_path, **SIZES)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="qwen2 model, got model_type 'llama'"):
        MotionTransformer.from_backbone(tmp_path, **SIZES)
    wrong = tmp_path / "short"
    Qwen2Model(Qwen2Config(**{**QWEN, "num_hidden_layers": 2}, vocab_size=10)).save_pretrained(wrong)
    config = (wrong / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    # Transformers refuses three layers with a list of two layer types, so the list is hidden.
    (wrong / "config.json").write_text(config.replace('"layer_types"', '"_layer_types"'))
    with pytest.raises(ValueError, match="lacks weights"):
        MotionTransformer.from_backbone(wrong, **SIZES)
