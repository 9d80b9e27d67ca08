"""Every field of the run file is marked: it changes the answer (*what*), or only how the answer is got (*how*).

The table below is where a new field's mark, and the default it comes in with, are decided and reviewed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bricks_core.spec.clip import ClipSpec
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.run import BrickRun, run_schema
from bricks_core.spec.score import ScoreSpec
from bricks_core.spec.strict import SHOWN_AS, How, Mark, Since, Strict, What, first_default, is_tag, mark_of, what_of
from bricks_core.spec.train import TrainSpec

ROOT = Path(__file__).parents[2]

TABLE = """
apiVersion                                                  how
kind                                                        how
metadata                                                    how
metadata.name                                               how
metadata.labels                                             how
metadata.annotations                                        how
spec                                                        what
spec.ingest                                                 what
spec.ingest.sources                                         what
spec.ingest.sources[].path                                  what
spec.ingest.sources[].licence                               what          "unknown"
spec.ingest.sources[].credit                                what          ""
spec.ingest.sources[].consent                               what          "unknown"
spec.ingest.min_side_px                                     what          64
spec.ingest.decode_timeout_s                                how
spec.ingest.decode_memory_bytes                             how
spec.clip                                                   what          {}
spec.clip.adaptive_threshold                                what          3.0
spec.clip.cut_threshold                                     what          12.0
spec.clip.min_frames                                        what          15
spec.clip.max_frames                                        what          200
spec.clip.crf                                               what          18
spec.clip.preset                                            what          "veryfast"
spec.score                                                  what          {}
spec.score.filter                                           what          {}
spec.score.filter.min_motion                                what          8.0
spec.score.filter.min_motion_percentile                     what          0.0
spec.score.filter.min_sharpness_percentile                  what          0.0
spec.score.filter.min_brightness                            what          8.0
spec.score.filter.max_brightness                            what          247.0
spec.score.filter.max_plain_share                           what          0.8
spec.score.filter.max_duplicate_frame_share                 what          0.9
spec.score.filter.max_near_duplicate_distance               what          10.0
spec.score.held_out_share                                   what          0.1
spec.score.split_seed                                       what          0
spec.caption                                                what          {}
spec.caption.provider                                       what          "measured"
spec.caption.model                                          what          ""
spec.caption.frame_shares                                   what          [0.2, 0.5, 0.8]
spec.caption.max_side_px                                    what          768
spec.caption.max_sentences                                  what          5
spec.caption.forbidden_words                                what          ["video", "image", "frame", "lego", "stop motion", "stop-motion", "blocky"]
spec.caption.style_words                                    what          ["lego", "stop motion", "blocky"]
spec.caption.max_retries                                    how
spec.caption.concurrency                                    how
spec.caption.max_output_tokens                              what          300
spec.caption.max_calls                                      how
spec.latents                                                what          {}
spec.latents.resolutions                                    what          ["360p"]
spec.latents.min_scale                                      what          0.8
spec.latents.codec                                          what          {}
spec.latents.codec.kind                                     what          "patch-dct"
spec.latents.codec.model                                    what          ""
spec.latents.codec.revision                                 what          ""
spec.latents.codec.dtype                                    what          "float32"
spec.latents.codec.chunk_frames                             how, rounded
spec.latents.text                                           what          {}
spec.latents.text.kind                                      what          "hashed-words"
spec.latents.text.model                                     what          ""
spec.latents.text.revision                                  what          ""
spec.latents.text.dtype                                     what          "float32"
spec.latents.text.max_tokens                                what          200
spec.latents.images                                         what          true
spec.latents.pack_bytes                                     how
spec.train                                                  what          null
spec.train.model                                            what          {"family": "stdit2"}
spec.train.model<stdit2>.family                             what          "stdit2"
spec.train.model<stdit2>.hidden_size                        what          1152
spec.train.model<stdit2>.depth                              what          28
spec.train.model<stdit2>.num_heads                          what          16
spec.train.model<stdit2>.mlp_ratio                          what          4.0
spec.train.model<stdit2>.input_sq_size_px                   what          512
spec.train.model<wan>.family                                what
spec.train.model<wan>.num_layers                            what          30
spec.train.model<wan>.num_attention_heads                   what          12
spec.train.model<wan>.attention_head_dim                    what          128
spec.train.model<wan>.ffn_dim                               what          8960
spec.train.model<wan>.freq_dim                              what          256
spec.train.model<wan>.text_dim                              what          4096
spec.train.model<wan>.in_channels                           what          16
spec.train.model<wan>.patch_size                            what          [1, 2, 2]
spec.train.model<wan>.qk_norm                               what          "rms_norm_across_heads"
spec.train.model<wan>.cross_attn_norm                       what          true
spec.train.model<wan>.eps                                   what          1e-06
spec.train.model<wan>.shift                                 what          3.0
spec.train.init_from                                        what          ""
spec.train.continue_from                                    what          ""
spec.train.phases                                           what
spec.train.phases[].name                                    what
spec.train.phases[].steps                                   what
spec.train.phases[].buckets                                 what
spec.train.phases[].buckets[].num_frames                    what
spec.train.phases[].buckets[].resolution                    what
spec.train.phases[].buckets[].frame_interval                what          1
spec.train.phases[].buckets[].batch_size                    what
spec.train.phases[].buckets[].micro_batch_size              how, rounded
spec.train.phases[].schedule                                what
spec.train.phases[].schedule<constant>.kind                 what          "constant"
spec.train.phases[].schedule<constant>.lr                   what
spec.train.phases[].schedule<cosine_constant>.kind          what          "cosine_constant"
spec.train.phases[].schedule<cosine_constant>.lr            what
spec.train.phases[].schedule<cosine_constant>.min_lr        what          1e-07
spec.train.phases[].schedule<cosine_constant>.warmup_steps  what
spec.train.phases[].schedule<one_cycle>.kind                what          "one_cycle"
spec.train.phases[].schedule<one_cycle>.min_lr              what          1e-07
spec.train.phases[].schedule<one_cycle>.max_lr              what
spec.train.phases[].schedule<one_cycle>.lr                  what
spec.train.phases[].schedule<one_cycle>.warmup_steps        what
spec.train.phases[].schedule<one_cycle>.cooldown_steps      what
spec.train.seed                                             what          42
spec.train.precision                                        what          "bfloat16"
spec.train.loss_weight                                      what          "sample"
spec.train.caption_dropout                                  what          0.1
spec.train.mask_ratios                                      what          {}
spec.train.mask_ratios.quarter_random                       what          0.025
spec.train.mask_ratios.quarter_head                         what          0.025
spec.train.mask_ratios.quarter_tail                         what          0.025
spec.train.mask_ratios.quarter_head_tail                    what          0.05
spec.train.mask_ratios.image_random                         what          0.025
spec.train.mask_ratios.image_head                           what          0.025
spec.train.mask_ratios.image_tail                           what          0.025
spec.train.mask_ratios.image_head_tail                      what          0.05
spec.train.beta1                                            what          0.9
spec.train.beta2                                            what          0.999
spec.train.weight_decay                                     what          0.0
spec.train.gradient_clip                                    what          1.0
spec.train.ema_horizon_share                                what          0.1
spec.train.activation_checkpointing                         how, rounded
spec.train.held_out                                         what          {}
spec.train.held_out.every_steps                             how
spec.train.held_out.num_samples                             what          32
spec.train.held_out.num_timestep_bins                       what          5
spec.train.held_out.timesteps_per_bin                       what          2
spec.train.held_out.batch_size                              how, rounded
spec.train.checkpoint_every_steps                           how
spec.train.log_every_steps                                  how
spec.evaluate                                               what          null
spec.evaluate.prompts                                       what
spec.evaluate.seed                                          what          42
spec.evaluate.num_frames                                    what          16
spec.evaluate.resolution                                    what          "360p"
spec.evaluate.aspect                                        what          "0.56"
spec.evaluate.fps                                           what          8.0
spec.evaluate.sampler                                       what          "unipc"
spec.evaluate.num_sampling_steps                            what          25
spec.evaluate.guidance_scale                                what          7.0
spec.evaluate.guided_channels                               what          4
spec.evaluate.num_checkpoints                               what          5
spec.evaluate.weights                                       what          ["raw", "ema"]
spec.evaluate.batch_size                                    how, rounded
spec.evaluate.num_seeds                                     what          4
spec.evaluate.held_out_prompts                              what          4
spec.evaluate.plain_prompts                                 what          ["One red thing moves to the right on a green ground in daylight. The camera stands still.", "Two blue things move to the left on a yellow ground at sunset. The camera stands still.", "One white thing moves up in front of a dark blue background at night. The camera stands still.", "Three yellow things move to the left on a grey ground in mist. The camera stands still."]
spec.evaluate.compare                                       what          []
spec.evaluate.lengths                                       what          []
spec.evaluate.style_features                                what          "by-hand"
spec.evaluate.audit_guidance                                what          [0.0, 1.0, 4.0, 7.0]
spec.evaluate.code                                          what          ""
spec.gates                                                  how
spec.gates[].metric                                         how
spec.gates[].at_most                                        how
spec.gates[].at_least                                       how
spec.gates[].at_most_of_base                                how
spec.gates[].at_least_of_base                               how
spec.inputs_of                                              how
spec.tracking                                               how
spec.tracking.wandb                                         how
spec.tracking.wandb_project                                 how
spec.notify                                                 how
spec.cluster                                                how
spec.cluster.nodes                                          how
spec.cluster.gpus_per_node                                  how
spec.cluster.launcher                                       how
spec.cluster.attempts                                       how
spec.cluster.queue                                          how
spec.cluster.priority_class                                 how
spec.cluster.stages                                         how
spec.cluster.stages{}.shards                                how
spec.cluster.stages{}.parallelism                           how
spec.cluster.stages{}.cpu                                   how
spec.cluster.stages{}.memory                                how
spec.cluster.stages{}.scratch                               how
spec.cluster.stages{}.gpus                                  how
spec.cluster.stages{}.deadline_s                            how
spec.suspend                                                how
spec.cancel                                                 how
"""  # noqa: E501 (a default is easier to compare on one line)
"""Place, mark and, of a *what*, the default it came in with, as keys see it; nothing: it came in without one.

