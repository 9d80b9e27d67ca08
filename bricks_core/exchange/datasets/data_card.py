"""The data card of an exported dataset: what is in it, whose it is, how it was made, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import yaml

from bricks_core.exchange.datasets.dataset import Dataset
from bricks_core.exchange.grid import grid
from bricks_core.exchange.licences import hub_licence, is_unknown, terms_of

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SETTINGS = {
    "clip": "how films were cut",
    "score": "what was kept",
    "caption": "who wrote the captions, by which rules",
}


@dataclass
class Contents:
    """What is counted of a dataset."""

    num: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by kind and side of the split."""
    rights: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Samples by licence, credit and consent."""
    writers: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Clips by width and height."""
    num_bytes: int = 0
    num_frames: int = 0
    """Of clips."""
    seconds: float = 0.0
    videos: set[str] = field(default_factory=set)

    @property
    def num_samples(self) -> int:
        return self.num.total()

    @property
    def licences(self) -> list[str]:
        return sorted({licence for licence, _, _ in self.rights})

    def of_kind(self, kind: str) -> int:
        return sum(num for (each, _), num in self.num.items() if each == kind)

    def of_split(self, split: str) -> int:
        return sum(num for (_, each), num in self.num.items() if each == split)


def contents(dataset: Dataset) -> Contents:
    """Count a dataset, without reading its files."""
    found = Contents()
    for sample in dataset.samples():
        found.num[sample.kind, sample.split] += 1
        found.rights[sample.licence, sample.credit, sample.consent] += 1
        found.writers[sample.caption_by] += 1
        found.num_bytes += sample.size_bytes
        found.videos.add(sample.video_id)
        if sample.kind == "video":
            found.sizes[sample.width_px, sample.height_px] += 1
            found.num_frames += sample.num_frames
            found.seconds += sample.num_frames / sample.fps if sample.fps else 0.0
    return found


def data_card(dataset: Dataset) -> str:
    """The whole card: a head that the hub reads, and what a person wants to know."""
    counted = contents(dataset)
    head = yaml.safe_dump(card_head(dataset.run, counted), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---\n",
        f"# {dataset.run}\n",
        _in_it(dataset, counted),
        _loading(counted),
        _rights(counted),
        _making(dataset, counted),
        _left_out(dataset),
    ]
    return "\n".join(parts)


