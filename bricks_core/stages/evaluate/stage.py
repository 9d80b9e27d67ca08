"""Evaluate: the same prompts at chosen checkpoints, panels of them, and the report of the whole run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bricks_core.models.image_encoder import load_image_encoder
from bricks_core.report.audit import GuidanceAudit
from bricks_core.report.evidence import Evidence, losses_of, repeats_of, with_measures
from bricks_core.report.facts import (
    Facts,
    HeldOut,
    StageFacts,
    dataset_facts,
    held_out_facts,
    stage_facts,
    training_facts,
)
from bricks_core.report.files import Timing, report_json, settings_yaml, timings_js
from bricks_core.report.markdown import report_md
from bricks_core.report.page import Picture, Player, Prompt, page_of
from bricks_core.report.words import WEIGHTS, beside, step_label
from bricks_core.spec.evaluate import EvaluateSpec, Sample
from bricks_core.spec.manifest import StoredObject
from bricks_core.spec.score import Score
from bricks_core.spec.train import DEFAULT_WEIGHTS, CheckpointRow, ClipLossRow, HeldOutRow, TrainSpec
from bricks_core.stages.evaluate import panels
from bricks_core.stages.evaluate.asked import Asked, asked_samples, object_keys, sample_of
from bricks_core.stages.evaluate.audit import Audited, asked_audit, audit_of, make_audit
from bricks_core.stages.evaluate.gallery import exhibits, picture_of
from bricks_core.stages.evaluate.measured import measured
from bricks_core.stages.evaluate.measures.style import BY_HAND
from bricks_core.stages.evaluate.samples import make_samples, size_of, strip_places
from bricks_core.storage.code_version import code_version, host_facts
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Joined, Work
from bricks_core.tracking import Tracker, open_tracker, tracking_folder
from bricks_core.video.read import Pixels
from bricks_core.video.write import jpeg

PANEL_QUALITY = 88
_ORDER = {"raw": 0, "ema": 1}


def run(spec: EvaluateSpec, work: Work) -> None:
    """Sample what is not sampled yet; each sample is kept as soon as it is there. Then the audit of guidance.

    Raises SpecError or ServiceUnavailable before any of that: style_features names an encoder that cannot be had.
    """
    if spec.style_features != BY_HAND:
        load_image_encoder(spec.style_features)
    make_samples(spec, work)
    make_audit(spec, work)


def join(spec: EvaluateSpec, work: Work) -> Joined:
    """Panels, numbers and the page, from the samples and the stages' tables."""
    parts = list(tasks(spec, work))
    asked = [each for each in parts if isinstance(each, Asked)]
    asked.sort(key=lambda each: (each.prompt_index, each.step, _ORDER[each.weights]))
    shown_on_page = [sample_of(spec, each) for each in asked if each.is_on_the_page]
    keys = [key for each in parts for key in each.keys]
    work.made_from(keys)
    samples = [sample_of(spec, each) for each in asked]
    page = Pages(spec, work, shown_on_page)
    page.objects += _taken_into_the_report(spec, asked, work)
    audit, audited = audit_of(spec, work)
    page.objects += audited
    facts, pictures = gather(spec, work, samples, audit)
    for key, data in pictures.items():
        page.put(key, data)
    prompts = [page.prompt(index) for index in range(len(spec.prompts))]
    overview = page.overview(facts.weights)
    shown, thumbnails = exhibits(work)
    page.objects += thumbnails
    page.put("report/report.json", report_json(facts).encode())
    page.put("report/report.md", report_md(facts).encode())
    page.put("report/settings.yaml", settings_yaml(facts).encode())
    page.put("report/index.html", page_of(facts, prompts, overview, shown).encode())
    _leave_timings(work, facts, len(samples))
    _track(work, facts, shown_on_page)
    return Joined(
        {"samples": sorted(samples, key=lambda row: row.id)},
        keys,
        page.objects,
        {
            "samples": len(samples),
            "prompts": len({row.prompt_index for row in samples}),
            "checkpoints": len({row.step for row in samples if not row.of}),
        },
    )


def tasks(spec: EvaluateSpec, work: Work) -> Iterator[Asked | Audited]:
    """Every sample, and every part of the audit."""
    if work.tasks is None:
        work.tasks = [*asked_samples(spec, work), *asked_audit(spec, work)]
    yield from work.tasks


