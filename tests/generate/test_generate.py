"""From a model and prompts to films, with real networks that are very small."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bricks_core.diffusion.model import Choice
from bricks_core.errors import BricksError, Stopped, UsageError
from bricks_core.generate.model import find_model
from bricks_core.generate.outputs import settings_of
from bricks_core.models.text_encoder import HashedWords
from bricks_core.models.vae import PatchDct
from bricks_core.video.read import read_rgb
from bricks_core.video.write import write_mp4
from tests.generate.conftest import BUILT_IN, SMALL


def test_the_same_seed_makes_the_same_bytes_whatever_is_made_beside_it(small, tmp_path):
    (alone,) = small("--prompt", "A red car", "--out", tmp_path / "alone")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A red car\nA much longer prompt about a blue house by the sea\nSnow\n", encoding="utf-8")
    first, *_ = small("--prompts", prompts, "--out", tmp_path / "file", "--samples", "2")
    *_, last = small("--prompt", "Snow", "--prompt", "A red car", "--out", tmp_path / "two")
    assert alone.read_bytes() == first.read_bytes() == last.read_bytes()


@pytest.mark.parametrize("other", [("--seed", "43"), ("--guidance", "2"), ("--steps", "3"), ("--fps", "12")])
def test_another_setting_makes_another_film(small, other):
    (film,) = small("--prompt", "A red car")
    before = read_rgb(film)
    (film,) = small("--prompt", "A red car", *other)
    assert not np.array_equal(before, read_rgb(film))


def test_another_prompt_makes_another_film(small):
    red, blue = small("--prompt", "A red car", "--prompt", "A blue house")
    assert red.name == "001-a-red-car.mp4"
    assert blue.name == "002-a-blue-house.mp4"
    assert not np.array_equal(read_rgb(red), read_rgb(blue))


def test_samples_of_a_prompt_have_one_seed_after_the_other(small):
    first, second = small("--prompt", "A red car", "--samples", "2", "--seed", "7")
    assert [settings_of(file)["seed"] for file in (first, second)] == [7, 8]
    (again,) = small("--prompt", "A red car", "--seed", "8", "--out", second.parent / "again")
    assert again.read_bytes() == second.read_bytes()


def test_a_film_tells_how_to_make_it_again(small, model):
    (film,) = small("--prompt", "A RED car, driving", "--fps", "12.5")
    settings = settings_of(film)
    assert re.fullmatch("[0-9a-f]{16}", settings["model"].pop("digest"))
    assert settings.pop("bricks")
    assert settings == {
        "model": {"from": "tiny"},
        "prompt": "A RED car, driving",
        "texts": ["a red car, driving"],
        "seed": 42,
        "codec": "patch-dct",
        "text_encoder": "hashed-words",
        "sampler": "unipc",
        "steps": 2,
        "guidance": 7.0,
        "guided_channels": None,
        "frames": 4,
        "height_px": 32,
        "width_px": 48,
        "fps": 12.5,
        "dtype": "float32",
        "device": "cpu",
        "cleaned": True,
    }
    assert read_rgb(film).shape == (4, 32, 48, 3)


def test_one_frame_is_a_picture(small):
    (picture,) = small("--prompt", "A red car", "--frames", "1")
    assert picture.suffix == ".png"
    with Image.open(picture) as opened:
        assert opened.size == (48, 32)
    assert settings_of(picture)["frames"] == 1


def test_an_interrupted_call_keeps_what_is_finished_and_goes_on(small, monkeypatch):
    prompts = [word for name in ("one", "two", "three") for word in ("--prompt", name)]
    whole = [file.read_bytes() for file in small(*prompts)]
    shutil.rmtree(small("--prompt", "one")[0].parent)

    real, calls = PatchDct.decode, []

    def stopping(codec, latents):
        calls.append(1)
        if len(calls) == 2:
            raise Stopped(2)
        return real(codec, latents)

    with monkeypatch.context() as patched:
        patched.setattr(PatchDct, "decode", stopping)
        with pytest.raises(Stopped):
            small(*prompts)
    files = small(*prompts)
    assert [file.read_bytes() for file in files] == whole
    assert "001-one.mp4 is there already" in small.told
    assert small.told.count("is there already") == 1
    assert sorted(file.name for file in files[0].parent.iterdir()) == [file.name for file in files]


def test_a_film_of_other_settings_is_made_anew_and_that_is_said(small):
    (film,) = small("--prompt", "A red car")
    before = film.read_bytes()
    small("--prompt", "A red car", "--seed", "9")
    assert "is there with other settings (seed)" in small.told
    assert film.read_bytes() != before
    assert settings_of(film)["seed"] == 9


def test_other_weights_are_another_film(small, checkpoint, generate, tmp_path):
    (film,) = small("--prompt", "A red car")
    before = film.read_bytes()
    generate(checkpoint(seed=1), *BUILT_IN, *SMALL, "--out", tmp_path / "out", "--prompt", "A red car")
    assert film.read_bytes() != before


def test_a_film_that_is_not_ours_is_left_alone(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001-a-red-car.mp4").write_bytes(b"mine")
    with pytest.raises(UsageError, match="was not made by bricks generate"):
        small("--prompt", "A red car")


def test_the_emas_weights_are_taken_where_there_are_two(checkpoint, generate, tmp_path):
    folder = checkpoint(file="weights.safetensors")
    shutil.copy(checkpoint(seed=1, file="ema.safetensors") / "ema.safetensors", folder)
    made = {}
    for weights in ((), ("--weights", "ema"), ("--weights", "raw")):
        out = tmp_path / "-".join(("out", *weights))
        (film,) = generate(folder, *BUILT_IN, *SMALL, "--prompt", "A red car", "--out", out, *weights)
        made[weights[1:]] = film.read_bytes()
        assert settings_of(film)["model"]["weights"] == (weights[1:] or ("ema",))[0]
    assert made[()] == made["ema",] != made["raw",]


def test_prompts_are_cleaned_unless_that_is_switched_off(small):
    (cleaned,) = small("--prompt", "A RED car www.example.com")
    assert settings_of(cleaned)["texts"] == ["a red car"]
    (raw,) = small("--prompt", "A RED car www.example.com", "--no-clean")
    assert settings_of(raw)["texts"] == ["A RED car www.example.com"]


def test_a_prompt_that_is_too_long_is_told_to_be_cut(small):
    small("--prompt", "word " * 300)
    assert "fills all 200 tokens" in small.told
    small("--prompt", "word " * 100)
    assert "tokens" not in small.told


def test_words_read_by_the_built_in_encoder_are_as_fine_as_a_training_s_packs_hold_them(small, tmp_path, monkeypatch):
    """So that a model makes the same film from its run and from a folder that it was taken out to."""
    read, decode, latents = HashedWords.encode, PatchDct.decode, []

    def as_in_packs(encoder, texts):
        return [rows.astype(np.float16).astype(np.float32) for rows in read(encoder, texts)]

    def seen(codec, made):
        latents.append(made.clone())
        return decode(codec, made)

    monkeypatch.setattr(PatchDct, "decode", seen)
    small("--prompt", "A red car", "--out", tmp_path / "fine")
    monkeypatch.setattr(HashedWords, "encode", as_in_packs)
    small("--prompt", "A red car", "--out", tmp_path / "coarse")
    assert torch.equal(*latents)


def test_bfloat16_is_another_film_of_the_same_thing(small):
    (film,) = small("--prompt", "A red car")
    exact = read_rgb(film).astype(int)
    (film,) = small("--prompt", "A red car", "--dtype", "bfloat16")
    rough = read_rgb(film).astype(int)
    assert 0 < np.abs(exact - rough).mean() < 30


def test_the_sheet_shows_all_films_also_those_that_were_there(small):
    *_, sheet = small("--prompt", "A red car", "--prompt", "Snow", "--sheet")
    with Image.open(sheet) as opened:
        both = opened.size
    *_, sheet = small("--prompt", "A red car", "--sheet")
    with Image.open(sheet) as opened:
        assert opened.size[1] < both[1]


# given frames


def picture(file: Path, value: int) -> Path:
    Image.fromarray(np.full((32, 48, 3), value, np.uint8)).save(file)
    return file


def brightness(film: Path) -> list[int]:
    return read_rgb(film).mean(axis=(1, 2, 3)).round().astype(int).tolist()


@pytest.mark.parametrize("sampler", ["dpm-solver++", "iddpm"])
def test_a_film_begins_and_ends_with_pictures(small, tmp_path, sampler):
    first, last = picture(tmp_path / "a.png", 60), picture(tmp_path / "b.png", 200)
    arguments = ("--prompt", "A red car", "--sampler", sampler, "--steps", "4")
    (film,) = small(*arguments, "--image", first, "--last-image", last)
    frames = read_rgb(film).astype(int)
    assert np.abs(frames[0] - 60).mean() < 8
    assert np.abs(frames[3] - 200).mean() < 8
    assert settings_of(film)["mask_strategy"] == "0,0,0,0,1,0;0,1,0,-1,1,0"
    assert [each["file"] for each in settings_of(film)["references"]] == ["a.png", "b.png"]
    (free,) = small(*arguments)
    assert np.abs(read_rgb(free).astype(int)[0] - 60).mean() > 20


def test_a_prompt_brings_its_own_pictures(small, tmp_path):
    first, other = picture(tmp_path / "a.png", 60), picture(tmp_path / "b.png", 200)
    suffix = json.dumps({"reference_path": str(other), "mask_strategy": "0,0,0,1,1"})
    own, usual = small("--prompt", "A red car" + suffix, "--prompt", "Snow", "--reference", first, "--condition", "0")
    assert abs(brightness(own)[1] - 200) < 8
    assert abs(brightness(usual)[0] - 60) < 8


def test_a_film_goes_on_from_the_end_of_another(small, tmp_path):
    frames = np.repeat(np.arange(10, 250, 10, dtype=np.uint8), 32 * 48 * 3).reshape(24, 32, 48, 3)
    write_mp4(tmp_path / "given.mp4", frames, 24)
    (film,) = small("--prompt", "A red car", "--video", tmp_path / "given.mp4", "--condition-frames", "2", "--fps", "8")
    np.testing.assert_allclose(brightness(film)[:2], [210, 240], atol=8)


def test_loops_make_a_longer_film_in_which_every_clip_goes_on(small):
    (film,) = small("--prompt", "|0|A red car|2|Snow", "--loops", "3", "--condition-frames", "1")
    assert film.name == "001-a-red-car.mp4"
    frames = read_rgb(film)
    assert len(frames) == 3 * (4 - 1) + 1
    assert settings_of(film)["texts"] == ["a red car", "snow"]
    (short,) = small("--prompt", "A red car", "--out", film.parent / "short")
    # The first clip is what one loop makes.
    assert np.abs(frames[:4].astype(int) - read_rgb(short)).mean() < 2


def test_a_film_of_loops_ends_with_its_last_picture(small, tmp_path):
    last = picture(tmp_path / "b.png", 200)
    (film,) = small("--prompt", "A red car", "--loops", "2", "--condition-frames", "1", "--last-image", last)
    made = read_rgb(film).astype(int)
    assert len(made) == 7
    assert np.abs(made[6] - 200).mean() < 8
    assert np.abs(made[3] - 200).mean() > 20


# networks from folders


def test_a_checkpoint_with_stable_diffusions_autoencoder_and_t5(generate, checkpoint, tiny_vae, tiny_t5, tmp_path):
    vae, t5 = tiny_vae(tmp_path / "vae"), tiny_t5(tmp_path / "t5")
    folder = checkpoint(caption_channels=32, model_max_length=20)
    arguments = (folder, "--vae", vae, "--text-encoder", t5, *SMALL, "--prompt", "A red brick car", "--image")
    (film,) = generate(*arguments, picture(tmp_path / "a.png", 60), "--out", tmp_path / "out")
    assert read_rgb(film).shape == (4, 32, 48, 3)
    assert (settings_of(film)["codec"], settings_of(film)["text_encoder"]) == ("sd-vae:vae", "t5:t5")


def test_a_whole_pipeline_of_diffusers_makes_what_it_makes_itself(generate, checkpoint, tiny_vae, tiny_t5, tmp_path):
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, T5EncoderModel

    from bricks_core.diffusion.sampling import scheduler_named
    from bricks_core.diffusion.text_to_video import STDiT2Pipeline
    from bricks_core.models.stdit2 import STDiT2

    t5 = tiny_t5(tmp_path / "t5")
    transformer = checkpoint(file="diffusion_pytorch_model.safetensors", caption_channels=32, model_max_length=20)
    pipe = STDiT2Pipeline(
        tokenizer=AutoTokenizer.from_pretrained(t5),
        text_encoder=T5EncoderModel.from_pretrained(t5).eval(),
        vae=AutoencoderKL.from_pretrained(tiny_vae(tmp_path / "vae")).eval(),
        transformer=STDiT2.from_pretrained(transformer).eval(),
        scheduler=scheduler_named("unipc"),
    )
    pipe.save_pretrained(tmp_path / "pipeline")
    for num_frames, first in ((1, None), (4, None), (4, picture(tmp_path / "a.png", 60))):
        given = ("--image", first) if first else ()
        film, *_ = generate(
            *(tmp_path / "pipeline", *SMALL, "--frames", num_frames, "--prompt", "A red brick CAR", *given),
            *("--seed", "7", "--out", tmp_path / f"{num_frames}-{bool(first)}"),
        )
        (own,) = pipe(
            "A red brick CAR",
            image=Image.open(first) if first else None,
            num_frames=num_frames,
            height=32,
            width=48,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).frames
        expected = (255 * own).round().astype(np.uint8)
        if num_frames == 1:
            difference = np.asarray(Image.open(film)).astype(int) - expected[0]
        else:
            write_mp4(tmp_path / "own.mp4", expected, 8.0)
            difference = read_rgb(film).astype(int) - read_rgb(tmp_path / "own.mp4")
        assert np.abs(difference).max() <= 2, (num_frames, first)


def test_a_pipeline_s_folder_without_a_vae_and_a_text_encoder_takes_those_that_are_named(
    generate, checkpoint, tiny_vae, tiny_t5, tmp_path
):
    transformer = checkpoint(file="diffusion_pytorch_model.safetensors", caption_channels=32, model_max_length=20)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/model_index.json").write_text("{}", encoding="utf-8")
    shutil.copytree(transformer, tmp_path / "pipeline/transformer")
    named = ("--vae", tiny_vae(tmp_path / "vae"), "--text-encoder", tiny_t5(tmp_path / "t5"))
    (film,) = generate(tmp_path / "pipeline", *named, *SMALL, "--prompt", "A car", "--out", tmp_path / "out")
    assert (settings_of(film)["codec"], settings_of(film)["text_encoder"]) == ("sd-vae:vae", "t5:t5")
    model = find_model(str(tmp_path / "pipeline"), Choice(), lambda: None)
    assert (model.codec, model.text.model) == (model.family.published.codec, model.family.published.text.model)


def test_a_checkpoint_of_wan(generate, tiny_wan, tmp_path):
    from diffusers import WanTransformer3DModel

    folder = tiny_wan(tmp_path / "wan-Diffusers")
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 32, "freq_dim": 16}
    network = WanTransformer3DModel(**shape, text_dim=32, in_channels=16, out_channels=16)
    network.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}', encoding="utf-8")
    arguments = (folder, "--frames", "5", "--size", "32x48", "--steps", "2", "--prompt", "A red car", "--device", "cpu")
    (film,) = generate(*arguments, "--out", tmp_path / "out")
    assert read_rgb(film).shape == (5, 32, 48, 3)
    assert (settings_of(film)["sampler"], settings_of(film)["fps"]) == ("unipc", 16.0)
    for wrong, said in (
        (("--frames", "4"), "nearest are 1 and 5"),
        (("--size", "40x48"), "nearest sizes are 32x48 and 48x48"),
        (("--loops", "2"), "This model makes videos of text alone"),
        (("--sampler", "iddpm"), "unipc, flow-euler are"),
        (("--guided-channels", "3"), "guided in all its channels"),
    ):
        with pytest.raises(UsageError, match=said):
            generate(*arguments, *wrong)


def test_caption_features_of_another_width_are_refused(generate, model, tiny_t5, tmp_path):
    t5 = tiny_t5(tmp_path / "t5")
    with pytest.raises(BricksError, match=r"4096 wide, and those of t5:t5:.* are 32 wide") as refused:
        generate(model, "--vae", "patch-dct", "--text-encoder", t5, *SMALL, "--prompt", "A car")
    assert refused.value.exit_code == 78


# what cannot be


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 64, "Say what is to be seen"),
        (("--prompt", "a", "--prompts", "b.txt"), 64, "Say what is to be seen"),
        (("--prompts", "nowhere.txt"), 64, "nowhere.txt cannot be read"),
        (("--prompt", " "), 64, "A prompt is empty"),
        (("--prompt", "红色的汽车"), 64, "pass --no-clean"),
        (("--prompt", "a", "--size", "33x48"), 64, "The nearest sizes are 32x48 and 40x48"),
        (("--prompt", "a", "--fps", "nan"), 64, "--fps nan cannot be meant"),
        (("--prompt", "a", "--fps", "1e-9"), 64, "--fps 1e-09 cannot be meant"),
        (("--prompt", "a", "--guidance", "-1"), 64, "--guidance -1 cannot be meant"),
        (("--prompt", "a", "--sampler", "dpm-solver"), 64, 'did you mean "dpm-solver++"'),
        (("--prompt", "a", "--device", "cuda:99"), 64, "--device cuda:99 cannot be used here"),
        (("--prompt", "a", "--device", "toaster"), 64, "--device toaster cannot be used here"),
        (("--prompt", "a", "--device", "meta"), 64, "--device meta cannot be used here"),
        (("--prompt", "a", "--step", "3"), 64, "leave --step out"),
        (("--prompt", "a", "--weights", "ema"), 64, "has no ema.safetensors"),
        (("--prompt", "a", "--condition", "0"), 64, "wants reference 0, and there are 0"),
        (("--prompt", "a", "--condition", "zero"), 64, "is no whole number"),
        (("--prompt", "a", "--image", "nowhere.png"), 64, "no file nowhere.png"),
        (("--prompt", "a", "--reference", __file__), 64, "not what for"),
        (("--prompt", "a", "--image", __file__), 65, "not a video in any format"),
        (("--prompt", "a", "--loops", "2", "--condition-frames", "4"), 64, "choose from 1 to 3"),
        (("--prompt", "a", "--loops", "2", "--frames", "1"), 64, "One frame is no clip"),
        (("--prompt", "|0|a|2|b", "--loops", "2"), 64, "ask for --loops 3"),
        (("--prompt", "a", "--vae", "/nowhere/vae"), 78, "is no folder"),
        (("--prompt", "a", "--out", __file__), 78, "a file is in the way"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(small, arguments, code, said):
    with pytest.raises(BricksError) as refused:
        small(*arguments)
    assert said in str(refused.value)
    assert refused.value.exit_code == code


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), 78, "no config.json beside model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), 65, "no description of a network"),
        (
            lambda folder: (folder / "config.json").write_text("[" * 100_000, encoding="utf-8"),
            65,
            "no description of a network",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"architectures": ["UNet"]}', encoding="utf-8"),
            78,
            "names UNet",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), 65, "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), 78, "0 safetensors files"),
        (lambda folder: shutil.rmtree(folder), 64, "nothing is there"),
    ],
)
def test_a_broken_model_is_told_by_its_file(generate, model, tmp_path, damage, code, said):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    with pytest.raises(BricksError) as refused:
        generate(folder, *BUILT_IN, *SMALL, "--prompt", "a", "--out", tmp_path / "out")
    assert said in str(refused.value)
    assert refused.value.exit_code == code


def test_a_model_that_is_nowhere_is_told_where_it_was_looked_for(generate, tmp_path):
    with pytest.raises(UsageError, match=r"no file or folder.* has no run quickstar .*hub id has the form owner/name"):
        generate("quickstar", "--prompt", "a", "--store", tmp_path / "store")


def test_the_nearest_run_is_named(generate, tmp_path):
    (tmp_path / "store" / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "store" / "runs" / "quickstart" / "clip.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match='did you mean "quickstart"'):
        generate("quickstar", "--prompt", "a", "--store", tmp_path / "store")


def test_a_hub_that_is_away_is_told(generate, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BricksError, match="owner/name is not on this disk and the hub does not answer") as refused:
        generate("owner/name", "--prompt", "a")
    assert refused.value.exit_code == 69


def test_weights_that_are_not_numbers_are_told_and_no_film_is_left(generate, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = checkpoint()
    state = load_file(folder / "model.safetensors")
    state["final_layer.linear.bias"].fill_(float("nan"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BricksError, match="not finite"):
        generate(folder, *BUILT_IN, *SMALL, "--prompt", "a", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_too_little_memory_is_told(small, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PatchDct, "decode", full)
    with pytest.raises(BricksError, match="too little memory") as refused:
        small("--prompt", "a")
    assert refused.value.exit_code == 75