rounded: numbers may differ in their last digits. <…> is the alternative of a model, [] each of a list, {} each of a
mapping."""


# ------------------------------------------------------------------------------------------- all fields of a run file


class Place(NamedTuple):
    """A field of the run file."""

    path: str
    """As in spec.train.phases[].buckets[].batch_size; of an alternative, spec.train.model<wan>.eps."""
    owner: type[Strict]
    name: str

    @property
    def field(self) -> FieldInfo:
        return self.owner.model_fields[self.name]

    @property
    def mark(self) -> Mark:
        mark = mark_of(self.field)
        assert mark, (
            f"{self.owner.__name__}.{self.name} ({self.path}) has no mark. Does it change the answer of its stage? "
            "Then write What[…] around its type. Does it change only how the answer is got? Then How[…], or "
            "HowRounded[…] if numbers may differ in their last digits."
        )
        return mark

    @property
    def word(self) -> str:
        return self.mark.word

    @property
    def within(self) -> list[type[Strict]]:
        return models_in(self.field.annotation)


def models_in(annotation: Any) -> list[type[Strict]]:
    """The models that a value of a type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for each in get_args(annotation) for model in models_in(each)]


def places(owner: type[Strict] = BrickRun, path: str = "") -> Iterator[Place]:
    for name, field in owner.model_fields.items():
        place = Place(f"{path}.{name}".lstrip("."), owner, name)
        yield place
        many = "[]" if get_origin(field.annotation) is list else "{}" if get_origin(field.annotation) is dict else ""
        for model in place.within:
            tags = [get_args(each.annotation)[0] for each in model.model_fields.values() if is_tag(each)]
            yield from places(model, f"{place.path}{many}{f'<{tags[0]}>' if tags else ''}")