def _taken_into_the_report(spec: EvaluateSpec, asked: Sequence[Asked], work: Work) -> Iterator[StoredObject]:
    """Copies of the samples' files beside the page: whoever copies the report has all of it."""
    work.items.load(key for each in asked for key in each.keys)
    for each in asked:
        for stored, key in zip(work.items.need(each.keys[0]).objects, object_keys(spec, each), strict=True):
            with work.store.local(stored.key, sha256=stored.sha256) as file:
                yield work.put_file(key, file)


def gather(
    spec: EvaluateSpec, work: Work, samples: Sequence[Sample], audit: GuidanceAudit | None = None
) -> tuple[Facts, dict[str, bytes]]:
    """Every number of the report, and the pictures that go with some, by key. The samples' files are in the report."""
    manifests = [artifact.manifest for artifact in work.inputs.values()]
    train = TrainSpec.model_validate(work.inputs["train"].manifest.spec)
    own = StageFacts(
        stage=work.stage.name,
        version=work.stage.version,
        digest=work.digest,
        code_version=code_version(),
        inputs=work.input_digests,
        rows={},
        num_items=0,
        counts={},
    )
    held_out = held_out_facts(work.rows("train", "held_out", HeldOutRow))
    evidence = _evidence(spec, work, train, held_out)
    found = measured(spec, work, samples, evidence.losses, _weights(spec))
    measures = replace(found.measures, audit=audit) if found else None
    facts = Facts(
        spec=spec,
        size=size_of(spec),
        dataset=dataset_facts(work),
        training=training_facts(work, train),
        held_out=held_out,
        evidence=with_measures(evidence, measures) if measures else evidence,
        lineage=[*map(stage_facts, manifests), own],
        settings={manifest.stage: manifest.spec for manifest in manifests}
        | {work.stage.name: spec.model_dump(mode="json")},
        measures=measures,
    )
    return facts, found.pictures if found else {}


def _weights(spec: EvaluateSpec) -> str:
    """Those that count."""
    return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in spec.weights else spec.weights[0]


def _evidence(spec: EvaluateSpec, work: Work, train: TrainSpec, held_out: HeldOut) -> Evidence:
    """What the verdict rests on, at the steps that have a checkpoint to be taken, but for what samples tell."""
    steps = {row.step for row in work.rows("train", "checkpoints", CheckpointRow)}
    return Evidence(
        base_is_random=not (train.init_from or train.continue_from),
        losses=losses_of(work.rows("train", "clip_losses", ClipLossRow), _weights(spec), steps),
        num_prompts=len(spec.prompts),
        num_samples=len(spec.prompts),
        is_measured=bool(held_out.changes),
        repeats=repeats_of(work.rows("score", "scores", Score)),
    )