def card_head(run: str, counted: Contents) -> dict[str, Any]:
    """The card's YAML, in the hub's words."""
    folder = "videos" if counted.of_kind("video") else "images"
    kind = "video" if folder == "videos" else "image"
    files = [
        {"split": name, "path": f"{folder}/{name}/**"}
        for split, name in (("train", "train"), ("held_out", "validation"))
        if counted.num[kind, split]
    ]
    return {
        "pretty_name": run,
        **hub_licence(counted.licences),
        "task_categories": ["text-to-video"] if kind == "video" else ["text-to-image"],
        "size_categories": [next((name for most, name in _SIZES if counted.num_samples < most), "n>1M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _in_it(dataset: Dataset, counted: Contents) -> str:
    rows = [
        ["", "train", "validation"],
        *(
            [name, f"{counted.num[kind, 'train']:,}", f"{counted.num[kind, 'held_out']:,}"]
            for kind, name in (("video", "clips"), ("image", "images"))
        ),
    ]
    lines = [
        f"{counted.of_kind('video'):,} clips ({counted.seconds / 60:,.1f} minutes, {counted.num_frames:,} frames) and "
        f"{counted.of_kind('image'):,} images from {len(counted.videos):,} videos, each with a caption. "
        f"{counted.num_bytes / 1e6:,.1f} MB.",
        "",
        *grid(rows),
    ]
    if counted.sizes:
        sizes = ", ".join(f"{w}x{h} ({num:,})" for (w, h), num in counted.sizes.most_common(8))
        lines += ["", f"Sizes of clips: {sizes}{', ...' if len(counted.sizes) > 8 else ''}."]
    lines += ["", "All of a video's clips are on one side of the split."] if _is_by_video(dataset) else []
    return "\n".join([*lines, ""])


def _is_by_video(dataset: Dataset) -> bool:
    sides: dict[str, str] = {}
    return all(sides.setdefault(sample.video_id, sample.split) == sample.split for sample in dataset.samples())


def _loading(counted: Contents) -> str:
    lines = ["## Loading", "", "```python", "from datasets import load_dataset", ""]
    if counted.of_kind("video"):
        lines.append("clips = load_dataset(FOLDER)")
        if counted.of_kind("image"):
            lines.append('images = load_dataset(FOLDER, data_dir="images")')
    else:
        lines.append("images = load_dataset(FOLDER)")
    lines += [
        "```",
        "",
        "`FOLDER` is this folder, or its name on the hub. Decoding videos needs torchcodec; "
        '`clips.cast_column("video", datasets.Video(decode=False))` gives files instead. Of the columns, `text` is the '
        "caption and `caption_by` its writer; `fps`, `num_frames`, `height` and `width` are the file's; `video_name`, "
        "`first_frame` and `end_frame` (one past the last) say where it was cut from, `clip_id` which clip an image is "
        "a frame of.",
        "",
    ]
    return "\n".join(lines)


def _rights(counted: Contents) -> str:
    lines = ["## Licences, credit and consent", ""]
    if len(counted.licences) > 1:
        lines += ["**Several licences hold here**; each row's is in its columns `licence`, `credit` and `consent`.", ""]
    for licence in counted.licences:
        terms, num = terms_of(licence), sum(num for (each, _, _), num in counted.rights.items() if each == licence)
        if is_unknown(licence):
            lines += [f"The licence of {num:,} of them is **not known**: nobody has said that you may use them.", ""]
        elif terms is not None and terms.no_derivatives:
            lines += [f"{licence}, of {num:,} of them, forbids passing on what is made from them.", ""]
    if num := sum(num for (_, _, consent), num in counted.rights.items() if is_unknown(consent)):
        lines += [f"Whether those who made {num:,} of them, or are seen in them, agree is **not known**.", ""]
    rows = [["licence", "credit", "consent", "clips and images"]]
    rows += [
        [licence, credit or "-", consent, f"{num:,}"]
        for (licence, credit, consent), num in sorted(counted.rights.items())
    ]
    return "\n".join([*lines, *grid(rows), ""])


def _making(dataset: Dataset, counted: Contents) -> str:
    writers = ", ".join(f"{writer} ({num:,})" for writer, num in counted.writers.most_common())
    version = dataset.caption.manifest.code_version
    num_given = dataset.ingest.manifest.tables["given"].num_rows
    given = f" {num_given:,} clips and images came in tables and are as they came." if num_given else ""
    lines = [
        "## How it was made",
        "",
        f"Films were cut into single shots, scored, filtered and captioned by bricks {version}.{given} "
        f"Captions were written by: {writers}.",
        "",
    ]
    for stage, what in _SETTINGS.items():
        manifest = dataset.manifests[stage]
        settings = yaml.safe_dump({stage: manifest.spec}, sort_keys=False, allow_unicode=True, width=100)
        lines += [f"Settings of `{stage}` ({what}), artifact `{manifest.digest}`:", "", "```yaml", settings + "```", ""]
    return "\n".join(lines)


def _left_out(dataset: Dataset) -> str:
    rows = [["stage", "what", "number"]]
    for stage, manifest in dataset.manifests.items():
        rows += [[stage, what, f"{num:,}"] for what, num in manifest.counts.items() if "tokens" not in what]
    lines = [
        "## What became of everything",
        "",
        "Only kept clips, and images of kept clips, with an accepted caption (ok)",
    ]
    lines[-1] += " are here. What was dropped, and why:"
    return "\n".join([*lines, "", *grid(rows), ""])
