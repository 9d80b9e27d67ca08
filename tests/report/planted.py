"""A report's facts, made up: every measure is there."""

from dataclasses import replace

from bricks_core.report.audit import GuidanceAudit, GuidanceBin, GuidanceOf, GuidanceScale
from bricks_core.report.evidence import Evidence, Losses, Rise, with_measures
from bricks_core.report.facts import Change, Dataset, Facts, HeldOut, StageFacts, Training
from bricks_core.report.intervals import Interval
from bricks_core.report.measures import (
    Copied,
    CopiedPair,
    Course,
    Drift,
    KeptFacts,
    Measures,
    Memorisation,
    Model,
    MotionNumber,
    Style,
)
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.video.buckets import Size

KINDS = ("all", "ground", "background", "light", "colours", "direction", "count", "camera")


def around(value, by=0.07, num=24):
    return Interval(value, value - by, value + by, num)


def kept(prompt_set, tuned=0.81, base=0.55, chance=0.31):
    return [
        KeptFacts(
            prompt_set,
            kind,
            96 - 7 * place,
            around(tuned - 0.04 * place),
            around(base),
            around(chance, 0.04),
            around(tuned - 0.04 * place - chance),
            around(tuned - 0.04 * place - base, 0.08),
        )
        for place, kind in enumerate(KINDS)
    ]


def style(position=0.87):
    return Style(
        "by-hand", around(2.31), around(0.74), around(0.4123), around(position, 0.11), around(0.97, 0.02),
        around(0.64, 0.09), 37, 5,
    )  # fmt: skip


def four(tuned, base, real, nearer):
    return around(tuned, 0.3), around(base, 0.2), around(real, 0.4), around(nearer, 0.2)


def motion():
    return [
        MotionNumber("amount", "displacement", "% of the width per second", "as real", *four(9.3, 4.1, 8.8, 1.7)),
        MotionNumber("smoothness", "evenness", "", "more", *four(0.71, 0.72, 0.58, 0.01)),
        MotionNumber("flicker", "change of brightness", "%", "as real clips do", *four(2.43, 0.62, 1.1, -0.9)),
    ]  # fmt: skip


def model(name="step 1,200", of="", step=1200, position=0.87, tuned=0.81):
    return Model(
        name, of, step, "ema", 160,
        [*kept("style", tuned), *kept("held_out", tuned - 0.05), *kept("plain", 0.66, 0.7)], style(position), motion(),
    )  # fmt: skip


def drift(step, speed):
    courses = [
        Course(
            n, 2, {m: around(speed * m, 0.3) for m in (8, 16, 32, 64) if m <= n}, *four(-3.1, speed / 9, speed, 0)[:3]
        )
        for n in (8, 16, 32, 64)
    ]
    return Drift(step, courses, around(1.3, 0.4), around(0.2, 0.3))


def measures(**more):
    pair = CopiedPair(
        "content", "0123456789abcdef", "A red car drives to the left at night.", 2, "fedcba9876543210",
        0.9312, True, "report/copies/0123456789abcdef.jpg", "report/copies/0123456789abcdef-clip.jpg",
    )  # fmt: skip
    stretch = GuidanceBin(0, 500, around(1), around(0.9), around(0.1), 0.21, 0.25, 0.24)
    guidance = GuidanceOf(1200, "ema", [stretch], around(0.14), around(-0.02))
    found = Measures(
        tuned=model(),
        num_prompts={"style": 24, "held_out": 12, "plain": 4},
        num_seeds=4,
        num_held_out_clips=37,
        of_held_out_clips=41,
        others=[model("step 2,000", "", 2000, 0.79), model("brick-v1@900", "brick-v1@900", 900, 0.41, 0.62)],
        drift=[drift(0, 0.4), drift(2000, 0.9)],
        memorisation=Memorisation(
            [
                Copied("content", 3, 144, around(0.0208, 0.02), 0.0263, 0.7512, 37),
                Copied("motion", 9, 131, around(0.0687, 0.03), 0.0333, 0.9, 29),
            ],
            212,
            230,
            [pair, replace(pair, score=0.8012, mirrored=False, part="motion")],
            [],
        ),
        audit=GuidanceAudit([guidance], 37, 5, [], [GuidanceScale(1200, 4.0, around(0.21))], around(0.18)),
        missing={"motion: holds": "the clip has 6 frames per second, and the film's rate is 24: pictures are not seen"},
    )
    return replace(found, **more)


def some_facts(found=None):
    """All of a report's facts. `found`: its measures."""
    rises = [Rise(step, 0, around(-0.3 - step / 1e4, 0.05, 5)) for step in (600, 1200, 2000)]
    losses = Losses([0, 600, 1200, 2000], 0.21, 37, 5, rises, None, None, around(0.02, 0.03, 5))
    evidence = Evidence(False, losses, 24, 24, is_measured=True)
    dataset = Dataset(
        {"ok": 12}, {}, {"CC0-1.0": 12}, 300, {}, 290, 290, 812.5, 271, 41, {}, {"video": {"ok": 271}}, {},
        {"measured": 271}, 14.2, {}, {"video train": 230, "video held_out": 41}, {}, [],
    )  # fmt: skip
    curve = [(0.0, 0.9), (1000.0, 0.3), (2000.0, 0.2)]
    spec = EvaluateSpec(prompts=["A red car drives to the left."], num_frames=8, resolution="96x160", fps=6)
    return Facts(
        spec=spec,
        size=Size("96x160", 96, 160),
        dataset=dataset,
        training=Training(2000, [("tune", 0, 2000)], curve, curve, curve, curve, {}, 24000, 2000),
        held_out=HeldOut(0, 2000, {"ema": curve}, [], [Change("ema", "", 0.21, 0.13, 0)]),
        evidence=with_measures(evidence, found) if found else evidence,
        lineage=[StageFacts("evaluate", 3, "0" * 32, "abc1234", {}, {}, 0, {})],
        settings={"evaluate": spec.model_dump(mode="json")},
        measures=found,
    )
