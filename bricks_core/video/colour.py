"""High dynamic range brought to what a screen (and a model) of ordinary range shows.

Curves: SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG) as in ITU-R BT.2100-2, tables 4 and 5. Primaries: BT.2020 to BT.709 as
in ITU-R BT.2407 section 2. White: 203 cd/m2 is the reference white of HDR, ITU-R BT.2408 section 2. Tone curve: the
extended form of Reinhard et al., "Photographic Tone Reproduction for Digital Images" (2002), equation 4.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
HdrCurve = Literal["pq", "hlg"]

WHITE_CD_M2 = 203.0
PEAK_CD_M2 = 1000.0
_CODES = 1 << 16
_STEPS = 1 << 12
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def tone_mapped(rgb16: npt.NDArray[np.uint16], curve: HdrCurve) -> npt.NDArray[np.uint8]:
    """(height, width, 3) of 16-bit BT.2020 R'G'B' in the given curve -> 8-bit BT.709 R'G'B', same shape."""
    light = np.asarray(cv2.transform(_to_light(curve)[rgb16], _BT2020_TO_BT709), np.float32)
    light = np.clip(light, 0.0, PEAK_CD_M2 / WHITE_CD_M2)
    # One factor for all three channels, so that hues stay; from their largest, so that none is clipped.
    brightest = np.maximum(np.maximum(light[..., :1], light[..., 1:2]), light[..., 2:])
    shown = light * _compression(brightest)
    return np.asarray(_to_code()[np.rint(shown * (_STEPS - 1)).astype(np.uint16)])


def _compression(x: Floats) -> Floats:
    """L_display / L for L in units of reference white: (1 + L / L_peak^2) / (1 + L). 1 at the peak, so white stays."""
    peak = PEAK_CD_M2 / WHITE_CD_M2
    return np.asarray((1 + x / peak**2) / (1 + x), np.float32)


@cache
def _to_light(curve: HdrCurve) -> Floats:
    """Light per 16-bit code, 1.0 = reference white."""
    code = np.arange(_CODES) / (_CODES - 1)
    light = pq_to_cd_m2(code) if curve == "pq" else hlg_to_cd_m2(code)
    return np.asarray(light / WHITE_CD_M2, np.float32)


@cache
def _to_code() -> npt.NDArray[np.uint8]:
    """8-bit code per step of light in 0..1, for a screen after ITU-R BT.1886: V = L^(1/2.4)."""
    return np.asarray(np.rint(255 * (np.arange(_STEPS) / (_STEPS - 1)) ** (1 / 2.4)), np.uint8)


def pq_to_cd_m2(code: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The PQ reference EOTF, BT.2100 table 4: a signal in 0..1 -> cd/m2 in 0..10000."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = code ** (1 / m2)
    return np.asarray(10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))


def hlg_to_cd_m2(code: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The HLG inverse OETF, BT.2100 table 5, and the OOTF of a 1000 cd/m2 screen (gamma 1.2), channel by channel."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return np.asarray(PEAK_CD_M2 * scene**1.2)
