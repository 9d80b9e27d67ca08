"""The report: one page, its pictures beside it, nothing from anywhere else.

What an artifact holds must follow from what it was asked, so times and machines stay out of the page: they go to
timings.js beside it, which the page reads and which is no part of the artifact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.train import DEFAULT_WEIGHTS
from bricks_core.stages.evaluate.charts import Chart, Series, bar_chart, line_chart
from bricks_core.stages.evaluate.facts import Bin, Change, Dataset, HeldOut, StageFacts, Training
from bricks_core.stages.evaluate.gallery import Exhibit
from bricks_core.video.buckets import Size

LINE_STYLES = {"ema": "s1", "raw": "s2"}
WEIGHTS = {"ema": "EMA", "raw": "raw", "base": "base"}
BUCKET_STYLES = ("s3", "s4", "s5", "s6", "s1", "s2")
FEW_CLIPS = 8
"""With fewer held-out clips the page warns against trusting the verdict."""
SHOWN_WIDTH_PX = 360
"""Videos are shown at least this wide where there is room; small ones are enlarged."""


@dataclass(frozen=True)
class Facts:
    """Everything the report is made of, and what report.json holds."""

    spec: EvaluateSpec
    size: Size
    dataset: Dataset
    training: Training
    held_out: HeldOut
    lineage: list[StageFacts]
    settings: dict[str, dict[str, Any]]
    """The resolved settings of every stage."""

    @property
    def weights(self) -> str:
        """Of raw and EMA, those that the page is about: what `bricks generate` takes too, unless only others were
        sampled."""
        return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in self.spec.weights else self.spec.weights[0]

    @property
    def change(self) -> Change | None:
        """What became of their held-out loss; None where that was not measured twice."""
        return self.held_out.overall(self.weights)


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    key: str
    width: int
    height: int
    alt: str
    weights: str = ""

    @property
    def src(self) -> str:
        return beside(self.key)


@dataclass(frozen=True)
class Player:
    """A video of the page."""

    key: str
    weights: str
    """base, raw or ema."""
    step_number: int
    poster_key: str

    @property
    def poster(self) -> str:
        """Its first frame, for before it plays, and for paper."""
        return beside(self.poster_key)

    @property
    def src(self) -> str:
        return beside(self.key)

    @property
    def name(self) -> str:
        return {"base": "Base model", "raw": "Raw", "ema": "EMA"}[self.weights]

    @property
    def step(self) -> str:
        return step_label(self.step_number)

    @property
    def label(self) -> str:
        return f"{self.name}, {self.step}"


@dataclass(frozen=True)
class Prompt:
    """A prompt, its videos and its panel."""

    text: str
    players: list[Player]
    """The base model's, then the last checkpoint's."""
    steps: list[dict[str, Any]]
    """For every checkpoint its step, how to call it, and the videos by weights."""
    panel: Picture


@dataclass(frozen=True)
class Verdict:
    """What a reader should take away, in a line and a sentence."""

    title: str
    text: str


@dataclass(frozen=True)
class Tile:
    name: str
    value: str | Markup
    note: str = ""
    style: str = ""


@dataclass(frozen=True)
class Stop:
    """A step of the way from videos to training samples."""

    name: str
    count: int
    percent: float | None
    """Of the shots; None for what is no part of them."""
    note: str = ""
    reasons: dict[str, int] = field(default_factory=dict)


def page(facts: Facts, prompts: Sequence[Prompt], overview: Picture | None, shown: Sequence[Exhibit]) -> str:
    """The page's HTML. The same facts make the same bytes."""
    kept, dropped = [each for each in shown if each.kept], [each for each in shown if not each.kept]
    evaluate = facts.lineage[-1]
    return (
        _environment()
        .get_template("report.html")
        .render(
            css=Markup(_file("report.css")),
            js=Markup(_file("report.js")),
            verdict=verdict(facts),
            after=_after(facts, prompts[0]),
            tiles=tiles(facts, len(prompts[0].steps)),
            spec=facts.spec,
            size=_shown_size(facts.size),
            overview=overview,
            prompts=prompts,
            unfinished="" if facts.training.is_finished else _steps_in_words(facts.training),
            held_out=facts.held_out,
            dataset=facts.dataset,
            charts=charts(facts),
            funnel=funnel(facts.dataset),
            kept=kept,
            dropped=dropped,
            num_dropped=facts.dataset.num_clips - facts.dataset.num_kept,
            measured_captions="measured" in facts.dataset.captions_by,
            settings={stage: _yaml(spec) for stage, spec in facts.settings.items()},
            lineage=facts.lineage,
            version=evaluate.code_version,
        )
    )


