"""The pipeline: prompts, images and videos in, frames out, made and used as diffusers' own pipelines are."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer, T5EncoderModel

from bricks_core.diffusion.conditions import Condition
from bricks_core.diffusion.iddpm import IDDPMScheduler
from bricks_core.diffusion.sampling import sample_latents, scheduler_named
from bricks_core.diffusion.text_to_video import STDiT2Pipeline, STDiT2PipelineOutput
from bricks_core.errors import SpecError, UsageError
from bricks_core.models.stdit2 import STDiT2
from tests.golden_vectors import every_case

PROMPT = "A red brick car drives to the left."
SMALL = {"num_frames": 3, "height": 16, "width": 24, "num_inference_steps": 2}


def awake_transformer(**changed: Any) -> STDiT2:
    """A tiny network whose zero-initialised layers are filled, so that captions and frames matter."""
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 32, "model_max_length": 30}
    model = STDiT2(**shape, **changed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_vae, tiny_t5) -> Path:
    """A folder with a VAE and a text encoder."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_vae(folder / "vae")
    tiny_t5(folder / "text_encoder")
    return folder


@pytest.fixture
def pipe(parts) -> STDiT2Pipeline:
    made = STDiT2Pipeline(
        tokenizer=AutoTokenizer.from_pretrained(parts / "text_encoder"),
        text_encoder=T5EncoderModel.from_pretrained(parts / "text_encoder").eval(),
        vae=AutoencoderKL.from_pretrained(parts / "vae").eval(),
        transformer=awake_transformer(),
        scheduler=scheduler_named("unipc"),
    )
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: STDiT2Pipeline, prompt: str | list[str] | None = PROMPT, **asked: Any) -> Tensor:
    return pipe(prompt, **({"output_type": "latent", "generator": seeded()} | SMALL | asked)).frames


# -------------------------------------------------------------------------------------------------------------- frames


def test_frames_come_in_the_forms_that_diffusers_pipelines_have(pipe):
    def made(output_type: str, **asked: Any) -> Any:
        return pipe(PROMPT, output_type=output_type, generator=seeded(), **SMALL, **asked)

    arrays, tensors, pictures = made("np").frames, made("pt").frames, made("pil").frames
    assert isinstance(made("np"), STDiT2PipelineOutput)
    assert arrays.shape == (1, 3, 16, 24, 3)
    assert tensors.shape == (1, 3, 3, 16, 24)
    assert 0 <= arrays.min() < arrays.max() <= 1
    np.testing.assert_array_equal(arrays, tensors.permute(0, 1, 3, 4, 2).numpy())
    assert len(pictures) == 1
    assert [picture.size for picture in pictures[0]] == [(24, 16)] * 3
    np.testing.assert_array_equal(np.stack(pictures[0]), np.round(arrays[0] * 255).astype(np.uint8))
    assert made("latent").frames.shape == (1, 4, 3, 2, 3)
    assert pipe(PROMPT, output_type="latent", return_dict=False, generator=seeded(), **SMALL)[0].shape == (
        1,
        4,
        3,
        2,
        3,
    )


def test_a_size_loses_what_is_beyond_a_multiple_of_eight(pipe):
    assert pipe(PROMPT, output_type="pt", **(SMALL | {"height": 19, "width": 26})).frames.shape == (1, 3, 3, 16, 24)


def test_its_latents_are_those_of_sampling(pipe):
    tokens = pipe.tokenizer(PROMPT.lower().removesuffix("."), return_tensors="pt")
    with torch.no_grad():
        features = pipe.text_encoder(tokens.input_ids).last_hidden_state
    directly = sample_latents(
        pipe.transformer,
        features[:, None],
        tokens.attention_mask,
        num_frames=3,
        latent_size=(2, 3),
        pixel_size=(16, 24),
        fps=8.0,
        generators=[seeded()],
        num_steps=2,
    )
    torch.testing.assert_close(latents_of(pipe, PROMPT.removesuffix(".")), directly, atol=1e-4, rtol=1e-4)