PLACES = {place.path: place for place in places()}
LEAVES = [place for place in PLACES.values() if not place.within]


def line(place: Place) -> str:
    """A place as the table has it."""
    default = first_default(place.field)
    held = place.word == "what" and default is not PydanticUndefined
    mark = f"{place.word}, rounded" if place.mark.rounds else place.word
    return f"{place.path:60}{mark:14}{json.dumps(default) if held else ''}".rstrip()


# ---------------------------------------------------------------------------------------------------------- the table

DECIDED = {each.split()[0]: each for each in TABLE.strip().splitlines()}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_field_is_decided(place):
    assert place.path in DECIDED, (
        f"{place.path} is new. Decide whether it changes the answer (What) or only how it is got (How), and add the "
        f"line to the table of {Path(__file__).name}:\n{line(place)}"
    )
    assert DECIDED[place.path] == line(place), (
        f"{place.path} is decided otherwise:\n{DECIDED[place.path]}\n{line(place)}\n"
        "Answers in stores are found by the default that a field came in with. If its default is another one from now "
        "on, keep the first one beside it, as in Annotated[What[int], Since(18)] = 20, and leave the table as it is. "
        "If its mark is another one, say so in the changelog: answers are then made again, or found for what they are "
        "not."
    )


def test_no_decided_field_is_gone():
    gone = DECIDED.keys() - PLACES.keys()
    assert not gone, f"{', '.join(sorted(gone))}: no field of the run file any more. Take it out of the table."


