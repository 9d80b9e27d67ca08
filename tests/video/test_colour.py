"""The curves of high dynamic range, at points that the recommendations name."""

import numpy as np
import pytest

from bricks_core.video.colour import hlg_to_cd_m2, pq_to_cd_m2, tone_mapped


@pytest.mark.parametrize(("code", "cd_m2"), [(0.0, 0), (0.508, 100), (0.581, 203), (0.7518, 1000), (1.0, 10000)])
def test_pq_codes_mean_absolute_light(code, cd_m2):
    assert pq_to_cd_m2(np.array([code]))[0] == pytest.approx(cd_m2, rel=0.01, abs=1e-6)


@pytest.mark.parametrize(("code", "cd_m2"), [(0.0, 0), (0.5, 1000 * (1 / 12) ** 1.2), (0.75, 203), (1.0, 1000)])
def test_hlg_codes_mean_light_of_a_1000_cd_screen(code, cd_m2):
    assert hlg_to_cd_m2(np.array([code]))[0] == pytest.approx(cd_m2, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("curve", ["pq", "hlg"])
def test_brighter_light_never_becomes_a_darker_picture(curve):
    greys = np.repeat(np.arange(0, 65536, 64, dtype=np.uint16)[None, :, None], 3, axis=2)
    shown = tone_mapped(greys, curve)[0, :, 1].astype(int)
    assert (np.diff(shown) >= 0).all()
    assert (shown[0], shown[-1]) == (0, 255)
