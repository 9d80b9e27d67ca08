"""The run file: what it takes, and what it says when it is wrong."""

from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from bricks_core.errors import SpecError
from bricks_core.spec.cluster import ClusterProfile, PreflightProfile
from bricks_core.spec.run import BrickRun, load_run, run_of, run_schema
from bricks_core.spec.train import MaskRatios, STDiT2Spec, WanSpec
from bricks_core.video.buckets import resolution

ROOT = Path(__file__).parents[2]

SMALLEST = {
    "apiVersion": "bricks.dev/v1alpha1",
    "kind": "BrickRun",
    "metadata": {"name": "small"},
    "spec": {"ingest": {"sources": ["films"]}},
}


@pytest.fixture
def run_file(tmp_path):
    def write(document):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(document), encoding="utf-8")
        return file

    return write


def wrong(file, *overrides):
    with pytest.raises(SpecError) as caught:
        load_run(file, list(overrides))
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_a_source_may_be_a_bare_path_and_its_licence_is_then_unknown(run_file):
    source = load_run(run_file(SMALLEST)).spec.ingest.sources[0]
    assert (source.path, source.licence) == ("films", "unknown")


@pytest.mark.parametrize("path", ["s3://AKIAIOSFODNN7:hunter2@films/all", "https://me:hunter2@example.org/film.mp4"])
def test_a_key_in_the_address_of_a_source_is_refused_and_not_repeated(run_file, path):
    said = wrong(run_file(SMALLEST | {"spec": {"ingest": {"sources": [{"path": path}]}}}))
    assert "spec.ingest.sources.0.path: an address must not hold keys" in said
    assert "hunter2" not in said
    assert "AKIA" not in said


def words(kind, path=""):
    """Every word that a field may be, as ("spec.tracking.wandb", "off")."""
    if get_origin(kind) is Literal:
        return {(path, each) for each in get_args(kind) if isinstance(each, str)}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = ((f"{path}.{name}".lstrip("."), field.annotation) for name, field in kind.model_fields.items())
        return {found for place, annotation in fields for found in words(annotation, place)}
    return {found for each in get_args(kind) for found in words(each, path)}


def test_of_all_words_only_one_is_something_else_for_yaml_and_it_is_taken(run_file):
    assert ("spec.caption.provider", "measured") in words(BrickRun)
    kinds = (BrickRun, ClusterProfile, PreflightProfile)
    assert {each for kind in kinds for each in words(kind) if yaml.safe_load(each[1]) != each[1]} == {
        ("spec.tracking.wandb", "off")
    }
    file = run_file(SMALLEST)
    for written in ("off", "no", "false", "Off", '"off"'):
        assert load_run(file, [f"tracking.wandb={written}"]).spec.tracking.wandb == "off"
        file.write_text(yaml.safe_dump(SMALLEST) + f"  tracking: {{wandb: {written}}}\n", encoding="utf-8")
        assert load_run(file).spec.tracking.wandb == "off"
        run_file(SMALLEST)


def test_on_is_refused_as_it_does_not_say_where_to(run_file):
    said = wrong(run_file(SMALLEST), "tracking.wandb=on")
    assert "spec.tracking.wandb = True: on, yes and true do not say where to: write auto or offline." in said


@pytest.mark.parametrize(
    "written",
    [
        *("evaluate.aspect=16:9", "metadata.name=no", "latents.codec.revision=1234567", "caption.provider=yes"),
        *("caption.style_words=[no]", "tracking.wandb=0", "inputs_of=2026-01-31"),
    ],
)
def test_what_is_no_text_for_yaml_is_to_be_put_into_quotes(run_file, written):
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"evaluate": {"prompts": ["a"]}}}
    assert "for YAML, what is written there is no text: put it into quotes." in wrong(run_file(document), written)


def test_a_run_file_that_is_not_utf_8_is_refused_with_the_place(run_file):
    file = run_file(SMALLEST)
    file.write_bytes(file.read_bytes() + "# schön".encode("latin-1"))
    assert f"{file} is not UTF-8 text (byte {len(file.read_bytes()) - 2}): save it as UTF-8." in wrong(file)


def test_an_unknown_key_is_refused_with_the_nearest_right_one(run_file):
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"captoin": {}}}
    assert 'unknown key "spec.captoin" (did you mean "caption"?)' in wrong(run_file(document))


def test_an_unknown_key_deep_in_a_list_is_refused_with_the_nearest_right_one(run_file):
    phase = {"name": "a", "stepps": 3, "steps": 3, "schedule": {"kind": "constant", "lr": 1e-3}, "buckets": []}
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"train": {"phases": [phase]}}}
    assert 'unknown key "spec.train.phases.0.stepps" (did you mean "steps"?)' in wrong(run_file(document))


