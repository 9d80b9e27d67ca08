"""python examples/make_films.py: what it leaves, and that its truth is true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import make_films
import numpy as np
import pytest

ARGUMENTS = ["--films", "2", "--scenes", "4", "--height", "90", "--photos", "16", "20"]


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Two films, 160x90."""
    folder = tmp_path_factory.mktemp("films")
    assert make_films.main([str(folder), *ARGUMENTS]) == 0
    return folder


def decoded(video: Path) -> np.ndarray:
    """(frames, H, W, 3)."""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def truth_of(video: Path) -> dict:
    return json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))


def changes(frames: np.ndarray) -> np.ndarray:
    """Mean difference of every frame to the one before; 0 for the first."""
    difference = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    return np.concatenate([[0.0], difference])


def gradual_frames(truth: dict) -> set[int]:
    return {n for span in truth["gradual"] for n in range(span["start"], span["end"] + 1)}


def test_the_same_seed_leaves_the_same_bytes_in_another_process_and_another_seed_other_ones(films, tmp_path):
    script = Path(make_films.__file__)
    for seed in ("1", "2"):
        command = [sys.executable, str(script), str(tmp_path / seed), *ARGUMENTS, "--films", "1", "--seed", seed]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    for name in ("film_00.mp4", "film_00.json"):
        assert (tmp_path / "1" / name).read_bytes() == (films / name).read_bytes()
    assert (tmp_path / "2" / "film_00.mp4").read_bytes() != (films / "film_00.mp4").read_bytes()


AMONG_LEFTOVERS = """
import sys
import numpy as np
import make_films

leftovers = [np.full(1 << 16, 255, np.uint8) for _ in range(1000)]
del leftovers
make_films.main(sys.argv[1:])
"""


def test_what_was_in_memory_before_is_not_in_the_bytes(films, tmp_path):
    """An encoder that reads beyond its own data makes other films of the same pictures."""
    # What is freed stays with the process, and is given out again.
    keeping = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    command = [sys.executable, "-c", AMONG_LEFTOVERS, str(tmp_path), *ARGUMENTS, "--films", "1"]
    subprocess.run(command, check=True, cwd=Path(make_films.__file__).parent, env=os.environ | keeping)
    assert (tmp_path / "film_00.mp4").read_bytes() == (films / "film_00.mp4").read_bytes()


def test_scenes_follow_each_other_without_a_gap_and_end_with_the_film(films):
    for video in sorted(films.glob("*.mp4")):
        truth = truth_of(video)
        frames = decoded(video)
        assert frames.shape == (truth["num_frames"], truth["height_px"], truth["width_px"], 3)
        borders = [0, *(scene["end"] for scene in truth["scenes"])]
        assert [scene["start"] for scene in truth["scenes"]] == borders[:-1]
        assert borders[-1] == truth["num_frames"]


def test_every_border_of_two_scenes_is_a_cut_or_gradual(films):
    for video in films.glob("*.mp4"):
        truth = truth_of(video)
        for scene in truth["scenes"][1:]:
            spans = [s for s in truth["gradual"] if s["start"] <= scene["start"] < s["end"]]
            expected = [scene["transition_in"]] if scene["transition_in"] != "cut" else []
            assert [span["type"] for span in spans] == expected
            assert (scene["start"] in truth["cuts"]) == (scene["transition_in"] == "cut")


def test_at_a_cut_the_picture_jumps_and_nowhere_else(films):
    for video in films.glob("*.mp4"):
        truth = truth_of(video)
        change, gradual = changes(decoded(video)), gradual_frames(truth)
        elsewhere = [c for n, c in enumerate(change) if n not in truth["cuts"] and n not in gradual]
        assert min(change[truth["cuts"]]) > 1.5 * max(elsewhere)


def test_a_photo_is_held_for_two_frames_and_the_next_one_differs(films):
    for video in films.glob("*.mp4"):
        truth = truth_of(video)
        change, gradual = changes(decoded(video)), gradual_frames(truth)
        for scene in truth["scenes"]:
            assert scene["picture_fps"] == truth["fps"] / 2
            if scene["type"] in ("title", "end", "still"):
                continue
            inside = [n for n in range(scene["start"] + 1, scene["end"]) if n not in gradual]
            held = [change[n] for n in inside if (n - scene["start"]) % 2 == 1]
            new = [change[n] for n in inside if (n - scene["start"]) % 2 == 0]
            assert np.median(held) < 0.5 * np.median(new), scene["description"]


