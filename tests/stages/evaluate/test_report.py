"""The page: whole without a network, true to the tables, safe whatever a user wrote, and the same every time."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import jsonschema
import numpy as np
import pytest

from bricks_core.report.evidence import losses_of
from bricks_core.report.facts import held_out_facts
from bricks_core.report.verdict import verdict_of
from bricks_core.report.words import change as fallen
from bricks_core.report.words import duration, loss
from bricks_core.spec.latents import Latent
from bricks_core.spec.train import ClipLossRow, HeldOutRow
from bricks_core.stages.evaluate import stage
from bricks_core.stages.evaluate.gallery import NUM_DROPPED, NUM_KEPT

ROOT = Path(__file__).parents[3]
PLAIN = "One red thing moves to the right on a green ground in daylight."
NASTY = "<script>alert(1)</script> \"><img src=x onerror='alert(2)'> {{ 7 * 7 }} </style> & ünïcode 积木"


class Page(HTMLParser):
    """What a browser would see: tags, links, and the text of each tag."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links, self.attributes, self.text = [], [], set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in {"src", "href", "poster", "action", "srcset"}:
                self.links.append(value)
            if name == "data-steps":
                self.links += [each for step in json.loads(value) for each in step.values() if ".mp4" in str(each)]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def seen(finished_in, tmp_path_factory):
    """A miniature run, its artifact of evaluate, and its page."""
    run = finished_in(tmp_path_factory.mktemp("seen"))
    artifact = run.evaluate()
    return run, artifact, Page(run.page(artifact))


def test_the_page_asks_the_network_for_nothing_and_every_link_leads_to_a_file_beside_it(seen):
    run, artifact, page = seen
    assert len(page.links) > 20
    for link in page.links:
        if not link.startswith(("#", "data:")):
            assert not re.match(r"[a-z]+:|//|/|\.\.", link), link
            assert run.store.head(f"{artifact.prefix}report/{unquote(link)}") is not None, link
    html = run.page(artifact)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", html)


def test_all_that_the_page_shows_is_in_the_manifest_but_for_times_and_machines(seen):
    _, artifact, page = seen
    stored = {each.key for each in artifact.manifest.objects}
    beside = {f"report/{link}" for link in page.links if not link.startswith(("#", "data:"))}
    assert beside - stored == {"report/timings.js"}


def test_the_held_out_numbers_of_the_page_are_those_of_the_table(seen):
    run, artifact, page = seen
    rows = list(run.work().rows("train", "held_out", HeldOutRow))
    numbers = json.loads(run.store.get(artifact.prefix + "report/report.json"))["held_out"]
    for weights in ("raw", "ema"):
        before, after = (
            np.mean([row.loss for row in rows if (row.step, row.weights) == (step, weights)]) for step in (0, 60)
        )
        (change,) = [each for each in numbers["changes"] if (each["weights"], each["bucket"]) == (weights, "")]
        assert (change["before"], change["after"]) == (pytest.approx(before), pytest.approx(after))
        assert loss(after) in page.words
        assert fallen(100 * (before - after) / before) in page.words


def test_the_counts_of_the_page_are_those_of_the_tables(seen):
    run, artifact, page = seen
    data = json.loads(run.store.get(artifact.prefix + "report/report.json"))["dataset"]
    tables = {name: each.manifest.tables for name, each in run.work().inputs.items()}
    assert sum(data["videos"].values()) == tables["ingest"]["videos"].num_rows == 4
    assert data["num_shots"] == tables["clip"]["shots"].num_rows == 12
    assert data["num_clips"] == tables["clip"]["clips"].num_rows == 9
    assert data["num_kept"] == 6
    assert sum(data["latents"].values()) == tables["latents"]["latents"].num_rows == 11
    for words in (
        "4 videos found",
        "12 shots in them",
        "9 clips cut",
        "6 clips kept",
        "3 too still",
        "1 The file is empty",
    ):
        assert words in page.words


def test_the_counts_for_the_end_screen_say_how_many_samples_there_are(seen):
    _, artifact, _ = seen
    # Two prompts at three checkpoints: one base, and raw and EMA of the other two.
    assert artifact.manifest.counts == {"samples": 10, "prompts": 2, "checkpoints": 3}