@pytest.mark.parametrize("place", [each for each in PLACES.values() if each.within], ids=lambda place: place.path)
def test_below_a_how_all_is_how_and_below_a_what_is_a_what(place):
    words = {below.word for path, below in PLACES.items() if re.match(rf"{re.escape(place.path)}[^\w]", path)}
    assert words == {"how"} if place.word == "how" else "what" in words


def test_the_json_schema_shows_every_mark():
    definitions = json.loads(run_schema())
    shown = {"BrickRun": definitions["properties"]}
    shown |= {name: each.get("properties", {}) for name, each in definitions["$defs"].items()}
    for place in PLACES.values():
        assert shown[place.owner.__name__][place.name][SHOWN_AS] == str(place.mark), place.path


def test_the_run_files_page_names_every_how_and_no_what():
    page = (ROOT / "docs" / "run-file.md").read_text(encoding="utf-8")
    section = page.split("## What and how")[1].split("\n## ")[0]
    rows = [row.split("|")[1:3] for row in section.splitlines() if row.startswith("| `")]
    told = {name: rounds.strip() for names, rounds in rows for name in re.findall(r"`([^`]+)`", names)}
    # What is below a section that is all how goes without saying, and so does what a file begins with.
    outer = [path for path, place in PLACES.items() if place.word == "how" and place.within]
    hows = {
        path.removeprefix("spec."): "yes" if place.mark.rounds else ""
        for path, place in PLACES.items()
        if place.word == "how" and not any(path.startswith(f"{each}{end}") for each in outer for end in ".[{")
    }
    del hows["apiVersion"], hows["kind"]
    assert told == hows


# ----------------------------------------------------------------------------------------------------- what is in a key


def document(**train: Any) -> Any:
    """A run file with every section."""
    bucket = {"num_frames": 1, "resolution": "96x160", "batch_size": 4}
    schedules = [
        {"kind": "constant", "lr": 1e-4},
        {"kind": "cosine_constant", "lr": 1e-4, "warmup_steps": 5},
        {"kind": "one_cycle", "max_lr": 1e-3, "lr": 1e-5, "warmup_steps": 5, "cooldown_steps": 5},
    ]
    phases = [{"name": str(i), "steps": 9, "buckets": [bucket], "schedule": each} for i, each in enumerate(schedules)]
    return {
        "apiVersion": "bricks.dev/v1alpha1",
        "kind": "BrickRun",
        "metadata": {"name": "whole"},
        "spec": {
            "ingest": {"sources": ["films", "s3://films/more"]},
            "latents": {"resolutions": ["96x160"]},
            "train": {"phases": phases} | train,
            "evaluate": {"prompts": ["A red brick."], "resolution": "96x160"},
            "gates": [{"metric": "dataset.num_kept", "at_least": 3}],
            "cluster": {"stages": {"clip": {"shards": 4}}},
        },
    }


RUNS = [
    BrickRun.model_validate(document()),
    BrickRun.model_validate(document(model={"family": "wan", "in_channels": 4})),
]


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a setting's type, whatever limits it has: keys are made of any."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return values(parts[0])
    if kind is Literal:
        return st.sampled_from(parts)
    if kind in (Union, UnionType):
        return st.one_of([values(each) for each in parts])
    if kind is list:
        return st.lists(values(parts[0]), max_size=3)
    if kind is tuple:
        return st.tuples(*map(values, parts))
    if kind is dict:
        return st.dictionaries(values(parts[0]), values(parts[1]), max_size=2)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(-(1 << 40), 1 << 40),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=8),
        SecretStr: st.text(max_size=8).map(SecretStr),
    }
    return simple[annotation]


def with_changed(data: st.DataObject, spec: Strict, word: str) -> Strict:
    """A copy in which one setting, anywhere, that is *what* or *how*, has another value."""
    ways = {name: place for name, place in leaves_of(spec).items() if place.word == word and not is_tag(place.field)}
    way = data.draw(st.sampled_from(sorted(ways)), label="place")
    new = values(ways[way].field.annotation)
    return put(spec, way.split("."), lambda old: data.draw(new.filter(lambda value: value != old), label="value"))


