"""The families of networks, behind one seam."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoTokenizer, UMT5EncoderModel

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.conditions import start_image
from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Frame, Given, Prompts, Sampling
from bricks_core.diffusion.family_stdit2 import STDiT2Family
from bricks_core.diffusion.family_wan import WanFamily
from bricks_core.diffusion.sampling import sample_latents
from bricks_core.errors import SpecError
from bricks_core.models.text_encoder import UMT5
from bricks_core.spec.train import STDiT2Spec, WanSpec

WIDTH, TOKENS = 32, 6
STDIT2 = STDiT2Spec(hidden_size=24, depth=1, num_heads=2)
WAN = WanSpec(
    family="wan", num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, freq_dim=16, text_dim=WIDTH
)
BOTH = pytest.mark.parametrize("spec", [STDIT2, WAN], ids=["stdit2", "wan"])


def built(spec, seed=0):
    torch.manual_seed(seed)
    network = family_of(spec).build(spec, text_width=WIDTH, max_tokens=TOKENS, caption_dropout=0.1)
    with torch.no_grad():  # a new STDiT2 answers 0 everywhere, and most gradients are 0
        for name, each in network.named_parameters():
            if name.startswith("final_layer.linear"):
                each.normal_(std=0.1)
    return network


def batch_for(spec, num=2, seed=0, **changes) -> MicroBatch:
    torch.manual_seed(seed)
    channels = 16 if spec is WAN else 4
    mask = torch.ones(num, TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    facts = {
        "bucket": 0,
        "latents": torch.randn(num, 3, channels, 4, 6).half(),
        "noise": torch.randn(num, channels, 3, 4, 6),
        "text": (torch.randn(num, TOKENS, WIDTH) * mask[:, :, None]).half(),
        "text_mask": mask,
        "timestep": torch.tensor([100, 700])[:num],
        "drop": torch.zeros(num, dtype=torch.bool),
        "frame_mask": None,
        "sizes": {name: torch.full((num,), 8.0) for name in ("num_frames", "height", "width", "ar", "fps")},
        "empty_text": torch.randn(1, WIDTH).half(),
    }
    return MicroBatch(**(facts | changes))


class Knowing(torch.nn.Module):
    """Stands for a network that has learnt all there is: it knows the latents and the noise of its batch."""

    def __init__(self, batch: MicroBatch):
        super().__init__()
        self.way = batch.noise - batch.latents.float().transpose(1, 2)
        self.asked: list[torch.Tensor] = []

    def forward(self, x, timestep, text, return_dict):
        self.asked += [x, timestep, text]
        return (self.way,)


# ------------------------------------------------------------------------------------------------------ which family


def test_a_family_is_found_by_the_run_file_and_by_a_checkpoint_s_config(tmp_path):
    for spec, kind in ((STDIT2, STDiT2Family), (WAN, WanFamily)):
        family = family_of(spec)
        family.save_config(built(spec), tmp_path / "config.json")
        assert type(family) is kind
        assert type(family_of(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))) is kind


@pytest.mark.parametrize(
    ("config", "named"), [({"_class_name": "LTXVideoTransformer3DModel"}, "LTXVideo"), ({}, "no network")]
)
def test_a_network_of_no_known_family_is_refused(config, named):
    with pytest.raises(SpecError, match=f"names {named}.*STDiT2 and WanTransformer3DModel"):
        family_of(config)


def test_wan_is_loaded_only_when_it_is_asked_for():
    code = (
        "import sys, bricks_core.stages.train.stage, bricks_core.stages.evaluate.stage\n"
        "from bricks_core.diffusion.families import family_of\n"
        "from bricks_core.spec.train import STDiT2Spec\n"
        "family_of(STDiT2Spec())\n"
        "print([name for name in sys.modules if 'wan' in name.lower().split('.')[-1]])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert ended.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------------------- loss


def test_wan_is_shown_latents_and_noise_mixed_as_diffusers_scheduler_mixes_them():
    batch = batch_for(WAN)
    network = Knowing(batch)
    losses = family_of(WAN).loss(network, batch, "float32")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=WAN.shift)
    # Its timesteps go down from the most noise; ours are counted from the least.
    timesteps = scheduler.timesteps.flip(0)[batch.timestep]
    x0 = batch.latents.float().transpose(1, 2)
    shown, told, _ = network.asked
    torch.testing.assert_close(told, timesteps)
    torch.testing.assert_close(shown, scheduler.scale_noise(x0, timesteps, batch.noise))
    assert losses.loss.tolist() == [0, 0]  # and what it should answer is the way from latents to noise
    assert losses.vb.tolist() == [0, 0]


def test_the_least_noise_is_the_first_timestep_and_the_last_is_noise_alone():
    batch = batch_for(WAN, timestep=torch.tensor([0, 999]))
    network = Knowing(batch)
    WanFamily(shift=1.0).loss(network, batch, "float32")
    shown, told, _ = network.asked
    assert told.tolist() == [1, 1000]
    torch.testing.assert_close(shown[1], batch.noise[1])


def test_wan_reads_512_rows_with_zeros_behind_the_caption():
    batch = batch_for(WAN)
    network = Knowing(batch)
    family_of(WAN).loss(network, batch, "float32")
    text = network.asked[2]
    assert text.shape == (2, 512, WIDTH)
    assert torch.equal(text[:, :TOKENS], batch.text.float())
    assert not text[:, TOKENS:].any()


def test_a_dropped_caption_of_wan_is_the_empty_caption_as_sampling_s_null_is():
    batch = batch_for(WAN, drop=torch.tensor([True, False]))
    network = Knowing(batch)
    family = family_of(WAN)
    family.loss(network, batch, "float32")
    text = network.asked[2]
    null = family.null_caption(built(WAN), batch.empty_text.float())
    assert torch.equal(text[0, :1], null)
    assert not text[0, 1:].any()
    assert torch.equal(text[1, :TOKENS], batch.text[1].float())


@BOTH
def test_a_sample_s_loss_does_not_depend_on_its_neighbours(spec):
    family, network, batch = family_of(spec), built(spec).eval(), batch_for(spec)
    with torch.no_grad():
        together = family.loss(network, batch, "float32").loss
        for place in range(2):
            one = {
                name: value[place : place + 1]
                for name, value in vars(batch).items()
                if isinstance(value, torch.Tensor) and name != "empty_text"
            }
            sizes = {name: value[place : place + 1] for name, value in batch.sizes.items()}
            alone = family.loss(network, replace(batch, **one, sizes=sizes), "float32").loss
            torch.testing.assert_close(alone[0], together[place], rtol=1e-5, atol=0)


@BOTH
def test_bfloat16_is_near_float32(spec):
    family, network, batch = family_of(spec), built(spec), batch_for(spec)
    exact, rounded = (family.loss(network, batch, precision).loss for precision in ("float32", "bfloat16"))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


@BOTH
def test_recomputing_blocks_changes_no_gradient(spec):
    gradients = []
    for recompute in (False, True):
        network = built(spec).train()
        if recompute:
            network.enable_gradient_checkpointing()
        family_of(spec).loss(network, batch_for(spec), "float32").loss.sum().backward()
        gradients.append([each.grad for each in network.parameters() if each.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- adapters


@BOTH
def test_adapters_go_to_the_family_s_modules_and_they_alone_learn(spec):
    family, network, batch = family_of(spec), built(spec), batch_for(spec)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=list(family.lora_targets)), network)
    layers = [name for name, each in network.named_modules() if hasattr(each, "lora_A")]
    blocks = [
        name for name, each in built(spec).named_modules() if type(each).__name__ == "Linear" and "blocks" in name
    ]
    assert layers == blocks
    with torch.no_grad():  # an adapter begins at 0, where half of its weights have no gradient
        for name, each in network.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.1)
    family.loss(network, batch, "float32").loss.sum().backward()
    learns = {name for name, each in network.named_parameters() if each.grad is not None}
    adapters = {name for name, _ in network.named_parameters() if "lora_" in name}
    assert learns == adapters
    assert len(adapters) == 2 * len(layers)
    assert all(each.grad.any() for name, each in network.named_parameters() if name in adapters)


# ---------------------------------------------------------------------------------------------------------- sampling


def prompts_of(texts, folder) -> Prompts:
    encoder = UMT5(str(folder), max_tokens=512)
    rows = encoder.encode(list(texts))
    features, mask = torch.zeros(len(rows), 1, 40, WIDTH), torch.zeros(len(rows), 40)
    for place, each in enumerate(rows):
        features[place, 0, : len(each)], mask[place, : len(each)] = torch.from_numpy(each), 1
    return Prompts(features, mask, torch.from_numpy(encoder.encode([""])[0]))


SCHEDULERS = {
    "flow-euler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
}


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_wan_s_samples_are_those_of_diffusers_pipeline(sampler, tiny_wan, tmp_path):
    folder = tiny_wan(tmp_path / "tiny-wan")
    network = built(WAN).eval()
    texts = ["A red brick car drives to the left.", "Snow."]
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=SCHEDULERS[sampler],
        transformer=network,
    )
    pipe.set_progress_bar_config(disable=True)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    how = {"num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "latent"}
    expected = pipe(texts, height=32, width=48, num_frames=9, generator=generators(), **how).frames
    seen = []
    sampled = family_of(WAN).sample(
        network,
        prompts_of(texts, folder),
        Frame(9, 32, 48, 16.0, (3, 4, 6)),
        generators(),
        Sampling(sampler, 6, 5.0, shift=5.0),
        on_step=lambda number, x, x0: seen.append((number, x0)),
    )
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert [number for number, _ in seen] == list(range(6))
    # The last step ends at the clean latents predicted in it.
    torch.testing.assert_close(seen[-1][1], sampled, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_stdit2_s_samples_are_those_of_its_own_module():
    network = built(STDIT2).eval()
    prompts = Prompts(torch.randn(2, 1, TOKENS, WIDTH), torch.ones(2, TOKENS), torch.randn(1, WIDTH))
    references, conditions = [[torch.randn(4, 1, 4, 6)]] * 2, [[start_image()], []]

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in range(2)]

    sampled = STDiT2Family().sample(
        network,
        prompts,
        Frame(3, 32, 48, 8.0, (3, 4, 6)),
        noise(),
        Sampling("iddpm", 4, 7.0, guided_channels=3),
        Given(references, conditions),
    )
    expected = sample_latents(
        network,
        prompts.features,
        prompts.mask,
        num_frames=3,
        latent_size=(4, 6),
        pixel_size=(32, 48),
        fps=8.0,
        generators=noise(),
        method="iddpm",
        num_steps=4,
        guided_channels=3,
        references=references,
        conditions=conditions,
    )
    assert torch.equal(sampled, expected)


def test_all_of_wan_learns():
    """No parameter is left out, for which processes that train together would wait."""
    network = built(WAN)
    WanFamily().loss(network, batch_for(WAN), "float32").loss.sum().backward()
    assert [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()] == []


@BOTH
def test_a_sample_s_noise_is_its_own(spec):
    family, network = family_of(spec), built(spec).eval()
    channels = network.config.in_channels
    prompts = Prompts(torch.randn(2, 1, TOKENS, WIDTH), torch.ones(2, TOKENS), torch.randn(1, WIDTH))
    frame, how = Frame(9, 32, 48, 8.0, (3, 4, 6)), Sampling(family.samplers[0], 3, 4.0)

    def sampled(places):
        some = Prompts(prompts.features[places], prompts.mask[places], prompts.empty)
        noise = [torch.Generator().manual_seed(place) for place in places]
        return family.sample(network, some, frame, noise, how)

    together = sampled([0, 1])
    assert together.shape == (2, channels, 3, 4, 6)
    for place in range(2):
        torch.testing.assert_close(sampled([place])[0], together[place], rtol=0, atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=0.1)


# -------------------------------------------------------------------------------------------------------- predictions


def asked_of(batch: MicroBatch) -> tuple[torch.Tensor, Prompts, Frame]:
    """A batch of training as `predict` is asked: its latents, captions and size."""
    num_frames, height, width = batch.latents.shape[1], *batch.latents.shape[3:]
    prompts = Prompts(batch.text.float()[:, None], batch.text_mask.float(), batch.empty_text.float())
    frame = Frame(num_frames, 8 * height, 8 * width, 8.0, (num_frames, height, width))
    return batch.latents.float().transpose(1, 2), prompts, frame


def told(batch: MicroBatch) -> dict[str, torch.Tensor]:
    num_frames, height, width = batch.latents.shape[1], 8 * batch.latents.shape[3], 8 * batch.latents.shape[4]
    values = {"num_frames": num_frames, "height": height, "width": width, "ar": height / width, "fps": 8.0}
    return {name: torch.full((len(batch),), float(value)) for name, value in values.items()}


def listening(spec):
    """A network that hears captions: a new STDiT2 has 0 where it would."""
    network = built(spec).eval()
    with torch.no_grad():
        for each in network.parameters():
            if not each.any():
                each.normal_(std=0.1)
    return network


@BOTH
def test_predictions_with_and_without_a_caption_are_those_that_training_measures(spec):
    family, network, batch = family_of(spec), listening(spec), batch_for(spec)
    latents, prompts, frame = asked_of(batch)
    sampler = "iddpm" if spec is STDIT2 else "unipc"  # asks without a caption as training does
    found = family.predict(network, latents, batch.noise, batch.timestep, [prompts], frame, sampler)
    for answer, drop in ((found.captioned[0], False), (found.without, True)):
        asked = replace(batch, sizes=told(batch), drop=torch.full((2,), drop))
        with torch.no_grad():
            expected = family.loss(network, asked, "float32").mse
        torch.testing.assert_close((answer - found.target).square().flatten(1).mean(1), expected)


@BOTH
def test_predictions_of_one_question_under_several_captions_differ_by_the_caption_alone(spec):
    family, network, batch = family_of(spec), listening(spec), batch_for(spec)
    latents, prompts, frame = asked_of(batch)
    other = Prompts(prompts.features.flip(0), prompts.mask.flip(0), prompts.empty)
    asked = (latents, batch.noise, batch.timestep)
    both = family.predict(network, *asked, [prompts, other], frame, family.samplers[0])
    alone = family.predict(network, *asked, [other], frame, family.samplers[0])
    torch.testing.assert_close(both.captioned[1], alone.captioned[0], rtol=0, atol=1e-5)
    assert torch.equal(both.without, alone.without)
    assert not torch.allclose(both.captioned[0], both.captioned[1], rtol=0, atol=1e-5)
    assert both.captioned[0].shape == both.without.shape == both.target.shape == latents.shape


def test_stdit2_is_asked_without_a_caption_as_its_sampler_does_it():
    """All rows of the null caption, whatever the caption; only the reference's chain reads as many as it has."""
    network, batch = listening(STDIT2), batch_for(STDIT2)
    latents, prompts, frame = asked_of(batch)
    short = Prompts(prompts.features, torch.tensor([[1.0] * 2 + [0.0] * 4] * 2), prompts.empty)
    asked = (latents, batch.noise, batch.timestep)
    whole, cut = (
        [STDiT2Family().predict(network, *asked, [each], frame, sampler).without for each in (prompts, short)]
        for sampler in ("unipc", "iddpm")
    )
    assert torch.equal(*whole)
    assert not torch.allclose(*cut, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------- what it cannot do


def test_wan_refuses_given_frames():
    given = Given([[torch.zeros(16, 1, 4, 6)]], [[start_image()]])
    prompts = Prompts(torch.zeros(1, 1, 1, WIDTH), torch.ones(1, 1), torch.zeros(1, WIDTH))
    with pytest.raises(SpecError, match="Wan makes videos of text alone"):
        WanFamily().sample(
            built(WAN), prompts, Frame(9, 32, 48, 8, (3, 4, 6)), [torch.Generator()], Sampling("unipc", 2, 1.0), given
        )


@pytest.mark.parametrize(
    ("channels", "latents", "words"),
    [
        (4, (3, 4, 6), "takes latents of 16 channels, these have 4"),
        (16, (3, 5, 6), "their height must divide by 2"),
        (16, (3, 4, 7), "their width must divide by 2"),
        (16, (1025, 4, 6), "their frames must divide by 1 and be at most 1024"),
    ],
)
def test_wan_says_which_latents_it_can_do(channels, latents, words):
    WanFamily().check(built(WAN), 16, (1024, 4, 6))
    with pytest.raises(SpecError, match=words):
        WanFamily().check(built(WAN), channels, latents)


def test_stdit2_takes_latents_of_any_size_of_its_channels():
    STDiT2Family().check(built(STDIT2), 4, (7, 5, 3))
    with pytest.raises(SpecError, match="takes latents of 4 channels, these have 16"):
        STDiT2Family().check(built(STDIT2), 16, (7, 5, 3))


def test_a_wan_network_for_other_captions_is_refused():
    with pytest.raises(SpecError, match="text_dim is 32, and the captions' features are 24 wide"):
        WanFamily().build(WAN, text_width=24, max_tokens=512, caption_dropout=0)


def test_the_network_that_is_built_is_diffusers_own():
    assert type(built(WAN)) is WanTransformer3DModel


# ------------------------------------------------------------------------------------------------------------ diffusers


def test_wan_is_saved_as_the_pipeline_that_diffusers_loads_and_samples_the_same_there(tiny_wan, tmp_path):
    companions, network = tiny_wan(tmp_path / "tiny-wan"), built(WAN).eval()
    family = WanFamily(shift=5.0)
    family.pipeline(network, vae=str(companions), text_encoder=str(companions)).save_pretrained(tmp_path / "saved")
    loaded = WanPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    texts = ["A red brick car drives to the left."]
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
    noise = torch.Generator().manual_seed(0)
    theirs = loaded(texts, height=32, width=48, num_frames=5, generator=noise, **how).frames
    ours = family.sample(
        network,
        prompts_of(texts, companions),
        Frame(5, 32, 48, 16.0, (2, 4, 6)),
        [torch.Generator().manual_seed(0)],
        Sampling("unipc", 3, 5.0),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@BOTH
def test_a_network_may_be_saved_alone(spec, tmp_path):
    network = built(spec)
    family_of(spec).pipeline(network).save_pretrained(tmp_path / "saved")
    again = type(network).from_pretrained(tmp_path / "saved" / "transformer")
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in network.state_dict().items())
