"""Our network and upstream's, on a checkpoint that we exported and upstream read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bricks_core.diffusion.guidance import guided_denoiser
from bricks_core.diffusion.iddpm import IDDPMScheduler
from bricks_core.diffusion.sampling import Chain
from bricks_core.exchange.checkpoints.checkpoint import open_checkpoint
from bricks_core.exchange.checkpoints.export import export_checkpoint
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.weights import save_config, save_weights

SHAPE = {"hidden_size": 96, "depth": 2, "num_heads": 4, "caption_channels": 64, "model_max_length": 20}


def relmax(a: Tensor, reference: Tensor) -> float:
    assert a.shape == reference.shape
    return ((a - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module")
def networks(upstream, tmp_path_factory):
    """(ours, upstream's), filled where layers begin as nothing or as the identity, so that every branch shows."""
    torch.manual_seed(11)
    ours = STDiT2(**SHAPE)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)
            if name.endswith("_norm.weight"):
                parameter.normal_(mean=1.0, std=0.25)
    folder = tmp_path_factory.mktemp("weights")
    save_weights(ours, folder / "weights.safetensors")
    save_config(ours, folder / "config.json")
    exported = export_checkpoint(open_checkpoint(folder), folder / "exported", "open-sora-hub").out
    stdit2 = upstream("opensora.models.stdit.stdit2")
    # qk_norm_legacy is what later versions of upstream call the order of 1.1; 1.1 itself does not know it.
    config = stdit2.STDiT2Config(
        **json.loads((exported / "config.json").read_text(encoding="utf-8")), qk_norm_legacy=True
    )
    theirs = stdit2.STDiT2(config)
    theirs.load_state_dict(load_file(exported / "model.safetensors"), strict=True)
    return ours.eval(), theirs.eval()


def inputs(frames: int, latent_size: tuple[int, int], batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    height, width = (8.0 * side for side in latent_size)
    sizes = {"num_frames": float(frames), "height": height, "width": width, "ar": height / width, "fps": 24.0}
    return {
        "x": torch.randn(batch, 4, frames, *latent_size, generator=generator),
        "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        "y": torch.randn(batch, 1, 20, 64, generator=generator),
        "mask": (torch.arange(20) < torch.tensor([[20], [7]])[:batch]).long(),
        **{name: torch.full((batch,), value) for name, value in sizes.items()},
    }


@pytest.mark.parametrize(("frames", "latent_size"), [(1, (16, 16)), (8, (12, 16)), (3, (9, 11)), (2, (45, 80))])
@torch.no_grad()
def test_upstream_answers_as_we_do_on_weights_that_we_exported(networks, frames, latent_size):
    ours, theirs = networks
    given = inputs(frames, latent_size)
    assert relmax(ours(**given), theirs(**given)) <= 2e-5


@torch.no_grad()
def test_upstream_answers_as_we_do_where_frames_are_given(networks):
    ours, theirs = networks
    x_mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    given = inputs(4, (6, 8))
    assert relmax(ours(**given, x_mask=x_mask), theirs(**given, x_mask=x_mask)) <= 2e-5


class Captions:
    """What upstream's sampler asks of a text encoder."""

    def __init__(self, y: Tensor, mask: Tensor, null_caption: Tensor):
        self.y, self.mask, self.null_caption = y, mask, null_caption

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        assert len(prompts) == len(self.y)
        return {"y": self.y, "mask": self.mask}

    def null(self, n: int) -> Tensor:
        return self.null_caption[None, None].repeat(n, 1, 1, 1)


@pytest.mark.parametrize("edit_ratios", [None, [[0.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]]])
@torch.no_grad()
def test_upstream_samples_as_we_do_from_the_same_noise(networks, upstream, edit_ratios):
    ours, theirs = networks
    given = inputs(4, (6, 8))
    sizes = {name: given[name] for name in ("num_frames", "height", "width", "ar", "fps")}
    frame_mask = None if edit_ratios is None else torch.tensor(edit_ratios)
    z, null_caption = given["x"], ours.y_embedder.y_embedding

    torch.manual_seed(3)
    sampled = (
        upstream("opensora.schedulers.iddpm")
        .IDDPM(num_sampling_steps=10, cfg_scale=7.0, cfg_channel=3)
        .sample(
            theirs,
            Captions(given["y"], given["mask"], null_caption),
            z=z.clone(),
            prompts=["one", "another"],
            device=torch.device("cpu"),
            additional_args=dict(sizes),
            mask=frame_mask,
        )
    )

    torch.manual_seed(3)
    chain = Chain(IDDPMScheduler(), 10, lambda: torch.randn(4, *z.shape[1:])[:2], device="cpu", frame_mask=frame_mask)

    def network(x: Tensor, timestep: Tensor, captions: Tensor, x_mask: Tensor | None) -> Tensor:
        return ours(x, timestep, captions, given["mask"], x_mask, **sizes)

    made = chain.run(guided_denoiser(network, given["y"], null_caption, scale=7.0, num_channels=3), z, z)
    assert relmax(made, sampled) <= 1e-4