class Pages:
    """The report's pictures: made of the samples' strips, a prompt at a time, and stored.

    `samples`: of the run's own prompts one for each checkpoint and kind of weights.
    """

    def __init__(self, spec: EvaluateSpec, work: Work, samples: Sequence[Sample]):
        self._spec, self._work = spec, work
        self._by_prompt: dict[int, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._by_prompt[sample.prompt_index].append(sample)
        self._places = strip_places(spec.num_frames)
        self._middles: dict[tuple[int, int, str], Pixels] = {}
        self.objects: list[StoredObject] = []

    def put(self, key: str, data: bytes) -> None:
        """Store an object of the artifact that belongs to no sample."""
        with scratch() as folder:
            file = folder / "object"
            file.write_bytes(data)
            self.objects.append(self._work.put_file(key, file))

    def prompt(self, index: int) -> Prompt:
        """A prompt's panel, made and stored, and what else the page shows of it."""
        samples = self._by_prompt[index]
        rows = [panels.Row(self._title(each), self._weights(each), self._frames(each)) for each in samples]
        for sample, row in zip(samples, rows, strict=True):
            self._middles[index, sample.step, sample.weights] = panels.thumb(row.frames[len(row.frames) // 2])
        drawn = panels.panel(rows, self._places)
        key = f"report/panels/prompt-{index:02d}.jpg"
        self.put(key, jpeg(drawn, PANEL_QUALITY))
        text = self._spec.prompts[index]
        alt = f"{len(rows)} rows of {len(self._places)} frames, from the base model to step {samples[-1].step}: {text}"
        return Prompt(text, self._players(samples), list(_steps(samples)), self._picture(key, drawn, alt))

    def overview(self, weights: str) -> Picture:
        """All prompts over the training, in one picture."""
        steps = sorted({sample.step for samples in self._by_prompt.values() for sample in samples})

        def middle(row: int, column: int) -> Pixels | None:
            step = steps[column]
            found = self._middles.get((row, step, weights))
            return self._middles.get((row, step, "raw")) if found is None else found

        heads = ["base" if step == 0 else step_label(step) for step in steps]
        drawn = panels.overview(self._spec.prompts, heads, middle)
        self.put("report/overview.jpg", jpeg(drawn, PANEL_QUALITY))
        alt = f"A picture per prompt and checkpoint: {', '.join(heads)}"
        return self._picture("report/overview.jpg", drawn, alt, WEIGHTS[weights])

    def _frames(self, sample: Sample) -> list[Pixels]:
        strip = picture_of(self._work.store.get(self._work.prefix + sample.strip_key))
        return panels.frames_of(strip, len(self._places))

    def _players(self, samples: Sequence[Sample]) -> list[Player]:
        last = max(sample.step for sample in samples)
        ends = [sample for sample in samples if sample.step == last and sample is not samples[0]]
        # EMA first: beside the base model also where only two fit in a row.
        ends.sort(key=lambda sample: -_ORDER[sample.weights])
        return [self._player(samples[0], "base"), *(self._player(each, each.weights) for each in ends)]

    def _player(self, sample: Sample, weights: str) -> Player:
        key = sample.video_key.replace("/samples/", "/posters/").replace(".mp4", ".jpg")
        self.put(key, jpeg(self._frames(sample)[0], PANEL_QUALITY))
        return Player(sample.video_key, weights, sample.step, key)

    @staticmethod
    def _picture(key: str, drawn: Pixels, alt: str, weights: str = "") -> Picture:
        return Picture(key, drawn.shape[1], drawn.shape[0], alt, weights)

    @staticmethod
    def _title(sample: Sample) -> str:
        return step_label(sample.step)

    @staticmethod
    def _weights(sample: Sample) -> str:
        return "base" if sample.step == 0 else sample.weights


def _steps(samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """What the page's slider needs: for each checkpoint its step and its videos."""
    for step in sorted({sample.step for sample in samples}):
        found = {each.weights: beside(each.video_key) for each in samples if each.step == step}
        yield {"step": step, "label": step_label(step), "base": next(iter(found.values()))} | found


def _leave_timings(work: Work, facts: Facts, num_samples: int) -> None:
    """Beside the page, but not in the manifest: the artifact's objects stay the same whoever makes them, and when."""
    name = work.run.name if work.run else ""
    steps = facts.training.num_steps
    # Of a training that is not finished its manifest does not know how long it has taken.
    told = [each.manifest for name, each in work.inputs.items() if name != "train" or facts.training.is_finished]
    timings = [Timing.of(manifest, steps) for manifest in told]
    timings.append(Timing("evaluate", work.started_at, datetime.now(UTC), host_facts(), num_samples, "samples"))
    data = timings_js(timings, name)
    work.store.put(work.prefix + "report/timings.js", data.encode())


def _track(work: Work, facts: Facts, samples: Sequence[Sample]) -> None:
    """The same to W&B, as far as the run wants it."""
    if work.run is None:
        return
    tracker: Tracker = open_tracker(work.run, "evaluate", tracking_folder(work.store.uri), digest=work.digest)
    if not tracker.active:
        return
    for weights, points in facts.held_out.curves.items():
        for step, value in points:
            tracker.log(int(step), {f"held_out/{weights}": value})
    for each in facts.held_out.changes:
        if not each.bucket:
            tracker.summary({f"held_out/{each.weights}/improvement_percent": each.improvement_percent})
    for sample in samples:
        with work.store.local(work.prefix + sample.video_key) as video:
            tracker.video(sample.step, f"samples/{sample.weights}/{sample.prompt_index}", video, sample.prompt)
    last = max(sample.step for sample in samples)
    for index in range(len(facts.spec.prompts)):
        with work.store.local(f"{work.prefix}report/panels/prompt-{index:02d}.jpg") as picture:
            tracker.image(last, f"panels/{index}", picture, facts.spec.prompts[index])
    tracker.finish()
