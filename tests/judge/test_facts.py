"""What a prompt claims: all that captions by measuring say, what plain sentences say, and nothing else."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.judge.colours import IN_LIGHT, NAMES, NEAR, SKIES
from bricks_core.judge.facts import KINDS, facts
from bricks_core.judge.kept import scene_of
from bricks_core.judge.measured import video_sentences
from tests.judge.filmed import sentences


def told(prompt):
    """{kind: values}, as the prompt says them."""
    found = {}
    for claim in facts(prompt).claims:
        found.setdefault(claim.kind, []).append(claim.value)
    return found


@pytest.mark.parametrize(
    ("prompt", "claims"),
    [
        (
            "One red car drives to the left on a yellow ground at night.",
            {
                "ground": ["yellow"],
                "light": ["night"],
                "colours": ["red"],
                "direction": ["to the left"],
                "count": ["one"],
            },
        ),
        (
            "A red car drives to the left over yellow ground at night",
            {
                "ground": ["yellow"],
                "light": ["night"],
                "colours": ["red"],
                "direction": ["to the left"],
                "count": ["one"],
            },
        ),
        (
            "A person in red and one in white talk to each other on a blue ground in mist.",
            {
                "ground": ["blue"],
                "light": ["mist"],
                "colours": ["red", "white"],
                "direction": ["in place"],
                "count": ["two"],
            },
        ),
        (
            "Stairs of red and yellow bricks grow from falling bricks on a white ground in daylight.",
            {"ground": ["white"], "light": ["day"], "colours": ["red", "yellow"], "direction": ["appear"]},
        ),
        (
            "The camera travels to the left along white and blue houses on a red ground at sunset.",
            {"ground": ["red"], "light": ["sunset"], "colours": ["white", "blue"], "camera": ["to the left"]},
        ),
        (
            "Two people in yellow jump up and down on a brown ground in mist.",
            {
                "ground": ["brown"],
                "light": ["mist"],
                "colours": ["yellow"],
                "direction": ["up and down"],
                "count": ["two"],
            },
        ),
        (
            "One white rocket with red fins takes off on a grey ground in daylight.",
            {
                "ground": ["grey"],
                "light": ["day"],
                "colours": ["white", "red"],
                "direction": ["up"],
                "count": ["one"],
            },
        ),
        (
            "A dim scene, dark blue from top to bottom. Many small light-green things move slowly up and to the left.",
            {
                "ground": ["dark blue"],
                "background": ["dark blue"],
                "light": ["dim"],
                "colours": ["light green"],
                "direction": ["up and to the left"],
                "count": ["many"],
            },
        ),
        (
            "One orange house with a blue roof stands on a grey ground.",
            {"ground": ["grey"], "colours": ["orange", "blue"]},
        ),
        ("A dog sleeps.", {}),
        ("No red car drives to the left.", {}),
        ("", {}),
    ],
)
def test_a_prompt_claims_what_it_says(prompt, claims):
    assert told(prompt) == claims


def test_what_is_not_understood_is_told():
    found = facts("One red car drives slowly to the left. A dog without a leash!")
    assert found.unread == ("car", "drives", "slowly", "dog", "without", "leash")
    assert 0 < found.coverage < 0.5
    assert facts("Un chat dort").coverage == 0
    assert facts("A red thing moves to the left.").coverage == 1


def test_every_sentence_of_a_generated_film_is_read():
    for scene_kind, sentence in sentences():
        found = facts(sentence)
        kinds = {claim.kind for claim in found.claims}
        assert {"ground", "light", "colours", "camera" if scene_kind == "pan" else "direction"} <= kinds, sentence
        assert found.coverage >= 0.6, found.unread


@pytest.fixture(scope="session")
def a_scene(drawing):
    return scene_of(drawing.scene(), 24.0)


COLOURS = st.sampled_from(NAMES)
WAYS = st.sampled_from(
    ["to the right", "to the left", "up", "down and to the left", "up and down", "back and forth", ""]
)


@settings(max_examples=200, deadline=None)
@given(
    light=st.sampled_from(["bright", "dim", "dark"]),
    ground=COLOURS,
    background=COLOURS,
    accents=st.lists(COLOURS, max_size=3, unique=True).map(tuple),
    things=st.lists(COLOURS, min_size=1, max_size=2, unique=True).map(tuple),
    num=st.integers(0, 7),
    size=st.sampled_from(["", "small", "large"]),
    way=WAYS,
    speed=st.sampled_from(["", "slowly", "quickly"]),
    camera=st.sampled_from(["", "to the right", "up", "down and to the left"]),
    flags=st.sampled_from(["", "appear", "is_everything"]),
)
def test_whatever_is_measured_is_read_as_it_was_written(
    a_scene, light, ground, background, accents, things, num, size, way, speed, camera, flags
):
    scene = replace(
        a_scene,
        light=light,
        ground=ground,
        background=background,
        accents=accents,
        things=things,
        num_things=num,
        size=size,
        way=way,
        speed=speed,
        camera=camera,
        is_steady=True,
        appear=flags == "appear",
        is_everything=flags == "is_everything",
    )
    text = video_sentences(scene)
    found = told(text)
    if not text:
        assert found == {}
        return
    assert (found["ground"], found["background"]) == ([ground], [background])
    assert found["light"] == [light]
    assert found["camera"] == [camera or "still"]
    moves = scene.num_things and not scene.is_everything
    assert set(found.get("colours", [])) == {
        *accents,
        *(things if moves or (scene.appear and not scene.is_everything) else ()),
    }
    if scene.is_everything:
        assert found.get("direction", [""]) == [way]
    elif scene.appear:
        assert found["direction"] == ["appear"]
    elif num:
        assert found["direction"] == [way or "in place"]
        assert found["count"] == [("one", "two", "three", "four", "five", "many", "many")[num - 1]]
    assert {*facts(text).unread} <= {"small", "large", "slowly", "quickly", "nearly", "everything", "view"}


@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    found = facts(text)
    assert 0 <= found.coverage <= 1
    assert all(claim.kind in KINDS for claim in found.claims)


def test_a_claim_is_a_sentence_for_a_judge_that_reads():
    claims = facts("One red car drives to the left on a yellow ground at night. The camera stands still.").claims
    assert [claim.words for claim in claims] == [
        "The ground is yellow.",
        "The scene is at night.",
        "Something red moves.",
        "Something moves to the left.",
        "The number of things that move is one.",
        "The camera stands still.",
    ]


def test_neighbours_of_colours_are_colours_and_few():
    assert {*NEAR} | {name for names in NEAR.values() for name in names} <= {*NAMES}
    assert all(name not in names and len(names) <= 2 for name, names in NEAR.items())
    assert {name for light in IN_LIGHT.values() for names in light.values() for name in names} <= {*NAMES}
    assert {*SKIES} == {*IN_LIGHT}
    assert {name for names in SKIES.values() for name in names} <= {*NAMES}


def test_at_night_a_colour_is_kept_by_what_it_looks_like_then():
    night, day = (
        facts(f"A white boat sails up and down on a yellow ground {when}.").claims for when in ("at night", "by day")
    )
    assert night[0].kept_by == ("yellow", "dark yellow")
    assert next(each for each in night if each.kind == "colours").kept_by == (
        "white",
        "grey",
        "light blue",
        "blue",
        "dark blue",
    )
    assert next(each for each in day if each.kind == "colours").kept_by == ("white", "grey")
    assert re.search("orange", str(facts("A ball on a yellow ground at sunset.").claims[0].kept_by))
