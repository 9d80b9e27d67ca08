"""Frames brought to a bucket's size: resized until the size is covered, then cropped at the centre.

`fit` is what Bricks encodes: averaging over all pixels that fall into one (when shrinking) keeps studs and outlines
where plain interpolation, which looks at four of the sixteen or more, makes them flicker from frame to frame.
`open_sora_video` and `open_sora_image` do what Open-Sora 1.1 does (stdit2.md section 14), for runs side by side.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from bricks_core.video.read import Pixels

Floats = npt.NDArray[np.float32]


def cover_size(height: int, width: int, height_px: int, width_px: int) -> tuple[int, int]:
    """The size (height, width) of the same shape that just covers (height_px, width_px); halves round to even."""
    by_height, by_width = height_px / height, width_px / width
    if by_height > by_width:
        return height_px, round(width * by_height)
    return round(height * by_width), width_px


def fit(video: Pixels, height_px: int, width_px: int) -> Pixels:
    """(num_frames, height, width, 3) -> (num_frames, height_px, width_px, 3), both 0..255. Area average; bicubic up."""
    covered = cover_size(video.shape[1], video.shape[2], height_px, width_px)
    method = cv2.INTER_AREA if covered[0] < video.shape[1] or covered[1] < video.shape[2] else cv2.INTER_CUBIC
    return _cropped(_resized(video, covered, method), height_px, width_px)


def open_sora_video(video: Pixels, height_px: int, width_px: int) -> Floats:
    """(num_frames, height, width, 3) -> (num_frames, height_px, width_px, 3) in [-1, 1]. Bilinear, no antialias.

    By torch, as there: OpenCV rounds coordinates otherwise, which shows from a width of about 2000 on (3e-4).
    """
    import torch

    covered = cover_size(video.shape[1], video.shape[2], height_px, width_px)
    unit = torch.from_numpy(np.ascontiguousarray(video.transpose(0, 3, 1, 2))).float() / 255
    scaled = torch.nn.functional.interpolate(unit, covered, mode="bilinear", align_corners=False)
    cropped = _cropped(scaled.permute(0, 2, 3, 1).numpy(), height_px, width_px)
    return np.asarray((cropped - np.float32(0.5)) / np.float32(0.5))


def open_sora_image(image: Pixels, height_px: int, width_px: int) -> Floats:
    """(height, width, 3) uint8 -> (height_px, width_px, 3) in [-1, 1]. Bicubic with antialias, on 8 bits."""
    height, width = cover_size(image.shape[0], image.shape[1], height_px, width_px)
    scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - height_px) / 2), round((width - width_px) / 2)
    cropped = scaled[top : top + height_px, left : left + width_px].astype(np.float32) / 255
    return np.asarray((cropped - np.float32(0.5)) / np.float32(0.5), np.float32)


def to_pixels(video: Floats) -> Pixels:
    """[-1, 1] -> 0..255, any shape: clamp, scale, round half up."""
    unit = (np.clip(video, -1, 1) + 1) / 2
    return np.asarray(np.clip(unit * 255 + 0.5, 0, 255), np.uint8)


def _resized(video: npt.NDArray[Any], size: tuple[int, int], method: int) -> npt.NDArray[Any]:
    if size == video.shape[1:3]:
        return video
    return np.stack([cv2.resize(np.ascontiguousarray(each), size[::-1], interpolation=method) for each in video])


def _cropped(video: npt.NDArray[Any], height_px: int, width_px: int) -> npt.NDArray[Any]:
    top, left = (video.shape[1] - height_px) // 2, (video.shape[2] - width_px) // 2
    return video[:, top : top + height_px, left : left + width_px]
