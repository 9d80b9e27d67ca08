"""What the network's answer may and may not depend on, how it starts, what it trains, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bricks_core.errors import SpecError
from bricks_core.models.stdit2 import STDiT2, attention
from bricks_core.models.weights import shape_of

TINY = {"hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 16, "model_max_length": 8}


def awake(seed: int = 0, **changes: Any) -> STDiT2:
    """A network whose zero-initialised layers are filled, so that every branch shows in the answer."""
    torch.manual_seed(seed)
    model = STDiT2(**TINY | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return model.eval()


def batch(samples: int = 3, frames: int = 4, size: tuple[int, int] = (6, 8), seed: int = 1) -> dict[str, Tensor]:
    """Arguments of STDiT2.forward: captions of different lengths, and different frame rates."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(samples) % 7 + 2
    return {
        "x": torch.randn(samples, 4, frames, *size, generator=generator),
        "timestep": torch.randint(0, 1000, (samples,), generator=generator),
        "y": torch.randn(samples, 1, 8, 16, generator=generator),
        "mask": (torch.arange(8) < lengths[:, None]).long(),
        "num_frames": torch.full((samples,), float(frames)),
        "height": torch.full((samples,), 8.0 * size[0]),
        "width": torch.full((samples,), 8.0 * size[1]),
        "ar": torch.full((samples,), size[0] / size[1]),
        "fps": torch.arange(samples) * 4.0 + 8,
    }


def picked(arguments: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in arguments.items()}


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------- the answer's form


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 5), height=st.integers(1, 9), width=st.integers(1, 9), samples=st.integers(1, 3))
@torch.no_grad()
def test_the_answer_has_the_size_of_the_latents_and_twice_their_channels(frames, height, width, samples):
    answer = awake()(**batch(samples, frames, (height, width)))
    assert answer.shape == (samples, 8, frames, height, width)
    assert answer.dtype == torch.float32
    assert answer.isfinite().all()


@torch.no_grad()
def test_without_a_predicted_variance_only_the_noise_comes_out():
    assert awake(pred_sigma=False)(**batch()).shape == (3, 4, 4, 6, 8)


@torch.no_grad()
def test_a_new_network_answers_zero():
    torch.manual_seed(0)
    assert STDiT2(**TINY)(**batch()).abs().max() == 0


# -------------------------------------------------------------------------------------------------- what it depends on


@torch.no_grad()
def test_a_sample_s_answer_is_the_same_in_any_batch():
    model, arguments = awake(), batch()
    together = model(**arguments)
    for i in range(3):
        assert close(model(**picked(arguments, slice(i, i + 1)))[0], together[i])


@torch.no_grad()
def test_a_mask_of_frames_that_is_true_everywhere_is_no_mask():
    model, arguments = awake(), batch()
    assert torch.equal(model(**arguments, x_mask=torch.ones(3, 4, dtype=torch.bool)), model(**arguments))


@torch.no_grad()
def test_at_timestep_0_clean_frames_differ_from_others_in_the_final_layer_only():
    """Blocks modulate a clean frame as timestep 0 does; the final layer norms it twice, an oddity that is kept."""
    model, arguments = awake(), batch() | {"timestep": torch.zeros(3, dtype=torch.int64)}
    x_mask = torch.tensor([[True, False, True, True]] * 3)
    masked, plain = model(**arguments, x_mask=x_mask), model(**arguments)
    assert close(masked[:, :, [0, 2, 3]], plain[:, :, [0, 2, 3]])
    assert not close(masked[:, :, 1], plain[:, :, 1])


@torch.no_grad()
def test_a_clean_frame_changes_what_is_said_of_the_others():
    model, arguments = awake(), batch()
    x_mask = torch.tensor([[False, True, True, True]] * 3)
    assert not close(model(**arguments, x_mask=x_mask)[:, :, 1:], model(**arguments)[:, :, 1:])


@torch.no_grad()
def test_what_lies_behind_a_caption_s_end_changes_nothing():
    model, arguments = awake(), batch()
    padding = arguments["mask"][:, None, :, None] == 0
    other = torch.where(padding, torch.full_like(arguments["y"], 7.0), arguments["y"])
    assert close(model(**arguments | {"y": other}), model(**arguments))