def leaves_of(value: Any, way: str = "") -> dict[str, Place]:
    """The settings that a spec really has, by their way through it, as in train.phases.0.steps."""
    found: dict[str, Place] = {}
    if isinstance(value, Strict):
        for name, field in type(value).model_fields.items():
            below = getattr(value, name)
            if models_in(field.annotation) and below is not None:
                found |= leaves_of(below, f"{way}{name}.")
            elif not models_in(field.annotation):
                found[f"{way}{name}"] = Place(f"{way}{name}", type(value), name)
    elif isinstance(value, list | dict):
        for name, each in enumerate(value) if isinstance(value, list) else value.items():
            found |= leaves_of(each, f"{way}{name}.")
    return found


def put(value: Any, way: list[str], new: Any) -> Any:
    """A copy of a spec with one place changed, unchecked: a key is made of any settings."""
    if not way:
        return new(value)
    name, *rest = way
    if isinstance(value, Strict):
        return value.model_copy(update={name: put(getattr(value, name), rest, new)})
    if isinstance(value, list):
        return [put(each, rest, new) if i == int(name) else each for i, each in enumerate(value)]
    return {key: put(each, rest, new) if key == name else each for key, each in value.items()}


@given(st.data())
def test_another_how_never_changes_what_a_run_asks(data):
    run: Strict = data.draw(st.sampled_from(RUNS))
    run = with_changed(data, run, "what")
    assert what_of(with_changed(data, run, "how")) == what_of(run)


@given(st.data())
def test_another_what_always_changes_it(data):
    run: Strict = data.draw(st.sampled_from(RUNS))
    run = with_changed(data, run, "what")
    assert what_of(with_changed(data, run, "what")) != what_of(run)


@given(st.data())
def test_the_same_settings_have_the_same_json_after_a_way_through_a_file(data):
    spec = data.draw(st.builds(ClipSpec, cut_threshold=st.floats(1, 255), crf=st.integers(0, 51)))
    again = ClipSpec.model_validate_json(spec.model_dump_json())
    assert json.dumps(what_of(again)) == json.dumps(what_of(spec))


def test_what_is_not_written_is_in_no_key_nor_what_is_written_as_the_default_has_it():
    assert what_of(ClipSpec()) == what_of(ClipSpec(crf=18, cut_threshold=12)) == {}
    assert what_of(LatentsSpec.model_validate({"codec": {"kind": "patch-dct"}, "text": {}})) == {}


def test_a_whole_number_for_a_float_is_the_same_number():
    assert json.dumps(what_of(ClipSpec(cut_threshold=13))) == json.dumps(what_of(ClipSpec(cut_threshold=13.0)))
    assert json.dumps(what_of(ScoreSpec.model_validate({"held_out_share": -0.0}))) == '{"held_out_share": 0.0}'


def test_of_a_model_within_only_what_differs_is_kept_and_of_its_hows_nothing():
    latents = LatentsSpec.model_validate(
        {"codec": {"chunk_frames": 4, "dtype": "float16"}, "text": {"max_tokens": 200}}
    )
    assert what_of(latents) == {"codec": {"dtype": "float16"}}


def test_an_alternative_keeps_the_tag_that_tells_it():
    phase = document()["spec"]["train"]["phases"][0]
    smaller = what_of(TrainSpec.model_validate({"phases": [phase], "model": {"depth": 2}}))
    assert smaller["model"] == {"family": "stdit2", "depth": 2}
    assert smaller["phases"][0]["schedule"] == {"kind": "constant", "lr": 1e-4}
    wan = what_of(TrainSpec.model_validate({"phases": [phase], "model": {"family": "wan"}}))
    assert (wan["model"], wan["mask_ratios"]) == ({"family": "wan"}, None)


def test_a_section_that_has_no_default_is_there_even_when_all_in_it_is_as_it_comes():
    class Inner(Strict):
        size: What[int] = 3

    class Outer(Strict):
        inner: What[Inner | None] = None

    assert what_of(Outer()) == {}
    assert what_of(Outer(inner=Inner())) == {"inner": {}}


def test_only_what_is_named_is_kept():
    clip = ClipSpec(crf=20, preset="fast", min_frames=5)
    assert what_of(clip, "crf", "max_frames") == {"crf": 20}


@pytest.mark.parametrize("name", ["decode_timeout_s", "min_sid_px"])
def test_a_how_or_an_unknown_name_is_refused_where_a_key_is_made(name):
    with pytest.raises(KeyError, match=f"IngestSpec.{name} is no setting that changes the answer"):
        what_of(IngestSpec.model_validate({"sources": ["films"]}), name)