def test_an_unknown_stage_is_refused_with_the_nearest_right_one(run_file):
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"cluster": {"stages": {"klip": {"memory": "8Gi"}}}}}
    assert 'unknown key "spec.cluster.stages.klip" (did you mean "clip"?)' in wrong(run_file(document))


def test_an_unknown_key_of_a_schedule_is_named_among_those_of_its_kind(run_file):
    schedule = {"kind": "cosine_constant", "lr": 1e-3, "warmup_steps": 5, "warmup_step": 5}
    phase = {
        "name": "a",
        "steps": 3,
        "schedule": schedule,
        "buckets": [{"num_frames": 1, "resolution": "360p", "batch_size": 1}],
    }
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"train": {"phases": [phase]}}}
    assert 'schedule.warmup_step" (did you mean "warmup_steps"?)' in wrong(run_file(document))


def test_every_mistake_is_told_at_once(run_file):
    message = wrong(run_file(SMALLEST), "clip.min_frames=1", "score.held_out_share=2")
    assert "spec.clip.min_frames = 1" in message
    assert "spec.score.held_out_share = 2" in message


def test_a_missing_file_says_where_to_start(tmp_path):
    assert "k8s/runs/quickstart.yaml" in wrong(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["a: [", "just words", "- a list"])
def test_a_file_that_is_no_run_is_refused_in_a_sentence(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    assert str(file) in wrong(file)


def test_set_overrides_any_field_also_inside_lists(run_file):
    run = load_run(run_file(SMALLEST), ["clip.min_frames=20", "ingest.sources.0=other", "metadata.name=again"])
    assert (run.spec.clip.min_frames, run.spec.ingest.sources[0].path, run.name) == (20, "other", "again")


def test_set_reaches_below_a_source_that_is_written_as_a_bare_path(run_file):
    file = run_file(SMALLEST)
    assert (
        load_run(file, ["ingest.sources.0.path=other"]).spec.ingest
        == load_run(file, ["ingest.sources.0=other"]).spec.ingest
    )
    source = load_run(file, ["spec.ingest.sources.0.licence=CC-BY-4.0"]).spec.ingest.sources[0]
    assert (source.path, source.licence) == ("films", "CC-BY-4.0")
    assert 'unknown key "spec.ingest.sources.0.pat" (did you mean "path"?)' in wrong(file, "ingest.sources.0.pat=x")


@pytest.mark.parametrize(
    "override",
    [
        "clip.min_frames",
        "=3",
        "ingest.sources.7=x",
        "ingest.sources.²=x",
        "ingest.sources.0.path.x=y",
        "metadata.name.x=3",
        "clip.min_frames=[",
        "clip.min_frame=3",
    ],
)
def test_an_override_that_says_nothing_is_refused_in_a_sentence(run_file, override):
    assert wrong(run_file(SMALLEST), override)


def test_the_caption_stage_needs_a_model_for_openai(run_file):
    assert "caption.model" in wrong(run_file(SMALLEST), "caption.provider=openai")


def test_a_stage_without_a_section_says_what_to_write(run_file):
    with pytest.raises(SpecError, match=r"no spec\.train.*--until latents"):
        load_run(run_file(SMALLEST)).stage_spec("train")


WAN = {
    "ingest": {"sources": ["films"]},
    "latents": {
        "resolutions": ["480x832"],
        "codec": {"kind": "wan-vae", "model": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
        "text": {"kind": "umt5", "model": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "max_tokens": 512},
    },
    "train": {
        "model": {"family": "wan"},
        "phases": [
            {
                "name": "all",
                "steps": 3,
                "schedule": {"kind": "constant", "lr": 1e-5},
                "buckets": [{"num_frames": 17, "resolution": "480x832", "batch_size": 1}],
            }
        ],
    },
    "evaluate": {"prompts": ["A brick."], "resolution": "480x832", "num_frames": 17, "sampler": "unipc"},
}


def test_a_model_without_a_family_is_stdit2(run_file):
    train = WAN["train"] | {"model": {"hidden_size": 48, "num_heads": 2}}
    spec = {"ingest": {"sources": ["films"]}, "latents": {"resolutions": ["480x832"]}, "train": train}
    run = load_run(run_file(SMALLEST | {"spec": spec}))
    assert run.spec.train.model == STDiT2Spec(hidden_size=48, num_heads=2)
    assert run.spec.train.mask_ratios == MaskRatios()
    assert load_run(run_file(SMALLEST | {"spec": spec | {"train": WAN["train"] | {"model": {}}}})).spec.train.model == (
        STDiT2Spec()
    )


def test_wan_has_no_masks_without_being_told_so(run_file):
    run = load_run(run_file(SMALLEST | {"spec": WAN}))
    assert run.spec.train.model == WanSpec(family="wan")
    assert run.spec.train.mask_ratios is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.mask_ratios={}", "wan has no frames that are given"),
        ("train.model.num_layer=3", 'num_layer" (did you mean "num_layers"?)'),
        ("train.model.family=wann", '"wann" is unknown (did you mean "wan"?); known here: stdit2, wan'),
        ("train.model.attention_head_dim=7", "multiple of 2"),
        ("train.model.patch_size=[1, 0, 3]", "patch_size.1 = 0: Input should be 1 or 2"),
        ("latents.resolutions=[480x832, 360p]", "has 360p, and wan makes patches of 16x16 pixels"),
        ("latents.resolutions=[480x832, 100x160]", "has 100x160, and wan makes patches of 16x16 pixels"),
        ("latents.text.max_tokens=600", "wan reads 512 at most"),
        ("latents.codec.kind=patch-dct", "patch-dct makes latents of 4 channels"),
        ("latents.codec.model=''", "codec wan-vae needs a model: a hub id such as Wan-AI/"),
        ("latents.text.model=''", "text umt5 needs a model: a hub id such as google/umt5-xxl"),
        ("train.model={}", "stdit2 takes 4: write sd-vae or patch-dct, or set train.model.family to wan"),
        ("train.phases.0.buckets.0.num_frames=16", "num_frames is 16, and wan-vae has whole latents for 1, 5, 9 ..."),
        ("train.phases.0.buckets.0.frame_interval=2", "wan-vae joins 4 frames that follow each other: set it to 1"),
        ("evaluate.lengths=[33, 64]", "evaluate.lengths.1 is 64, and wan-vae has whole latents for 1, 5, 9 ... frames"),
        (
            "evaluate.num_frames=20",
            "evaluate.num_frames is 20, and wan-vae has whole latents for 1, 5, 9 ... frames: take 17 or 21",
        ),
        ("evaluate.sampler=iddpm", "wan is sampled by unipc or flow-euler"),
        ("evaluate.guided_channels=3", "wan guides all channels: leave it out"),
    ],
)
def test_what_wan_cannot_do_is_refused_before_anything_is_done(run_file, override, words):
    assert words in wrong(run_file(SMALLEST | {"spec": WAN}), override)