@torch.no_grad()
def test_padding_may_be_cut_to_the_longest_caption():
    model, arguments = awake(), batch()
    longest = int(arguments["mask"].sum(dim=1).max())
    assert longest < 8
    cut = arguments | {"y": arguments["y"][:, :, :longest], "mask": arguments["mask"][:, :longest]}
    drop = torch.tensor([True, False, True])
    assert close(model(**cut), model(**arguments))
    assert close(model(**cut, drop=drop), model(**arguments, drop=drop))


@torch.no_grad()
def test_a_dropped_caption_is_the_null_caption_at_the_caption_s_length():
    model, arguments = awake(), batch()
    drop = torch.tensor([False, True, False])
    null = arguments["y"].clone()
    null[1, 0] = model.y_embedder.y_embedding
    assert close(model(**arguments, drop=drop), model(**arguments | {"y": null}))
    assert not close(model(**arguments, drop=drop), model(**arguments))


@torch.no_grad()
def test_no_caption_is_dropped_unless_the_caller_says_so_in_training_either():
    model, arguments = awake(), batch()
    assert torch.equal(model.train()(**arguments), model.eval()(**arguments))


@pytest.mark.parametrize("condition", ["timestep", "num_frames", "height", "width", "ar", "fps"])
@torch.no_grad()
def test_every_condition_changes_the_answer(condition):
    model, arguments = awake(), batch()
    changed = arguments | {condition: arguments[condition] * 2 + 1}
    assert not close(model(**changed), model(**arguments))


@torch.no_grad()
def test_fewer_rows_of_masks_and_sizes_are_repeated_as_a_whole():
    model, arguments = awake(), batch(samples=2)
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in arguments.items()}
    few = {name: arguments[name] for name in ("mask", "num_frames", "height", "width", "ar", "fps")}
    assert torch.equal(model(**twice | few), model(**twice))


@torch.no_grad()
def test_frames_have_an_order():
    model, arguments = awake(), batch()
    backwards = model(**arguments | {"x": arguments["x"].flip(2)}).flip(2)
    assert not close(backwards, model(**arguments))


@torch.no_grad()
def test_without_temporal_attention_frames_know_nothing_of_each_other():
    model, arguments = awake(), batch()
    for block in model.blocks:
        block.attn_temp.proj.weight.zero_()
    alone = model(**arguments | {"x": arguments["x"][:, :, :1]})
    assert close(alone, model(**arguments)[:, :, :1])


# ------------------------------------------------------------------------------------------------ precision and memory


@torch.no_grad()
def test_conditions_stay_exact_in_bfloat16_unless_told_otherwise():
    """In bfloat16, 999 and 1000 are one number: the parity mode cannot tell them apart, ours can."""
    arguments = batch(samples=1)
    at = {t: arguments | {"timestep": torch.tensor([t])} for t in (999, 1000)}
    ours, parity = awake().bfloat16(), awake(conditioning_dtype="weights").bfloat16()
    assert not torch.equal(ours(**at[999]), ours(**at[1000]))
    assert torch.equal(parity(**at[999]), parity(**at[1000]))


def gradients(model: STDiT2, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**arguments).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_recomputing_blocks_gives_the_same_gradients():
    model, arguments = awake().train(), batch() | {"x_mask": torch.tensor([[True, False, True, True]] * 3)}
    kept = gradients(model, arguments)
    model.enable_gradient_checkpointing()
    recomputed = gradients(model, arguments)
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_under_autocast_gradients_are_those_of_float32_but_for_its_rounding():
    model, arguments = awake().train(), batch()
    exact = gradients(model, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(model, arguments)
    assert exact.keys() == rounded.keys()
    for name in exact:
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - exact[name]).norm() <= 0.05 * exact[name].norm() + 1e-4, name


def test_a_network_that_sampled_can_still_be_trained():
    """Positions are cached; what inference mode caches must not reach autograd."""
    model, arguments = awake().train(), batch(size=(10, 12))
    with torch.inference_mode():
        model(**arguments)
    assert gradients(model, arguments)["x_embedder.proj.weight"].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [1, 5, 300])
