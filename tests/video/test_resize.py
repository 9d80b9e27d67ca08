"""Frames brought to a size: covered, cropped at the centre, and as the reference does it where that is asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.video.resize import cover_size, fit, open_sora_image, open_sora_video, to_pixels
from tests.golden_vectors import every_case


@every_case("transforms", "size", prefix="video/")
def test_videos_are_the_reference_s(case, golden):
    vectors = {name: tensor.numpy() for name, tensor in golden("transforms")[case].items()}
    ours = open_sora_video(vectors["in"].transpose(0, 2, 3, 1), *map(int, vectors["size"]))
    assert ours.shape[1:3] == tuple(vectors["size"])
    assert np.abs(ours.transpose(0, 3, 1, 2) - vectors["out"]).max() <= 1e-4


@every_case("transforms", "size", prefix="image/")
def test_images_are_the_reference_s(case, golden):
    vectors = {name: tensor.numpy() for name, tensor in golden("transforms")[case].items()}
    ours = open_sora_image(vectors["in"].transpose(1, 2, 0), *map(int, vectors["size"]))
    assert ours.shape[:2] == tuple(vectors["size"])
    assert np.abs(ours.transpose(2, 0, 1) - vectors["out"]).max() <= 0.02


@every_case("transforms", "in", prefix="to_uint8")
def test_pixels_are_the_reference_s(case, golden):
    vectors = golden("transforms")[case]
    ours = to_pixels(vectors["in"].permute(1, 2, 3, 0).numpy())
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - vectors["out"].numpy()).max() <= 1


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