def test_a_field_without_a_mark_is_refused_where_a_key_is_made():
    class Unmarked(Strict):
        size: int = 3

    with pytest.raises(TypeError, match=r"Unmarked\.size has no mark"):
        what_of(Unmarked())


# ------------------------------------------------------------------------------------------ as the contract goes on


class Curve(Strict):
    kind: What[Literal["curve"]] = "curve"
    peak: What[float]


class Line(Strict):
    kind: What[Literal["line"]] = "line"
    slope: What[float] = 1


class Encoder(Strict):
    size: What[int] = 8
    threads: How[int] = 1


class Section(Strict):
    """A section as it came in."""

    encoder: What[Encoder] = Encoder()
    shapes: What[list[Annotated[Curve | Line, Field(discriminator="kind")]]] = [Line()]
    shape: What[Annotated[Curve | Line, Field(discriminator="kind")]] = Line()
    share: What[float] = 0.5


class LaterCurve(Curve):
    smooth: What[bool] = True


class LaterLine(Line):
    offset: What[float | None] = None


class LaterDetails(Strict):
    depth: What[int] = 2


class LaterEncoder(Encoder):
    speed: What[Literal["slow", "fast"]] = "slow"
    details: What[LaterDetails] = LaterDetails()


class LaterSection(Strict):
    """The same with new fields everywhere."""

    names: What[list[str]] = ["a"]
    encoder: What[LaterEncoder] = LaterEncoder()
    shapes: What[list[Annotated[LaterCurve | LaterLine, Field(discriminator="kind")]]] = [LaterLine()]
    shape: What[Annotated[LaterCurve | LaterLine, Field(discriminator="kind")]] = LaterLine()
    share: What[float] = 0.5
    retries: How[int] = 3


SHAPES = st.one_of(
    st.fixed_dictionaries({"kind": st.just("curve"), "peak": st.floats(0, 9)}),
    st.fixed_dictionaries({"kind": st.just("line")}, optional={"slope": st.sampled_from([1, 1.0, 2])}),
)
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "encoder": st.fixed_dictionaries({}, optional={"size": st.sampled_from([8, 9]), "threads": st.integers(1, 4)}),
        "shapes": st.lists(SHAPES, max_size=3),
        "shape": SHAPES,
        "share": st.sampled_from([0, 0.5, 1]),
    },
)


@given(SECTIONS)
def test_a_new_field_with_a_default_moves_no_key(written):
    assert what_of(LaterSection.model_validate(written)) == what_of(Section.model_validate(written))


@given(SECTIONS, SECTIONS)
def test_settings_have_the_same_keys_only_if_they_mean_the_same(one, other):
    def meant(section: Section) -> Any:
        return section.model_dump(exclude={"encoder": {"threads"}})

    first, second = Section.model_validate(one), Section.model_validate(other)
    assert (what_of(first) == what_of(second)) == (meant(first) == meant(second))


def test_a_default_that_is_changed_keeps_the_old_keys_what_they_were():
    class Changed(Strict):
        size: Annotated[What[float], Since(8)] = Field(16, ge=1)

    assert what_of(Changed(size=8)) == {}  # what was found by the old default is found still, by whoever writes it
    assert json.dumps(what_of(Changed())) == json.dumps(what_of(Changed(size=16))) == '{"size": 16.0}'


def test_a_default_that_is_changed_in_a_model_within_shows_in_the_section_too():
    class Before(Strict):
        size: What[int] = 8

    class After(Strict):
        size: Annotated[What[int], Since(8)] = 16

    class SectionBefore(Strict):
        encoder: What[Before] = Before()

    class SectionAfter(Strict):
        encoder: What[After] = After()

    assert what_of(SectionBefore()) == {}
    assert what_of(SectionAfter()) == what_of(SectionBefore.model_validate({"encoder": {"size": 16}}))
    assert what_of(SectionAfter.model_validate({"encoder": {"size": 8}})) == {}


def test_a_default_that_is_a_model_with_settings_of_its_own_is_told_from_one_without():
    class Outer(Strict):
        encoder: What[Encoder] = Encoder(size=32)

    assert what_of(Outer()) == what_of(Outer(encoder=Encoder(size=32))) == {}
    assert what_of(Outer(encoder=Encoder())) == {"encoder": {}}


def test_a_default_for_what_came_in_without_one_leaves_it_in_every_key():
    class Before(Strict):
        prompt: What[str]

    class After(Strict):
        prompt: Annotated[What[str], Since()] = "A brick."

    assert what_of(After()) == what_of(Before(prompt="A brick.")) == {"prompt": "A brick."}