@pytest.mark.parametrize("masked", [True, False])
def test_every_way_of_attention_is_softmax_of_products(dtype, keys, masked):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, n, 12, generator=generator, dtype=dtype) for n in (7, keys, keys))
    mask = torch.arange(keys) < torch.tensor([[1], [keys]]) if masked else None
    scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(12)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    expected = scores.softmax(dim=-1) @ v.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(attention(q, k, v, mask).double(), expected, rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------- beginnings and freezing


def test_weights_begin_as_the_reference_draws_them():
    torch.manual_seed(3)
    model = STDiT2(hidden_size=240, depth=1, num_heads=4, caption_channels=64, model_max_length=40)
    weights = model.state_dict()
    block = "blocks.0."
    for name in (f"{block}cross_attn.proj", f"{block}attn_temp.proj", "final_layer.linear"):
        assert weights[f"{name}.weight"].abs().max() == 0
    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "t_block.1", "t_block_temp.1", "y_embedder.y_proj.fc1"):
        assert weights[f"{name}.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in (f"{block}scale_shift_table", "final_layer.scale_shift_table"):
        assert weights[name].std().item() == pytest.approx(240**-0.5, rel=0.15)
    assert weights["y_embedder.y_embedding"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    for name in (f"{block}attn.qkv", f"{block}mlp.fc1", "fps_embedder.mlp.2"):
        out_width, in_width = weights[f"{name}.weight"].shape
        assert weights[f"{name}.weight"].abs().max() <= math.sqrt(6 / (in_width + out_width))
        assert weights[f"{name}.weight"].std().item() == pytest.approx(math.sqrt(2 / (in_width + out_width)), rel=0.05)
    assert weights["x_embedder.proj.weight"].std().item() == pytest.approx(math.sqrt(2 / (240 + 16)), rel=0.05)
    biases = [name for name in weights if name.endswith(".bias") and name != "x_embedder.proj.bias"]
    assert all(weights[name].abs().max() == 0 for name in biases)
    assert all((weights[name] == 1).all() for name in weights if name.endswith("_norm.weight"))


@pytest.mark.parametrize(
    ("freeze", "trains"),
    [
        (None, lambda name: True),
        ("not_temporal", lambda name: "attn_temp" in name),
        ("text", lambda name: "cross_attn" not in name),
    ],
)
def test_freezing_leaves_to_train_what_its_name_says_and_never_the_rotary_frequencies(freeze, trains):
    model = STDiT2(**TINY, freeze=freeze)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in model.named_parameters() if trains(name) and name != "rope.freqs"}
    assert trained == expected
    assert "y_embedder.y_embedding" not in dict(model.named_parameters())


@pytest.mark.parametrize("frames", [1, 3])
def test_one_step_reaches_every_parameter_that_trains(frames):
    """Also a batch of images: what has no gradient at all would stop a distributed reduction."""
    model = awake().train()
    reached = gradients(model, batch(frames=frames))
    assert reached.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ------------------------------------------------------------------------------------------------------- configuration


def test_unknown_keys_of_a_published_configuration_are_passed_over():
    shape = shape_of(
        {"architectures": ["STDiT2"], "hidden_size": 48, "num_heads": 4, "patch_size": [1, 2, 2], "drop_path": 0.0}
    )
    assert shape == {"hidden_size": 48, "num_heads": 4, "patch_size": [1, 2, 2]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"hidden_size": 100}, "divide by 12"),
        ({"hidden_size": 96, "num_heads": 5}, "twice num_heads"),
        ({"patch_size": [2, 2, 2]}, "joins frames"),
        ({"drop_path": 0.1}, "stochastic depth"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_with_the_reason(values, sentence):
    with pytest.raises(SpecError, match=sentence):
        STDiT2(**shape_of(values))


def test_a_caption_longer_than_the_null_caption_is_refused():
    arguments = batch() | {"y": torch.randn(3, 1, 9, 16), "mask": torch.ones(3, 9)}
    with pytest.raises(SpecError, match="9 tokens for a network that takes 8"):
        awake()(**arguments)