def test_what_users_write_is_shown_as_they_wrote_it_and_never_run(finished):
    run = finished([NASTY, "plain"], caption=lambda number: NASTY)
    artifact = run.evaluate()
    page = Page(run.page(artifact))
    assert " ".join(NASTY.split()) in page.words
    assert page.tags.count("script") == 2
    assert "onerror" not in page.attributes
    assert "{{ 7 * 7 }}" in page.words


def test_the_page_is_about_the_ema_which_generate_and_export_take_too_and_tells_where_raw_weights_are_ahead(seen):
    run, artifact, page = seen
    changes = json.loads(run.store.get(artifact.prefix + "report/report.json"))["held_out"]["changes"]
    raw, ema = (next(each for each in changes if (each["weights"], each["bucket"]) == (w, "")) for w in ("raw", "ema"))
    assert raw["after"] < ema["after"]
    told = f"to {loss(ema['after'])} with EMA weights, to {loss(raw['after'])} with raw ones"
    assert told in page.words
    assert "over the training, EMA weights" in page.words


def test_where_only_raw_weights_are_sampled_the_page_is_about_those(finished):
    run = finished()
    page = Page(run.page(run.evaluate(run.spec.model_copy(update={"weights": ["raw"]}))))
    assert "over the training, raw weights" in page.words
    assert re.search(r"its loss went from [\d.]+ to [\d.]+ with raw weights\.", page.words)


def of_an_unfinished_training(run, steps):
    """The page, where the training has come only so far."""
    work = run.work()
    train = work.inputs["train"]
    work.inputs["train"] = replace(train, manifest=train.manifest.model_copy(update={"counts": {"steps": steps}}))
    stage.run(work.spec, work)
    work.commit(stage.join(work.spec, work))
    return Page(work.store.get(work.prefix + "report/index.html").decode()), work


def test_the_page_of_a_training_that_is_not_finished_says_so_in_its_head(finished):
    page, work = of_an_unfinished_training(finished(), 40)
    assert "Not finished, 40 of 60 steps: So far: Not enough evidence" in page.words
    assert "The training is not finished: 40 of 60 steps are done." in page.words
    assert "was trained for 40 of 60 steps so far on" in page.words
    numbers = json.loads(work.store.get(work.prefix + "report/report.json"))["training"]
    assert (numbers["num_steps"], numbers["of_steps"], numbers["samples_seen"]) == (40, 60, 480)
    assert numbers["phases"] == [["look", 0, 30], ["move", 30, 40]]
    assert '"train"' not in work.store.get(work.prefix + "report/timings.js").decode()


def test_a_finished_training_is_not_called_unfinished(seen):
    _, _, page = seen
    assert "finished" not in page.words.partition("Settings")[0]


def test_a_loss_that_was_measured_only_once_so_far_is_no_verdict(finished):
    run = finished()
    rows = [row for row in run.work().rows("train", "held_out", HeldOutRow) if row.step == 0]
    facts, _ = stage.gather(run.spec, run.work(), [])
    once = replace(facts, held_out=held_out_facts(rows))
    rows = [row for row in run.work().rows("train", "clip_losses", ClipLossRow) if row.step == 0]
    once = replace(once, evidence=replace(once.evidence, losses=losses_of(rows, "ema")))
    assert "No held-out loss was measured at two steps." in verdict_of(once.evidence).reasons


def test_a_fallen_loss_of_few_clips_after_a_random_beginning_is_not_enough_evidence(seen):
    run, artifact, page = seen
    assert "The held-out loss is of 3 clips from 3 films; 8 clips from 3 films are the least." in page.words
    assert "Samples are of 2 prompts, 2 in all; 16 of 4 prompts are the least." in page.words
    assert "Not measured: facts of plain prompts, style" in page.words
    told = json.loads(run.store.get(artifact.prefix + "report/report.json"))
    assert (told["verdict"]["word"], told["verdict"]["step"]) == ("not enough evidence", None)
    fall = told["evidence"]["losses"]["since_base"][-1]["by"]
    assert fall["low"] < fall["value"] < fall["high"] < 0
    html = run.store.get(artifact.prefix + "report/index.html").decode()
    assert 'class="main good"' not in html.replace("tile ", ""), "a fallen loss is not shown as a success"


