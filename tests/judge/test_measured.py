"""Sentences from measurements: true of drawn clips, in plain English, within the rules."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.judge.colours import NAMES, named, shares
from bricks_core.judge.measured import image_sentences, measure, video_sentences
from bricks_core.judge.pictures import seen
from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption.gate import judge
from bricks_core.video.motion import MotionMeter, small_size

SPEC = CaptionSpec()


def look(pictures, fps=24.0):
    """(num_frames, height, width, 3) RGB -> Seen."""
    size = small_size(pictures.shape[2], pictures.shape[1])
    small = {n: np.ascontiguousarray(cv2.resize(each, size)[..., ::-1]) for n, each in enumerate(pictures)}
    meter = MotionMeter()
    for picture in small.values():
        meter.add(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    return seen(small, [round(share * (len(pictures) - 1)) for share in SPEC.frame_shares], meter.result(fps))


def told(pictures):
    return video_sentences(measure(look(pictures)))


def test_a_red_thing_that_moves_right_over_green_ground(drawing):
    pictures = drawing.scene([drawing.Mover("red", dx=6)], jitter_px=0.2, flicker=0.02)
    assert told(pictures) == (
        "A bright scene on green ground in front of a light blue background. Grey stands out. "
        "One red thing moves to the right. The camera stands still."
    )
    assert image_sentences(measure(look(pictures))) == (
        "A bright scene on green ground in front of a light blue background. Grey stands out. "
        "One red thing is in the middle."
    )


@pytest.mark.parametrize(
    ("start", "step", "words"),
    [
        ((120, 55), (-6, 0), "moves to the left."),
        ((80, 15), (0, 5), "moves down."),
        ((80, 75), (0, -5), "moves up."),
        ((20, 10), (6, 5), "moves down and to the right."),
    ],
)
def test_directions_and_speeds(drawing, start, step, words):
    mover = drawing.Mover("yellow", *start, *step)
    assert f"One yellow thing {words}" in told(drawing.scene([mover], ground="blue"))


def test_a_thing_that_moves_less_than_its_own_length_moves_slowly_and_does_not_appear(drawing):
    mover = drawing.Mover("yellow", x=40, dx=1)
    assert "One small yellow thing moves slowly to the right." in told(drawing.scene([mover], ground="blue"))


@pytest.mark.parametrize("count", [2, 3])
def test_things_are_counted(drawing, count):
    movers = [drawing.Mover("red", x=10, y=40 + 18 * n, dx=6, side=12) for n in range(count)]
    assert f"{('Two', 'Three')[count - 2]} small red things move to the right." in told(drawing.scene(movers))


def test_two_colours_are_told_of_two_things(drawing):
    movers = [drawing.Mover("red", y=40, dx=6), drawing.Mover("yellow", y=70, dx=6)]
    sentence = told(drawing.scene(movers)).split(". ")[2]
    assert sentence in {f"Two {colours} things move to the right" for colours in ("red and yellow", "yellow and red")}


def test_a_thing_that_jumps_moves_up_and_down(drawing):
    up = drawing.scene([drawing.Mover(x=70, y=70, dx=0, dy=-8)], num_frames=10)
    assert "One red thing moves up and down." in told(np.concatenate([up, up[::-1], up, up[::-1]]))


def test_a_camera_that_pans_moves_and_things_are_not_counted(drawing):
    sentences = told(drawing.scene(pan_px=4))
    assert "The camera moves to the right." in sentences
    assert "thing" not in sentences


def test_what_is_built_appears(drawing):
    pictures = drawing.scene(num_frames=32)
    for n in range(8):
        pictures[4 * n :, 75 - 6 * n : 80 - 6 * n, 40 + 5 * n : 90 + 5 * n] = (200, 30, 30)
    assert "Red things appear one after another." in told(pictures)


@pytest.mark.parametrize(("light", "word"), [(1.0, "bright"), (0.55, "dim"), (0.3, "dark")])
def test_the_light_is_told(drawing, light, word):
    assert f"A {word} scene" in told(drawing.scene([drawing.Mover("white", dx=6)], light=light))


def test_what_only_flickers_and_shakes_is_told_as_nothing(drawing):
    pictures = drawing.scene(jitter_px=0.2, flicker=0.03)
    assert told(pictures) == ""


def test_the_same_clip_has_the_same_words(drawing):
    pictures = drawing.scene([drawing.Mover()], jitter_px=0.2)
    assert told(pictures) == told(pictures.copy())


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_sentence_keeps_the_rules_and_the_vocabulary(drawing, data):
    colours = st.sampled_from(["red", "green", "blue", "yellow", "grey", "white", "black"])
    mover = drawing.Mover(
        data.draw(colours),
        *(data.draw(st.integers(0, 60)) for _ in "xy"),
        *(data.draw(st.integers(-7, 7)) for _ in "xy"),
    )
    pictures = drawing.scene(
        [mover] * data.draw(st.integers(0, 2)),
        ground=data.draw(colours),
        background=data.draw(colours),
        pan_px=data.draw(st.sampled_from([0, 0, 3])),
        light=data.draw(st.floats(0.3, 1.1)),
        jitter_px=0.2,
        seed=data.draw(st.integers(0, 9)),
    )
    scene = measure(look(pictures))
    for text in filter(None, (video_sentences(scene), image_sentences(scene))):
        assert judge(text, SPEC) == ("ok", "")
        assert set(text.lower().replace(",", "").replace(".", "").split()) <= VOCABULARY, text


WORDS = """a an and bright dim dark scene on ground in front of background from top to bottom stands stand out one two
three four five many small large thing things move moves slowly quickly the right left up down back forth little place
camera still nearly everything view appear after another is are middle can be seen"""
VOCABULARY = {*WORDS.split(), *" ".join(NAMES).split()}


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((250, 250, 250), "white"),
        ((128, 130, 136), "grey"),
        ((70, 72, 76), "dark grey"),
        ((190, 40, 35), "red"),
        ((90, 15, 12), "dark red"),
        ((235, 120, 30), "orange"),
        ((110, 65, 30), "brown"),
        ((240, 205, 60), "yellow"),
        ((60, 160, 60), "green"),
        ((20, 70, 25), "dark green"),
        ((30, 100, 200), "blue"),
        ((160, 210, 250), "light blue"),
        ((15, 20, 70), "dark blue"),
        ((130, 50, 160), "purple"),
        ((250, 170, 180), "pink"),
        ((215, 190, 150), "beige"),
        ((40, 170, 170), "turquoise"),
    ],
)
def test_colours_have_the_names_an_eye_gives(rgb, name):
    assert NAMES[named(np.array([[rgb[::-1]]], np.uint8))[0, 0]] == name


def test_shares_of_colours_add_up_and_come_largest_first():
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:3] = (30, 30, 200)
    assert [(share.name, round(share.share, 2)) for share in shares(named(picture))] == [("black", 0.7), ("red", 0.3)]
    assert shares(named(picture), np.zeros((10, 10), bool)) == []


def test_a_still_is_a_single_image_and_black_is_not_enough(drawing):
    assert look(drawing.scene(hold=24)).status == "single_image"
    assert look(drawing.plain("black")).status == "not_enough_information"
    assert look(drawing.plain("white")).status == "not_enough_information"
    assert look(drawing.scene([drawing.Mover(dx=6)])).status == "ok"


def test_a_still_that_flickers_is_still_a_single_image(drawing):
    assert look(drawing.scene(hold=2, flicker=0.02)).status == "single_image"


def test_a_walk_that_is_back_at_its_first_pose_is_shown_at_another(drawing):
    """Poses repeat so that the pictures at 20, 50 and 80 % are the same one."""
    steps = drawing.scene([drawing.Mover(x=60, dx=8)], num_frames=10, hold=1)
    cycle = np.concatenate([steps[:5], steps[3:0:-1]])
    pictures = np.concatenate([cycle] * 4)
    size = small_size(pictures.shape[2], pictures.shape[1])
    small = {n: np.ascontiguousarray(cv2.resize(each, size)[..., ::-1]) for n, each in enumerate(pictures)}
    motion = look(pictures).motion
    assert seen(small, [6, 15, 24], motion).chosen == [6, 15, 24]
    assert seen(small, [0, 8, 16], motion).chosen == [0, 7, 16]
