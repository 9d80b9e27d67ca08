"""Numbers and names as the page says them."""

from __future__ import annotations

from bricks_core.report.facts import Dataset

WEIGHTS = {"ema": "EMA", "raw": "raw", "base": "base"}


def beside(key: str) -> str:
    """A key of the artifact as a link from the page, which lies in report/."""
    return key.removeprefix("report/") if key.startswith("report/") else "../" + key


def step_label(step: int) -> str:
    return f"step {number(step)}"


def number(value: float) -> str:
    """1234567 as 1,234,567; 0.1234 as 0.123."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def loss(value: float) -> str:
    """Four decimals, as the end of a run tells it."""
    return f"{value:,.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"


def change(percent: float) -> str:
    """An improvement as the change of the loss that it is: −53 %."""
    if abs(percent) < 0.05:
        return "±0 %"
    return f"{'−' if percent > 0 else '+'}{abs(percent):.1f} %"


def duration(seconds: float) -> str:
    """As a person says it: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02d} min"


def several(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def clips_and_images(data: Dataset) -> str:
    clips, images = data.latents.get("video train", 0), data.latents.get("image train", 0)
    return several(clips, "clip") + (f" and {several(images, 'image')}" if images else "")
