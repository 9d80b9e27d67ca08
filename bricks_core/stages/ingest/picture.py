"""What a picture really is, found by decoding it."""

from __future__ import annotations

from pathlib import Path

import cv2

from bricks_core.video.probe import Facts


def probe_picture(path: Path) -> Facts:
    """Decode a JPEG, PNG, WebP or the like. Never raises for what is in the file.

    As stored: a turn that a camera noted beside the picture is not made, neither here nor in Open-Sora.

    Raises:
        OSError: the file cannot be read.
    """
    if path.stat().st_size == 0:
        return Facts("unreadable", "The file is empty.")
    try:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        return Facts("unreadable", f"It cannot be decoded: {error.err}.")
    if picture is None:
        return Facts("unreadable", "It is not a picture in any format known here.")
    height, width = picture.shape[:2]
    return Facts("ok", container="picture", width_px=width, height_px=height, num_frames=1)