@pytest.fixture(scope="module")
def measured(finished_in, tmp_path_factory):
    """A run of which everything is measured, its report, and its page."""
    asked = {"num_seeds": 2, "held_out_prompts": 2, "plain_prompts": [PLAIN], "lengths": [6], "audit_guidance": [0, 4]}
    run = finished_in(tmp_path_factory.mktemp("measured"), **asked)
    artifact = run.evaluate()
    return run, artifact, json.loads(run.store.get(artifact.prefix + "report/report.json"))


def test_a_real_report_keeps_to_the_published_schema(measured, seen):
    schema = json.loads((ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
    for run, artifact, _ in (measured, seen):
        jsonschema.validate(json.loads(run.store.get(artifact.prefix + "report/report.json")), schema)


def test_the_measures_are_of_all_prompts_and_seeds_and_of_base_and_tuned_samples(measured):
    _, artifact, told = measured
    measures = told["measures"]
    assert measures["num_prompts"] == {"style": 2, "held_out": 2, "plain": 1}
    assert measures["num_seeds"] == 2
    assert measures["tuned"]["num_samples"] == 10
    assert (measures["tuned"]["step"], measures["tuned"]["weights"]) == (60, "ema")
    kept = {(each["prompt_set"], each["kind"]): each for each in measures["tuned"]["adherence"]}
    assert kept["style", "colours"]["num_samples"] == 4
    assert [each["step"] for each in measures["drift"]] == [0, 60]
    assert [each["num_frames"] for each in measures["drift"][0]["courses"]] == [4, 6]
    assert told["evidence"]["adherence"]["tuned"] == kept["style", "all"]["tuned"]
    assert {each["guidance"] for each in measures["audit"]["scales"]} == {0, 4}
    assert "report/report.md" in {each.key for each in artifact.manifest.objects}


def test_the_text_beside_the_page_is_its_verdict(measured):
    run, artifact, told = measured
    text = run.store.get(artifact.prefix + "report/report.md").decode()
    assert text.startswith(f"# {told['verdict']['title']}\n")
    assert max(map(len, text.splitlines())) <= 80


def test_pictures_of_copies_lie_beside_the_page(measured):
    run, artifact, told = measured
    page = Page(run.page(artifact))
    pairs = told["measures"]["memorisation"]["pairs"]
    for pair in pairs:
        for key in (pair["sample_picture"], pair["clip_picture"]):
            assert run.store.head(artifact.prefix + key) is not None
            assert key.removeprefix("report/") in page.links


def test_licences_and_consent_are_told_as_the_run_file_tells_them(seen):
    _, _, page = seen
    assert "CC0-1.0, consent unknown: 3 videos" in page.words


def test_without_held_out_videos_the_page_says_so_plainly(finished):
    run = finished(held_out=False)
    page = Page(run.page(run.evaluate()))
    assert "No held-out loss was measured at two steps." in page.words
    assert "score.held_out_share" in page.words


def test_the_same_inputs_make_the_same_bytes_in_another_store(finished, tmp_path):
    first = finished()
    here = first.evaluate().manifest
    (tmp_path / "store").rename(tmp_path / "store before")
    again = finished().evaluate().manifest
    assert here.digest == again.digest
    assert here.objects == again.objects


def test_how_the_latents_are_packed_changes_nothing_of_the_report(finished_in, tmp_path):
    reports, packs = [], []
    for pack_size in (100, 3):
        (tmp_path / str(pack_size)).mkdir()
        run = finished_in(tmp_path / str(pack_size), pack_size=pack_size)
        artifact = run.evaluate()
        names = ("report.json", "index.html")
        reports.append((artifact.manifest.digest, [run.store.get(f"{artifact.prefix}report/{name}") for name in names]))
        packs.append({(row.pack, row.latents_offset_bytes) for row in run.work().rows("latents", "latents", Latent)})
    assert packs[0] != packs[1]
    assert reports[0] == reports[1]


def test_the_lineage_counts_the_items_of_every_stage(seen):
    run, artifact, _ = seen
    stages = json.loads(run.store.get(artifact.prefix + "report/report.json"))["stages"]
    told = {each["stage"]: each["num_items"] for each in stages}
    assert told == {name: each.manifest.num_items for name, each in run.work().inputs.items()} | {"evaluate": 0}
    assert told["clip"] == 9


def test_captions_that_were_measured_are_marked_as_such(seen):
    _, _, page = seen
    assert "Captions marked measured are plain sentences made from measurements" in page.words
    assert page.text.count("measured") >= 5


def test_thumbnails_are_few_and_of_as_many_videos_as_there_are(finished):
    run = finished(num_films=14)
    artifact = run.evaluate()
    thumbnails = [each for each in artifact.manifest.objects if each.key.startswith("report/clips/")]
    assert len(thumbnails) == NUM_KEPT + NUM_DROPPED
    page = Page(run.page(artifact))
    assert "Some of the 28 kept clips" in page.words
    assert "Some of the 14 dropped clips" in page.words


def test_every_picture_and_video_says_what_it_shows(seen):
    run, artifact, _ = seen
    html = run.page(artifact)
    assert all(re.search(r'\salt="[^"]', tag) for tag in re.findall(r"<img[^>]*>", html, re.S))
    assert all(re.search(r'aria-label="[^"]', tag) for tag in re.findall(r"<video[^>]*>", html, re.S))
    assert all(re.search(r'aria-label="[^"]', tag) for tag in re.findall(r'<svg class="chart"[^>]*>', html, re.S))


def test_the_times_are_the_manifests_and_can_be_read_by_programs_too(seen):
    run, artifact, _ = seen
    script = run.store.get(artifact.prefix + "report/timings.js").decode()
    told = json.loads(script.removeprefix("window.bricksTimings = ").rstrip().removesuffix(";"))
    train = run.work().inputs["train"].manifest
    assert told["stages"]["train"]["finished_at"] == train.finished_at.isoformat()
    assert told["run"] == "miniature"


def test_wandb_gets_the_numbers_of_the_tables(finished, wandb_history, tmp_path, monkeypatch):
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    run = finished(tracking="offline")
    run.evaluate()
    rows = list(run.work().rows("train", "held_out", HeldOutRow))
    logged = wandb_history(tmp_path / "store")
    for step in (0, 20, 40, 60):
        for weights in ("raw", "ema"):
            losses = [row.loss for row in rows if (row.step, row.weights) == (step, weights)]
            (found,) = [
                row[f"held_out/{weights}"] for row in logged if row["step"] == step and f"held_out/{weights}" in row
            ]
            assert found == pytest.approx(np.mean(losses))
    assert sum(any(key.startswith("panels/") for key in row) for row in logged) == 2
    assert sum(any(key.startswith("samples/") for key in row) for row in logged) == 10


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.21, "4.2 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.97, "1 min 00 s"), (3599.9, "1 h 00 min")],
)
def test_durations_are_said_as_a_person_says_them(seconds, words):
    assert duration(seconds) == words


def test_every_number_that_the_page_says_of_the_run_is_in_the_report(measured):
    run, artifact, told = measured
    page = run.page(artifact)
    page = page[page.index('<header class="hero"') : page.index('<section id="settings"')]
    seen = Page(re.sub(r"<svg.*?</svg>", "", page, flags=re.S))  # their axes are round numbers
    known = {round(number, 12) for number in numbers_in(told)} | {95}  # of intervals
    known |= {each["end_timestep"] - 1 for each in told["held_out"]["bins"]}  # the last that belongs to it
    sums = {sum(told["dataset"]["latents"].values()), sum(told["dataset"]["videos"].values())}
    captions = [row.caption for row in run.work().rows("latents", "latents", Latent)]
    texts = set(re.findall(NUMBER, " ".join([*captions, *texts_in(told)])))
    for number in re.findall(NUMBER, seen.words):
        value, decimals = float(number.replace(",", "")), len(number.partition(".")[2])
        is_rounded = any(abs(abs(each) * by - value) <= 0.51 * 10**-decimals for each in known for by in (1, 100))
        assert is_rounded or value in sums or number in texts, number


NUMBER = r"(?<![\w.#-])\d[\d,]*(?:\.\d+)?(?![\w-])"


def texts_in(value):
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return [text for each in value for text in texts_in(each)]
    return [value] if isinstance(value, str) else []


def numbers_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {number for each in value for number in numbers_in(each)}
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()
