"""Frames brought to a size: covered, cropped at the centre, and as the reference does it where that is asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bricks_core.video.resize import cover_size, fit, open_sora_image, open_sora_video, to_pixels


@pytest.fixture(scope="module")
def vectors(request):
    return load_file(request.config.rootpath / "tests" / "golden" / "transforms.safetensors")


@pytest.mark.parametrize("case", ["down_exact", "oddcrop", "tall", "up", "wide_to_43"])
def test_videos_and_images_are_the_references(vectors, case):
    height, width = map(int, vectors[f"video/{case}/size"])
    video = open_sora_video(vectors[f"video/{case}/in"].transpose(0, 2, 3, 1), height, width)
    assert np.abs(video.transpose(0, 3, 1, 2) - vectors[f"video/{case}/out"]).max() <= 1e-4
    height, width = map(int, vectors[f"image/{case}/size"])
    image = open_sora_image(vectors[f"image/{case}/in"].transpose(1, 2, 0), height, width)
    assert np.abs(image.transpose(2, 0, 1) - vectors[f"image/{case}/out"]).max() <= 0.02


def test_pixels_are_the_references(vectors):
    ours = to_pixels(vectors["to_uint8/in"].transpose(1, 2, 3, 0))
    assert np.abs(ours.astype(int) - vectors["to_uint8/out"]).max() <= 1


@given(st.integers(8, 900), st.integers(8, 900), st.integers(8, 900), st.integers(8, 900))
def test_a_cover_touches_one_side_and_never_leaves_a_gap(height, width, height_px, width_px):
    covered = cover_size(height, width, height_px, width_px)
    assert covered[0] >= height_px
    assert covered[1] >= width_px
    assert covered[0] == height_px or covered[1] == width_px


def test_shrinking_averages_so_that_studs_do_not_flicker():
    checks = np.indices((128, 128)).sum(axis=0) % 2 * 255
    video = np.broadcast_to(checks[None, :, :, None], (2, 128, 128, 3)).astype(np.uint8)
    assert np.abs(fit(video, 32, 32).astype(int) - 128).max() <= 1
    moved = np.roll(video, 1, axis=2)
    assert np.abs(fit(moved, 32, 32).astype(int) - fit(video, 32, 32)).max() <= 1


@pytest.mark.parametrize(("height_px", "width_px"), [(32, 32), (64, 128), (120, 200), (100, 160)])
def test_the_centre_is_kept(height_px, width_px):
    video = np.zeros((1, 100, 160, 3), np.uint8)
    video[:, 40:60, 70:90] = 255
    fitted = fit(video, height_px, width_px)
    assert fitted.shape == (1, height_px, width_px, 3)
    rows, columns = np.nonzero(fitted[0, :, :, 0] > 127)
    assert abs(rows.mean() - (height_px - 1) / 2) <= 0.6
    assert abs(columns.mean() - (width_px - 1) / 2) <= 0.6