class GoldenNetwork(STDiT2):
    """What the golden chains sample (tests/golden/README.md): the small network beside a share of the noise."""

    def forward(self, x: Tensor, timestep: Tensor, *told: Any, **sizes: Any) -> Tensor:
        noise, nu = super().forward(x, timestep, *told, **sizes).chunk(2, dim=1)
        tau = timestep.reshape(-1, 1, 1, 1, 1) / 1000
        share = torch.sqrt(1 - torch.exp(-(0.1 * tau + 9.95 * tau**2)))
        return torch.cat([share * x + 0.1 * noise, 0.25 * nu], dim=1)


# Latents cannot be given to a pipeline as frames: test_sampling.py walks the chains with a mask.
@every_case("sampling_model", "in.z", without="in.mask")
def test_with_the_reference_s_scheduler_it_walks_the_golden_chain(case, golden, small_model, monkeypatch):
    vectors = golden("sampling_model")[case]
    network = GoldenNetwork.from_config(small_model.config)
    network.load_state_dict(small_model.state_dict())
    pipe = STDiT2Pipeline(None, None, None, network.eval(), IDDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for one in range(len(vectors["in.z"])):  # each has its own frame rate

        def of_one(name: str, one: int = one) -> Tensor:
            return vectors[f"in.{name}"][one : one + 1]

        noise = iter(vectors["in.noise"][:, one : one + 1])
        monkeypatch.setattr(f"{STDiT2Pipeline.__module__}.randn_tensor", lambda *shape, n=noise, **place: next(n))
        made = pipe(
            prompt_embeds=of_one("y")[:, 0],
            prompt_attention_mask=of_one("text_mask"),
            negative_prompt_embeds=of_one("y_null")[:, 0],
            negative_prompt_attention_mask=of_one("text_mask"),
            **{name: int(of_one(name)) for name in ("num_frames", "height", "width", "fps")},
            num_inference_steps=len(vectors["in.timestep_map"]),
            guidance_scale=7.0,
            guided_channels=3,
            latents=of_one("z"),
            output_type="latent",
        ).frames
        theirs = vectors["out.final"][one : one + 1]
        assert (made - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_video_does_not_depend_on_its_batch(pipe):
    prompts = [PROMPT, "Two bricks fall."]
    together = latents_of(pipe, prompts, num_videos_per_prompt=2, generator=[seeded(i) for i in range(4)])
    assert together.shape == (4, 4, 3, 2, 3)
    for place, (prompt, seed) in enumerate([(0, 0), (0, 1), (1, 2), (1, 3)]):
        alone = latents_of(pipe, prompts[prompt], generator=seeded(seed))
        torch.testing.assert_close(together[place], alone[0], atol=1e-3, rtol=1e-3)


def test_the_prompt_the_negative_prompt_and_the_frame_rate_are_heard(pipe):
    usual = latents_of(pipe)
    assert torch.equal(latents_of(pipe), usual)
    for other in (
        {"prompt": "Two bricks fall."},
        {"negative_prompt": "Blue ground."},
        {"fps": 24.0},
        {"guidance_scale": 3.0},
        {"guided_channels": 3},
        {"null_length": "caption"},
        {"clean_caption": False},
        {"generator": seeded(1)},
    ):
        assert not torch.allclose(latents_of(pipe, **({"prompt": PROMPT} | other)), usual, atol=1e-5), other
    assert not torch.equal(latents_of(pipe, clean_caption=True), latents_of(pipe, max_sequence_length=3))


def test_the_null_caption_is_read_whole_but_as_the_reference_does_with_its_scheduler(pipe):
    assert torch.equal(latents_of(pipe), latents_of(pipe, null_length="whole"))
    pipe.scheduler = IDDPMScheduler()
    assert torch.equal(latents_of(pipe), latents_of(pipe, null_length="caption"))


def test_without_guidance_the_negative_prompt_is_not_heard(pipe):
    alone = latents_of(pipe, guidance_scale=1.0)
    assert torch.equal(latents_of(pipe, guidance_scale=1.0, negative_prompt="Blue ground."), alone)


def test_a_prompt_too_long_for_the_transformer_is_cut_and_this_is_said(pipe):
    logger = diffusers.utils.logging.get_logger("bricks_core.diffusion.text_to_video")
    said: list[str] = []
    logger.addFilter(lambda record: said.append(record.getMessage()) or False)
    latents_of(pipe, "brick " * 40)
    logger.filters.clear()
    assert len(said) == 1
    assert "only 30 are read" in said[0]


def test_features_may_be_given_in_place_of_prompts(pipe):
    given = pipe.encode_prompt([PROMPT, "Two bricks fall."], "Blue ground.")
    by_text = latents_of(pipe, [PROMPT, "Two bricks fall."], negative_prompt="Blue ground.")
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    features = dict(zip(names, given, strict=True))
    torch.testing.assert_close(latents_of(pipe, None, **features), by_text)
    bare = STDiT2Pipeline(None, None, None, pipe.transformer, pipe.scheduler)
    bare.set_progress_bar_config(disable=True)
    torch.testing.assert_close(latents_of(bare, None, **features), by_text)
    with pytest.raises(UsageError, match="has no text encoder"):
        latents_of(bare)
    with pytest.raises(UsageError, match="has no VAE"):
        latents_of(bare, None, **features, output_type="np")


def test_noise_may_be_given(pipe):
    noise = torch.randn(1, 4, 3, 2, 3, generator=seeded())
    assert torch.equal(latents_of(pipe, latents=noise, generator=None), latents_of(pipe))


# -------------------------------------------------------------------------------------------------------- given frames


def picture(seed: int, height: int = 16, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("method", ["dpm-solver++", "unipc"])
def test_a_video_begins_and_ends_with_the_images_that_are_given(pipe, method):
    pipe.scheduler = scheduler_named(method)
    made = latents_of(pipe, image=picture(1), last_image=picture(2))
    assert torch.equal(made[0, :, [0]], pipe.encode_frames(np.asarray(picture(1))[None]))
    assert torch.equal(made[0, :, [2]], pipe.encode_frames(np.asarray(picture(2))[None]))
    assert not torch.allclose(made[:, :, 1], latents_of(pipe)[:, :, 1], atol=1e-4)


def test_each_prompt_may_have_its_own_image(pipe):
    made = latents_of(pipe, [PROMPT, PROMPT], image=[picture(1), picture(2)], num_videos_per_prompt=2)
    for place, seed in enumerate([1, 1, 2, 2]):
        assert torch.equal(made[place, :, [0]], pipe.encode_frames(np.asarray(picture(seed))[None]))


def test_a_video_goes_on_from_the_last_frames_of_another(pipe):
    before = [picture(seed) for seed in range(5)]
    made = latents_of(pipe, video=before, num_condition_frames=2, num_frames=4)
    torch.testing.assert_close(made[0, :, :2], pipe.encode_frames(np.stack(before[-2:])))
    a_quarter = latents_of(pipe, video=before, num_frames=8)
    assert torch.equal(a_quarter[0, :, :2], made[0, :, :2])
    assert a_quarter.shape[2] == 8


def test_what_the_pipeline_made_goes_back_in_in_any_form(pipe):
    first = {kind: pipe(PROMPT, output_type=kind, generator=seeded(), **SMALL).frames for kind in ("pil", "np", "pt")}
    onward = [latents_of(pipe, video=frames[0]) for frames in first.values()]
    assert torch.equal(onward[0], onward[1])
    assert torch.equal(onward[0], onward[2])
    both = latents_of(pipe, [PROMPT, PROMPT], video=np.concatenate([first["np"]] * 2))
    assert both.shape[0] == 2


def test_an_image_of_another_size_is_covered_and_cropped(pipe):
    made = latents_of(pipe, image=picture(1, 64, 64))
    assert made.shape == (1, 4, 3, 2, 3)


def test_conditions_are_typed_or_a_mask_strategy(pipe):
    references = [picture(1), [picture(2), picture(3)]]
    typed = [Condition(0), Condition(1, reference_start=1, target_start=-1)]
    made = latents_of(pipe, references=references, conditions=typed)
    torch.testing.assert_close(made[0, :, [2]], pipe.encode_frames(np.asarray(picture(3))[None]))
    assert torch.equal(latents_of(pipe, references=references, conditions="0;0,1,1,-1,1"), made)


def test_the_reference_s_scheduler_takes_images_too(pipe):
    pipe.scheduler = IDDPMScheduler()
    made = latents_of(pipe, image=picture(1), guided_channels=3, num_inference_steps=4)
    given = pipe.encode_frames(np.asarray(picture(1))[None])
    torch.testing.assert_close(made[0, :, [0]], given, atol=0.3, rtol=0)
    assert not torch.equal(made[0, :, [0]], given)


# ---------------------------------------------------------------------------------------------------- wrong questions


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"prompt": None}, "either `prompt` or `prompt_embeds`"),
        ({"height": 4}, "smaller than one latent"),
        ({"output_type": "gif"}, "pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\] are unknown"),
        ({"generator": [torch.Generator()] * 3}, "1 videos need one generator"),
        ({"num_frames": 0}, "num_frames 0"),
        ({"image": picture(0), "video": [picture(1)]}, "not both"),
        ({"image": [picture(0)] * 3}, "a list of 1"),
        ({"references": [picture(0)]}, "go together"),
        ({"image": np.zeros((16, 24), np.uint8)}, "a list of 1"),
        ({"image": np.zeros((16, 24, 1), np.uint8)}, r"this is \(16, 24, 1\)"),
        ({"image": torch.full((3, 16, 24), 2.0)}, r"lie in \[0, 1\]"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts and 2 negative ones"),
        ({"latents": torch.zeros(1, 4, 3, 2, 2)}, r"must be \(1, 4, 3, 2, 3\)"),
        ({"video": [picture(0)], "num_condition_frames": 2}, "begins at frame -2"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(pipe, asked, why):
    with pytest.raises(UsageError, match=why):
        latents_of(pipe, **asked)


def test_parts_that_do_not_fit_together_are_refused(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(SpecError, match="flow matching"):
        latents_of(pipe)
    pipe.register_modules(scheduler=scheduler_named("unipc"), transformer=awake_transformer(in_channels=8))
    with pytest.raises(SpecError, match="have 4 channels, and the transformer takes 8"):
        latents_of(pipe)


# ------------------------------------------------------------------------------------------ a pipeline like the others


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "UniPCMultistep", "EulerDiscrete", "DPMSolverMultistep"])
def test_the_scheduler_is_changed_as_in_any_pipeline(pipe, name):
    usual = latents_of(pipe, num_inference_steps=8)
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config)
    made = latents_of(pipe, num_inference_steps=8)
    assert (made - usual).pow(2).mean().sqrt() < (0.5 if name == "DDPM" else 0.1) * usual.std()


@pytest.mark.parametrize("scheduler", [scheduler_named("dpm-solver++"), IDDPMScheduler()], ids=["dpm", "iddpm"])
def test_a_pipeline_is_saved_and_loaded_to_the_last_bit(pipe, tmp_path, scheduler):
    pipe.scheduler = scheduler
    pipe.save_pretrained(tmp_path)
    loaded = STDiT2Pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(scheduler)
    for part in ("transformer", "vae", "text_encoder"):
        ours, theirs = getattr(pipe, part).state_dict(), getattr(loaded, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(latents_of(loaded), latents_of(pipe))


def test_a_pipeline_is_loaded_in_another_type_and_computes_between_calls_in_float32(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = STDiT2Pipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (loaded.transformer, loaded.vae, loaded.text_encoder)} == {torch.bfloat16}
    assert loaded.transformer.rope.freqs.dtype == torch.float32
    made = latents_of(loaded, image=picture(1))
    assert made.dtype == torch.float32
    exact = latents_of(pipe, image=picture(1))
    assert 0 < (made - exact).pow(2).mean().sqrt() < 0.2 * exact.std()
    frames = loaded(PROMPT, output_type="np", **SMALL).frames
    assert frames.dtype == np.float32
    torch.testing.assert_close(latents_of(pipe.to(torch.bfloat16), image=picture(1)), made)


def test_a_pipeline_of_the_hub_is_loaded_by_its_name(pipe, tmp_path):
    """As the hub's cache has it, so that nothing is asked of the network."""
    repository, commit = tmp_path / "models--bricks--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit, encoding="utf-8")
    pipe.save_pretrained(repository / "snapshots" / commit)
    loaded = STDiT2Pipeline.from_pretrained("bricks/tiny", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(loaded.transformer.x_embedder.proj.weight, pipe.transformer.x_embedder.proj.weight)


def test_parts_that_a_folder_lacks_are_given_when_it_is_loaded(pipe, tmp_path):
    STDiT2Pipeline(None, None, None, pipe.transformer, pipe.scheduler).save_pretrained(tmp_path)
    assert STDiT2Pipeline.from_pretrained(tmp_path).vae is None
    parts = {"vae": pipe.vae, "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    loaded = STDiT2Pipeline.from_pretrained(tmp_path, **parts)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents_of(loaded, image=picture(1)), latents_of(pipe, image=picture(1)))


def test_a_folder_without_one_part_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(OSError, match=r"no file named config\.json"):
        STDiT2Pipeline.from_pretrained(tmp_path)


def test_offloaded_by_model_it_makes_the_same(pipe):
    """To the CPU itself, as far as hooks can be tried without an accelerator."""
    usual = latents_of(pipe, image=picture(1))
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latents_of(pipe, image=picture(1)), usual)
    assert pipe(PROMPT, output_type="pt", **SMALL).frames.isfinite().all()


def test_offloaded_by_layer_it_makes_the_same(pipe):
    """Between their turns the weights are nowhere, so that what reads them out of turn is found out.

    As enable_sequential_cpu_offload does it, which itself wants a device with a number.
    """
    usual = latents_of(pipe, image=picture(1))
    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert pipe.transformer.x_embedder.proj.weight.device.type == "meta"
    assert pipe.transformer.blocks[0].attn.qkv.weight.device.type == "meta"
    assert torch.equal(latents_of(pipe, image=picture(1)), usual)
    assert pipe(PROMPT, output_type="pt", **SMALL).frames.isfinite().all()


def test_a_callback_sees_each_step_and_changes_what_it_wants(pipe):
    seen = []

    def callback(given, step, timestep, tensors):
        assert given is pipe
        seen.append((step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    inputs = ["latents", "prompt_embeds"]
    made = latents_of(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=inputs)
    assert seen == [(0, 999, ["latents", "prompt_embeds"]), (1, 499, ["latents", "prompt_embeds"])]
    assert not made.any()


def test_a_callback_may_change_the_caption_and_the_guidance(pipe):
    other = pipe.encode_prompt("Two bricks fall.")[0]

    def callback(given, step, timestep, tensors):
        given._guidance_scale = 1.0
        return {"prompt_embeds": other, "prompt_attention_mask": torch.ones(other.shape[:2])}

    assert not torch.equal(latents_of(pipe, callback_on_step_end=callback), latents_of(pipe))


def test_given_frames_are_shown_clean_to_a_callback(pipe):
    clean = pipe.encode_frames(np.asarray(picture(1))[None])
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)

    def callback(given, step, timestep, tensors):
        assert torch.equal(tensors["latents"][0, :, [0]], clean)
        return {}

    latents_of(pipe, image=picture(1), callback_on_step_end=callback)


def test_an_interrupted_call_gives_what_was_seen_last(pipe):
    steps = []

    def callback(given, step, timestep, tensors):
        steps.append(step)
        given._interrupt = step == 1
        return {}

    made = latents_of(pipe, num_inference_steps=6, callback_on_step_end=callback)
    assert steps == [0, 1]
    assert made.isfinite().all()
    assert len(latents_of(pipe)), "the next call is whole"


def test_progress_is_shown_step_by_step(pipe, capfd):
    pipe.set_progress_bar_config(disable=False)
    latents_of(pipe, num_inference_steps=3)
    assert "3/3" in capfd.readouterr().err


# -------------------------------------------------------------------------------------------------------------- memory


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and (storage := each.untyped_storage())._cdata not in self._known:
                key, size = storage._cdata, storage.nbytes()
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def test_decoding_many_frames_takes_no_more_memory_than_few_beside_the_frames_themselves(pipe):
    beside = []
    for num_frames in (8, 64):
        latents = torch.randn(1, 4, num_frames, 2, 3)
        with torch.no_grad(), PeakBytes() as memory:
            frames = pipe.decode_latents(latents, decode_chunk_size=4)
        assert memory.peak > frames.nbytes
        beside.append(memory.peak - frames.nbytes - latents.nbytes)
    assert beside[1] <= beside[0] * 1.05


def test_how_many_frames_are_decoded_at_a_time_does_not_show(pipe):
    latents = torch.randn(2, 4, 5, 2, 3)
    with torch.no_grad():
        whole = pipe.decode_latents(latents, decode_chunk_size=10)
        torch.testing.assert_close(pipe.decode_latents(latents, decode_chunk_size=3), whole)
    assert whole.shape == (2, 5, 3, 16, 24)