def test_cards_do_not_move_and_one_scene_is_too_short_for_a_clip(films):
    for video in films.glob("*.mp4"):
        truth = truth_of(video)
        frames, gradual = decoded(video), gradual_frames(truth)
        for scene in truth["scenes"]:
            if scene["text"]:
                shown = [n for n in range(scene["start"], scene["end"]) if n not in gradual]
                assert changes(frames[shown]).max() < 0.5
        assert sum(scene["end"] - scene["start"] < 15 for scene in truth["scenes"]) == 1


def test_a_whole_film_is_not_made_again_and_a_film_without_its_truth_is(films, capsys):
    before = {path: path.stat().st_mtime_ns for path in films.iterdir()}
    assert make_films.main([str(films), *ARGUMENTS]) == 0
    assert capsys.readouterr().out.count("already made") == 2
    assert {path: path.stat().st_mtime_ns for path in films.iterdir()} == before

    video = films / "film_01.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[:1000])  # as after a machine that stopped
    video.with_suffix(".json").unlink()
    assert make_films.main([str(films), *ARGUMENTS]) == 0
    assert capsys.readouterr().out.count("already made") == 1
    assert video.read_bytes() == whole
    assert sorted(path.name for path in films.iterdir()) == sorted(path.name for path in before)


def test_a_film_made_with_other_settings_is_made_again(tmp_path):
    small = ["--films", "1", "--scenes", "1", "--height", "36", "--photos", "16", "16"]
    assert make_films.main([str(tmp_path), *small]) == 0
    assert make_films.main([str(tmp_path), *small, "--seed", "5"]) == 0
    assert truth_of(tmp_path / "film_00.mp4")["settings"]["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--films", "0"], "--films"),
        (["--films", "many"], "--films"),
        (["--scenes", "0"], "--scenes"),
        (["--height", "91"], "--height"),
        (["--photos", "30", "20"], "--photos"),
        (["--seed", "-1"], "--seed"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_wrong_argument_ends_with_a_sentence_and_exit_code_64(arguments, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        make_films.main([str(tmp_path / "films"), *arguments])
    assert stop.value.code == 64
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert not (tmp_path / "films").exists()


def test_a_folder_that_cannot_be_written_ends_with_a_sentence_and_exit_code_73(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    assert make_films.main([str(tmp_path / "taken"), *ARGUMENTS]) == 73
    assert "cannot be written" in capsys.readouterr().err


@pytest.fixture(scope="module")
def plain_film(tmp_path_factory) -> Path:
    """A film of the plain world with a scene of every kind, 160x90."""
    folder = tmp_path_factory.mktemp("plain")
    arguments = ["--look", "plain", "--films", "1", "--scenes", "8", "--height", "90", "--photos", "16", "16"]
    assert make_films.main([str(folder), *arguments]) == 0
    return folder / "film_00.mp4"


def test_a_film_of_the_plain_world_has_the_same_kinds_of_scenes_and_nothing_else(plain_film):
    truth = truth_of(plain_film)
    kinds = {"drive", "walk", "build", "jump", "slide", "launch", "pan", "talk"}
    assert truth["look"] == "plain"
    assert {scene["type"] for scene in truth["scenes"]} == kinds
    assert len(truth["cuts"]) == 7
    assert not truth["gradual"]
    for scene in truth["scenes"]:
        assert "toy" not in scene["description"]
        assert "brick" not in scene["description"]


def test_a_plain_film_moves_at_its_own_rate_and_neither_shakes_nor_flickers(plain_film):
    truth, frames = truth_of(plain_film), decoded(plain_film)
    change = changes(frames)
    for scene in truth["scenes"]:
        assert scene["picture_fps"] == truth["fps"] == 24
        if scene["type"] in ("build", "jump", "talk"):  # in these, things stop on the way
            continue
        inside = change[scene["start"] + 1 : scene["end"]]
        assert np.median(inside[1::2]) == pytest.approx(np.median(inside[::2]), rel=0.3), scene["description"]
        still = np.abs(np.diff(frames[scene["start"] : scene["end"]].astype(np.int16), axis=0)).max(axis=3)
        if scene["type"] in ("drive", "walk", "slide", "launch"):
            assert np.median(still) <= 1, scene["description"]
