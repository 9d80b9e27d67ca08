"""The report: one page, its pictures beside it, nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bricks_core.report.charts import Chart, Series, bar_chart, line_chart
from bricks_core.report.facts import Bin, Dataset, Facts, Training
from bricks_core.report.figures import exact, figure, first_capital, is_finite, is_noise, told_of
from bricks_core.report.files import in_yaml
from bricks_core.report.verdict import Verdict, verdict_of
from bricks_core.report.words import (
    WEIGHTS,
    beside,
    change,
    clips_and_images,
    duration,
    loss,
    number,
    several,
    step_label,
)
from bricks_core.video.buckets import Size

LINE_STYLES = {"ema": "s1", "raw": "s2"}
BUCKET_STYLES = ("s3", "s4", "s5", "s6", "s1", "s2")
SHOWN_WIDTH_PX = 360
"""Videos are shown at least this wide where there is room; small ones are enlarged."""


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
class Head:
    """What a reader should take away: a line, why, and what it is about."""

    title: str
    reasons: str
    about: str


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


@dataclass
class Exhibit:
    """A clip that is shown."""

    clip_id: str
    video_id: str
    kept: bool
    held_out: bool
    reasons: list[str]
    motion: float
    seconds: float = 0.0
    caption: str = ""
    caption_by: str = ""
    caption_status: str = ""
    key: str = ""
    """Of its thumbnail, relative to the artifact."""
    width_px: int = 0
    height_px: int = 0


def page_of(facts: Facts, prompts: Sequence[Prompt], overview: Picture | None, shown: Sequence[Exhibit]) -> str:
    """The page's HTML. The same facts make the same bytes."""
    kept, dropped = [each for each in shown if each.kept], [each for each in shown if not each.kept]
    evaluate = facts.lineage[-1]
    return (
        _environment()
        .get_template("page.html")
        .render(
            css=Markup(_file("page.css")),
            js=Markup(_file("page.js")),
            head=_head(facts),
            after=_after(facts, prompts[0]),
            tiles=tiles(facts, len(prompts[0].steps)),
            spec=facts.spec,
            size=_shown_size(facts.size),
            overview=overview,
            prompts=prompts,
            unfinished="" if facts.training.is_finished else _steps_in_words(facts.training),
            measures=facts.measures,
            told=told_of(facts.measures) if facts.measures else None,
            held_out=facts.held_out,
            dataset=facts.dataset,
            charts=charts(facts),
            funnel=funnel(facts.dataset),
            kept=kept,
            dropped=dropped,
            num_dropped=facts.dataset.num_clips - facts.dataset.num_kept,
            measured_captions="measured" in facts.dataset.captions_by,
            settings={stage: in_yaml(spec) for stage, spec in facts.settings.items()},
            lineage=facts.lineage,
            version=evaluate.code_version,
        )
    )


def _head(facts: Facts) -> Head:
    verdict, training = verdict_of(facts.evidence), facts.training
    so_far = "" if training.is_finished else "So far: "
    reasons = [*verdict.reasons, verdict.advice, _not_measured(verdict)]
    done = several(training.num_steps, "step")
    if not training.is_finished:
        done = f"{number(training.num_steps)} of {number(training.of_steps)} steps so far"
    about = (
        f"A text-to-video model was trained for {done} on {clips_and_images(facts.dataset)}, then asked "
        f"{several(len(facts.spec.prompts), 'prompt')} with the same noise at every checkpoint."
    )
    if (change := facts.change) is not None:
        words = f"from {loss(change.before)} to {loss(change.after)} with {WEIGHTS[change.weights]} weights"
        for other in facts.held_out.changes:
            if not other.bucket and other.after < change.after:
                words += f", to {loss(other.after)} with {WEIGHTS[other.weights]} ones"
        about += f" On videos it never saw its loss went {words}."
    return Head(f"{so_far}{verdict.title}", " ".join(filter(None, reasons)), about)


def _not_measured(verdict: Verdict) -> str:
    return f"Not measured: {', '.join(verdict.unknown)}." if verdict.unknown else ""


def tiles(facts: Facts, num_checkpoints: int) -> list[Tile]:
    """The few numbers at the top."""
    found = []
    if overall := facts.change:
        arrow = Markup('<span class="arrow" aria-label="to">→</span>')
        value = Markup("{} {} {}").format(loss(overall.before), arrow, loss(overall.after))
        # Green is a claim: made where the verdict makes it. That of random weights falls at first, whatever is learnt.
        gains = ("keep",) if facts.evidence.base_is_random else ("keep", "train longer")
        is_gain = overall.improvement_percent > 0 and verdict_of(facts.evidence).word in gains
        note = f"{change(overall.improvement_percent)}, {WEIGHTS[overall.weights]} weights"
        found.append(Tile("Held-out loss", value, note, "main good" if is_gain else "main"))
    data, seen = facts.dataset, f"{several(facts.training.samples_seen, 'sample')} seen"
    so_far = f"of {number(facts.training.of_steps)}; {seen}"
    training_clips = sum(count for name, count in data.latents.items() if name.endswith("train"))
    return [
        *found,
        Tile("Training steps", number(facts.training.num_steps), seen if facts.training.is_finished else so_far),
        Tile("Training samples", number(training_clips), clips_and_images(data)),
        Tile("Footage in clips", duration(data.clip_seconds), f"{several(_used_videos(data), 'video')}"),
        Tile("Prompts", number(len(facts.spec.prompts)), f"at {several(num_checkpoints, 'checkpoint')}"),
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
    clips, images = several(accepted.get("video", 0), "clip"), several(accepted.get("image", 0), "image")
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
            f"{duration(data.clip_seconds)} of footage; {several(data.num_images, 'middle frame')} kept as images",
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
        "figure": figure,
        "exact": exact,
        "first_capital": first_capital,
        "kept": lambda model, prompt_set: model.kept(prompt_set),
    }
    environment.tests |= {"noise": is_noise, "finite": is_finite}
    return environment


def _file(name: str) -> str:
    return files("bricks_core.report").joinpath(name).read_text(encoding="utf-8")


def _used_videos(data: Dataset) -> int:
    return sum(data.videos.get(state, 0) for state in ("ok", "damaged"))


def _split_name(name: str) -> str:
    kind, _, split = name.partition(" ")
    return f"{'clips' if kind == 'video' else 'images'} {'to train on' if split == 'train' else 'held out'}"