def report_json(facts: Facts) -> str:
    """All numbers, for programs."""
    changes = [asdict(each) | {"improvement_percent": each.improvement_percent} for each in facts.held_out.changes]
    numbers = {
        "stages": [asdict(each) for each in facts.lineage],
        "dataset": asdict(facts.dataset),
        "training": asdict(facts.training),
        "held_out": asdict(facts.held_out) | {"changes": changes},
        "settings": facts.settings,
    }
    return json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"


def settings_yaml(facts: Facts) -> str:
    """The resolved settings of every stage, as a run file has them under spec."""
    return _yaml(facts.settings)


@dataclass(frozen=True)
class Timing:
    """When a stage was finished, and on what."""

    stage: str
    started_at: datetime
    """Of the last process that worked on it: an earlier one may have been stopped."""
    finished_at: datetime
    host: dict[str, str]
    num_done: int
    unit: str

    @classmethod
    def of(cls, manifest: Manifest, num_steps: int) -> Timing:
        unit = _UNITS[manifest.stage]
        num_done = num_steps if unit == "steps" else manifest.tables[unit].num_rows
        return cls(manifest.stage, manifest.started_at, manifest.finished_at, manifest.host, num_done, unit)

    @property
    def took_s(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def per_second(self) -> float:
        return self.num_done / self.took_s if self.took_s > 0 else 0.0

    def numbers(self) -> dict[str, Any]:
        return {
            "started_at": self.started_at.isoformat(),
            "finished_at": self.finished_at.isoformat(),
            "took_s": self.took_s,
            f"{self.unit}_per_s": self.per_second,
            "host": self.host,
        }

    def words(self) -> dict[str, str]:
        return {
            "finished": self.finished_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "took": f"{duration(self.took_s)}, {number(self.per_second)} {self.unit}/s",
            "host": f"{self.host.get('hostname', 'unknown')}, {self.host.get('num_cpus', '?')} CPUs",
        }


_UNITS = {
    "ingest": "videos", "clip": "clips", "score": "scores", "caption": "captions", "latents": "latents",
    "train": "steps", "evaluate": "samples",
}  # fmt: skip


def timings_js(timings: Sequence[Timing], run: str) -> str:
    """When each stage ran, how long, and where: what the page shows about them, and the numbers themselves."""
    shown: dict[str, Any] = {each.stage: each.words() for each in timings}
    shown["run"] = f"· run {run}" if run else ""
    numbers: dict[str, Any] = {"run": run, "stages": {each.stage: each.numbers() for each in timings}}
    return "window.bricksTimings = " + json.dumps(numbers | {"shown": shown}, indent=1).replace("<", "\\u003c") + ";\n"


def verdict(facts: Facts) -> Verdict:
    """Whether it learnt, by the only number that can tell; and when there is none, that there is none."""
    change, training = facts.change, facts.training
    done = f"{number(training.num_steps)} steps"
    if not training.is_finished:
        done = f"{number(training.num_steps)} of {number(training.of_steps)} steps so far"
    made = f"A text-to-video model was trained for {done} on {_clips_and_images(facts.dataset)}"
    asked = f"then asked {_several(len(facts.spec.prompts), 'prompt')} with the same noise at every checkpoint"
    if change is None and facts.held_out.curves:
        return Verdict(
            f"Trained for {done}; the held‑out loss has been measured only once",
            f"{made}, {asked}. Whether it got better is known when it is measured again: look at the panels.",
        )
    if change is None:
        return Verdict(
            f"Trained for {done}; nothing was held out to judge it by",
            f"{made}, {asked}. No videos were kept apart, so no number says whether it got better: look at the panels.",
        )
    words = f"from {loss(change.before)} to {loss(change.after)} with {WEIGHTS[change.weights]} weights"
    for other in facts.held_out.changes:
        if not other.bucket and other.after < change.after:
            words += f", to {loss(other.after)} with {WEIGHTS[other.weights]} ones"
    num_clips = max(each.num_clips for each in facts.held_out.changes)
    few = f" (measured on {_several(num_clips, 'clip')}: a hint, no more)" if num_clips < FEW_CLIPS else ""
    so_far = "" if training.is_finished else "So far: "
    title = f"{so_far}{_headline(change)}"
    return Verdict(title, f"{made}, {asked}. On videos it never saw its loss went {words}{few}.")


def _headline(change: Change) -> str:
    percent = change.improvement_percent
    if percent >= 5:
        return f"It learnt: the held‑out loss fell by {percent:.0f} %"
    if percent >= 1:
        return f"It learnt a little: the held‑out loss fell by {percent:.1f} %"
    if percent > -1:
        return "It hardly changed: the held‑out loss stayed where it was"
    return f"It got worse: the held‑out loss rose by {-percent:.1f} %"


def tiles(facts: Facts, num_checkpoints: int) -> list[Tile]:
    """The few numbers at the top."""
    found = []
    if overall := facts.change:
        arrow = Markup('<span class="arrow" aria-label="to">→</span>')
        value = Markup("{} {} {}").format(loss(overall.before), arrow, loss(overall.after))
        note = f"{change(overall.improvement_percent)}, {WEIGHTS[overall.weights]} weights"
        found.append(Tile("Held-out loss", value, note, "main good" if overall.improvement_percent > 0 else "main"))
    data, seen = facts.dataset, f"{_several(facts.training.samples_seen, 'sample')} seen"
    so_far = f"of {number(facts.training.of_steps)}; {seen}"
    training_clips = sum(count for name, count in data.latents.items() if name.endswith("train"))
    return [
        *found,
        Tile("Training steps", number(facts.training.num_steps), seen if facts.training.is_finished else so_far),
        Tile("Training samples", number(training_clips), _clips_and_images(data)),
        Tile("Footage in clips", duration(data.clip_seconds), f"{_several(_used_videos(data), 'video')}"),
        Tile("Prompts", number(len(facts.spec.prompts)), f"at {_several(num_checkpoints, 'checkpoint')}"),
    ]


def _steps_in_words(training: Training) -> str:
    of = "" if training.is_finished else f" of {number(training.of_steps)}"
    return f"{number(training.num_steps)}{of}"


def funnel(data: Dataset) -> list[Stop]:
    """From videos to samples. Bars are shares of the shots: all of them are clips or would have been."""
    whole = max(data.num_shots, data.num_clips, 1)

    def share(count: int) -> float:
        return round(min(100.0, 100 * count / whole), 2)

    videos = sum(data.videos.values())
    states = ", ".join(f"{number(count)} {state}" for state, count in data.videos.items())
    accepted = {kind: counts.get("ok", 0) for kind, counts in data.captions.items()}
    others = {
        status.replace("_", " "): sum(counts.get(status, 0) for counts in data.captions.values())
        for status in sorted({status for counts in data.captions.values() for status in counts} - {"ok"})
    }
    clips, images = _several(accepted.get("video", 0), "clip"), _several(accepted.get("image", 0), "image")
    captions = f"{clips} and {images} have an accepted caption"
    if others:
        captions += "; " + ", ".join(f"{number(count)} {status}" for status, count in others.items())
    if data.mean_caption_words:
        captions += f"; {data.mean_caption_words:.0f} words on average"
    latents = ", ".join(f"{number(n)} {_split_name(name)}" for name, n in data.latents.items())
    sizes = ", ".join(f"{number(n)} at {name}" for name, n in data.latents_by_size.items())
    num_videos_encoded = sum(count for name, count in data.latents.items() if name.startswith("video"))
    return [
        Stop("videos found", videos, None, states, data.video_reasons),
        Stop("shots in them", data.num_shots, share(data.num_shots), "", data.shot_reasons),
        Stop(
            "clips cut", data.num_clips, share(data.num_clips),
            f"{duration(data.clip_seconds)} of footage; {_several(data.num_images, 'middle frame')} kept as images",
        ),
        Stop(
            "clips kept", data.num_kept, share(data.num_kept),
            f"{number(data.num_clips - data.num_kept)} dropped by the filter; a clip may have several reasons"
            if data.num_kept < data.num_clips else "none dropped by the filter",
            data.score_reasons,
        ),
        Stop(
            "clips captioned", accepted.get("video", 0), share(accepted.get("video", 0)), captions,
            data.caption_reasons,
        ),
        Stop("clips encoded", num_videos_encoded, share(num_videos_encoded), f"{latents}; {sizes}" if latents else ""),
    ]  # fmt: skip


def charts(facts: Facts) -> dict[str, Any]:
    """Every chart of the page."""
    held_out, training = facts.held_out, facts.training
    phases = [(name, float(first), float(end)) for name, first, end in training.phases]

    def by_weights(curves: Mapping[str, Any]) -> list[Series]:
        order = sorted(curves, key=("raw", "ema").index)
        return [Series(WEIGHTS[each], curves[each], LINE_STYLES[each], marks=len(curves[each]) <= 40) for each in order]

    drawn: list[Chart] = [
        line_chart(
            "Training loss",
            [Series("each step", training.loss, "s3", faint=True), Series("smoothed", training.smoothed_loss, "s3")],
            y_label="loss",
            bands=phases,
            log_scale=True,
        )
    ]
    if len(training.bucket_losses) > 1:
        series = [
            Series(bucket, points, BUCKET_STYLES[place % len(BUCKET_STYLES)])
            for place, (bucket, points) in enumerate(training.bucket_losses.items())
        ]
        drawn.append(
            line_chart("Training loss by bucket", series, y_label="loss, smoothed", bands=phases, log_scale=True)
        )
    drawn += [
        line_chart(
            "Learning rate",
            [Series("", training.learning_rate, "s4")],
            y_label="learning rate",
            bands=phases,
            from_zero=True,
        ),
        line_chart(
            "Gradient norm",
            [Series("", training.gradient_norm, "s6")],
            y_label="L2 norm, before clipping",
            bands=phases,
            from_zero=True,
        ),
    ]
    bins = [
        line_chart(_bin_name(each), by_weights(each.curves), y_label="loss", log_scale=True) for each in held_out.bins
    ]
    return {
        "held_out": line_chart(
            "Held-out loss", by_weights(held_out.curves), y_label="loss", bands=phases, log_scale=True
        ),
        "bins": bins if len(bins) > 1 else [],
        "training": drawn,
        "histograms": [bar_chart(each) for each in facts.dataset.histograms],
    }


def _after(facts: Facts, prompt: Prompt) -> Player:
    """The first prompt's last video, of the weights that the verdict is about."""
    return next((each for each in prompt.players if each.weights == facts.weights), prompt.players[-1])


def _bin_name(each: Bin) -> str:
    return f"Timesteps {each.first_timestep} to {each.end_timestep - 1}"


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


@dataclass(frozen=True)
class _Shown:
    width_px: int
    height_px: int
    shown_width_px: int
    shown_height_px: int


def _shown_size(size: Size) -> _Shown:
    width, height = 8 * size.latent_width, 8 * size.latent_height
    scale = max(1.0, SHOWN_WIDTH_PX / width)
    return _Shown(width, height, round(width * scale), round(height * scale))


@cache
def _environment() -> Environment:
    from jinja2 import FunctionLoader

    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "num": number,
        "loss": loss,
        "change": change,
        "seconds": duration,
        "beside": beside,
        "weights": WEIGHTS.__getitem__,
        "words": lambda text: text.replace("_", " "),
        "compact": lambda value: f"{value:g}",
    }
    return environment


def _file(name: str) -> str:
    return files("bricks_core.stages.evaluate").joinpath(name).read_text(encoding="utf-8")


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def _used_videos(data: Dataset) -> int:
    return sum(data.videos.get(state, 0) for state in ("ok", "damaged"))


def _clips_and_images(data: Dataset) -> str:
    clips, images = data.latents.get("video train", 0), data.latents.get("image train", 0)
    return _several(clips, "clip") + (f" and {_several(images, 'image')}" if images else "")


def _several(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def _split_name(name: str) -> str:
    kind, _, split = name.partition(" ")
    return f"{'clips' if kind == 'video' else 'images'} {'to train on' if split == 'train' else 'held out'}"