def test_stdit2_is_not_sampled_by_a_solver_of_flows(run_file):
    train = WAN["train"] | {"model": {}}
    evaluate = {"prompts": ["A brick."], "resolution": "480x832", "sampler": "flow-euler"}
    spec = {"ingest": {"sources": ["films"]}, "latents": {"resolutions": ["480x832"]}, "train": train}
    message = wrong(run_file(SMALLEST | {"spec": spec | {"evaluate": evaluate}}))
    assert "stdit2 is sampled by unipc or dpm-solver++ or iddpm" in message


@pytest.mark.parametrize("name", ["256", "512", "1024"])
def test_every_size_of_a_class_that_wan_takes_divides_by_16(run_file, name):
    spec = WAN | {"latents": WAN["latents"] | {"resolutions": ["480x832", name]}}
    assert load_run(run_file(SMALLEST | {"spec": spec})).spec.latents.resolutions[1] == name
    assert all(size.height_px % 16 == size.width_px % 16 == 0 for size in resolution(name).sizes)


def test_a_cluster_runs_no_stage_that_lacks_the_one_before_it():
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"evaluate": {"prompts": ["A red brick."]}}}
    with pytest.raises(SpecError, match=r"has spec\.evaluate and no spec\.train"):
        run_of(document)
    assert run_of(SMALLEST).name == "small"


def test_the_committed_schema_is_fresh():
    assert (ROOT / "docs/brickrun.schema.json").read_text(encoding="utf-8") == run_schema(), (
        "make generated writes it again"
    )


@pytest.mark.parametrize("file", sorted((ROOT / "k8s/runs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_run_is_valid(file):
    # evaluate.yaml is one of many evaluations of a run, and has a name of its own beside that.
    assert load_run(file).name == {"evaluate": "text2bricks-64f-eval"}.get(file.stem, file.stem)


def test_a_model_that_is_nothing_is_a_mistake_with_a_place(run_file):
    phase = {"name": "a", "steps": 1, "buckets": [], "schedule": {"kind": "constant", "lr": 1e-3}}
    document = SMALLEST | {"spec": SMALLEST["spec"] | {"train": {"model": None, "phases": [phase]}}}
    assert "spec.train.model" in wrong(run_file(document))
