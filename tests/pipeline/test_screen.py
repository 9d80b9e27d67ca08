"""What a person sees: what is stale and why, who is at a run, what is pending, and commands that can be repeated."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from bricks_core.errors import DataError, TryLater, UsageError
from bricks_core.exchange.datasets.dataset import Dataset
from bricks_core.pipeline import layout
from bricks_core.pipeline import screen as screens
from bricks_core.pipeline.garbage import Garbage, Swept
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.pending import to_try_again
from bricks_core.pipeline.plan import Step, make_plan
from bricks_core.pipeline.points import Pointer, point
from bricks_core.pipeline.resolve import pending_again
from bricks_core.pipeline.screen import artifact_screen, final_screen, garbage_screen, plan_screen, status_screen
from bricks_core.spec.items import recipe
from bricks_core.spec.manifest import Manifest, Try
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import MANIFEST, artifact_prefix, find_manifest
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Bundle, Items
from bricks_core.storage.places import open_store
from jobs.bricks import app


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 60 columns."""
    monkeypatch.setattr(layout, "console", lambda: Console(width=60))


def pointed(store, stage, digest, **inputs):
    point("films", store, Pointer(stage=stage, digest=digest, cache_key=digest, spec={}, inputs=inputs))


def line(screen, word):
    return next(each for each in screen.splitlines() if word in each)


def test_a_stage_that_was_made_from_another_input_is_stale_and_says_so(store, capsys):
    pointed(store, "ingest", "a" * 32)
    pointed(store, "clip", "b" * 32, ingest="a" * 32)
    pointed(store, "score", "c" * 32, ingest="a" * 32, clip="b" * 32)
    pointed(store, "clip", "d" * 32, ingest="a" * 32)
    status_screen(store, None)
    screen = capsys.readouterr().out
    assert re.search(r"clip +done +clip/dddddddddddd", screen)
    assert re.search(r"score +stale +clip has changed since: score/cccccccccccc", screen)
    assert re.search(r"caption +pending", screen)


def test_status_says_who_is_at_a_run(store, capsys):
    pointed(store, "ingest", "a" * 32)
    with Claims(store, "bricks run films") as claims:
        claims.take("run/films")
        status_screen(store, "films")
        claims.release("run/films")
    assert "Run films is under way: bricks run films (process" in capsys.readouterr().out
    status_screen(store, "films")
    assert "under way" not in capsys.readouterr().out


def test_a_run_that_need_not_wait_leaves_and_says_who_is_at_it(store, drawn_films, run_of, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(run_of(drawn_films).model_dump(mode="json", by_alias=True, exclude_unset=True)), encoding="utf-8"
    )
    with Claims(store, "bricks run films") as claims:
        claims.take("run/films")
        with pytest.raises(TryLater, match=r"Run films is under way: bricks run films \(process \d+ on this machine"):
            app(["run", str(file), "--store", store.uri, "--no-wait"], standalone_mode=False)
        claims.release("run/films")


def test_status_keeps_the_words_of_the_heartbeat(store, capsys):
    beat = {"state": "running", "done": 3, "total": 9, "unit": "films", "time": "12:00", "note": "a.mp4"}
    store.put("runs/films/status/ingest.json", json.dumps(beat).encode())
    status_screen(store, "films")
    assert "3/9 films, a.mp4, as of 12:00" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_a_sentence(store):
    pointed(store, "ingest", "a" * 32)
    with pytest.raises(DataError, match=r"has no run film.*films"):
        status_screen(store, "film")


def test_stale_captions_are_not_exported(store):
    pointed(store, "ingest", "a" * 32)
    pointed(store, "clip", "b" * 32, ingest="a" * 32)
    pointed(store, "score", "c" * 32, ingest="a" * 32, clip="b" * 32)
    pointed(store, "caption", "d" * 32, ingest="a" * 32, clip="b" * 32, score="c" * 32)
    with pytest.raises(DataError, match="caption is not finished"):  # they would be, if they were there
        Dataset.of(store, "films")
    pointed(store, "score", "e" * 32, ingest="a" * 32, clip="b" * 32)
    with pytest.raises(DataError, match=r"stale \(score has changed since\).*bricks run FILE --until caption"):
        Dataset.of(store, "films")


@pytest.fixture
def done(store, drawn_films, run_of):
    run = run_of(drawn_films, score={"held_out_share": 0.4})
    return run, run_path(run, store, "score")


def test_the_next_commands_repeat_what_was_overridden(store, done, capsys):
    run, manifests = done
    overrides = ["score.held_out_share=0.4", "caption.forbidden_words=['a b']"]
    again = """'my run.yaml' --set score.held_out_share=0.4 --set 'caption.forbidden_words=['"'"'a b'"'"']'"""
    final_screen(Path("my run.yaml"), run, store, manifests, overrides)
    assert f"bricks run {again} --store {store.uri}\n" in capsys.readouterr().out
    plan_screen(run, store, make_plan(run, store, "caption"), Path("my run.yaml"), overrides, "caption")
    assert f"bricks run {again} --store {store.uri} --until caption\n" in capsys.readouterr().out


def test_a_plan_with_nothing_to_do_has_no_next_command(store, done, capsys):
    plan_screen(done[0], store, make_plan(done[0], store, "score"), Path("run.yaml"))
    assert "Next" not in capsys.readouterr().out


def test_plan_and_show_read_no_record_and_no_file_of_an_item(store, done, capsys, monkeypatch):
    run, manifests = done
    real, read = type(store).local, []

    def told(self, key, **settings):
        read.append(key)
        return real(self, key, **settings)

    monkeypatch.setattr(type(store), "local", told)
    monkeypatch.setattr(Bundle, "records", lambda self, wanted: pytest.fail("records are read"))
    plan_screen(run, store, make_plan(run, store, "score"), Path("run.yaml"))
    artifact_screen(store, "films/clip", 2, False)
    assert not any(key.startswith("items/") for key in read)
    screen = capsys.readouterr().out
    manifest = manifests["clip"]
    assert f"items     {manifest.num_items}, {manifest.num_item_objects} files" in screen
    assert "--thorough reads the files of its items" in screen


def test_with_thorough_an_altered_file_of_an_item_is_told(store, done):
    clip = next(entry.key for entry in store.list("items/clip/") if entry.key.endswith(".mp4"))
    data = bytearray(store.get(clip))
    data[100] ^= 1
    store.put(clip, bytes(data))
    artifact_screen(store, "films/clip", 0, False)
    with pytest.raises(DataError, match="1 objects are not what was committed"):
        artifact_screen(store, "films/clip", 0, True)


def stopped(store, digest, *limits):
    """An artifact of ingest in which so many films are pending, each for its limits."""
    pending = [
        Try(kind="film", key="a" * 32, reason="It took longer than 60 s.", limits={f"ingest.{name}": limit})
        for each in limits
        for name, limit in each.items()
    ]
    manifest = Manifest(
        stage="ingest",
        stage_version=3,
        digest=digest,
        spec={},
        inputs={},
        code_version="test",
        tables={},
        pending=pending,
        started_at=datetime.now(UTC),
        finished_at=datetime.now(UTC),
    )
    store.put(artifact_prefix("ingest", digest) + MANIFEST, manifest.model_dump_json().encode())


def test_what_a_limit_stopped_is_shown_with_its_reason_and_how_to_try_again(store, capsys):
    stopped(store, "a" * 32, {"decode_timeout_s": 60}, {"decode_memory_bytes": float(4 << 30)})
    pointed(store, "ingest", "a" * 32)
    artifact_screen(store, "films/ingest", 5, False)
    screen = capsys.readouterr().out
    assert "2 pending" in screen
    assert "film/aaaaaaaaaaaa  It took longer than 60 s. (ingest.decode_timeout_s 60)" in screen
    assert "(ingest.decode_memory_bytes 4294967296)" in screen
    again = "--set ingest.decode_timeout_s=120 --set ingest.decode_memory_bytes=8589934592"
    assert f"bricks run FILE {again} --store {store.uri}\n" in screen


def test_status_says_what_is_pending_in_what_is_done_and_how_to_try_again(store, capsys):
    stopped(store, "a" * 32, {"decode_timeout_s": 60}, {"decode_timeout_s": 90.5}, {"not_in_the_file_s": 1})
    pointed(store, "ingest", "a" * 32)
    status_screen(store, None)
    screen = capsys.readouterr().out
    told = r"ingest +done +3 pending: ingest\.decode_timeout_s, ingest\.not_in_the_file_s: ingest/aaaaaaaaaaaa"
    assert re.search(told, screen)
    again = f"bricks run FILE --set ingest.decode_timeout_s=181 --store {store.uri}\n"
    assert again in screen
    with Claims(store, "bricks run films") as claims:
        claims.take("run/films")
        status_screen(store, "films")
    assert "Next" not in capsys.readouterr().out  # somebody is at it


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[1]"])
def test_status_outlasts_a_manifest_that_cannot_be_read(store, capsys, manifest):
    store.put(artifact_prefix("ingest", "a" * 32) + MANIFEST, manifest)
    pointed(store, "ingest", "a" * 32)
    status_screen(store, None)
    assert re.search(r"ingest +done +ingest/aaaaaaaaaaaa", capsys.readouterr().out)


def test_an_override_to_try_again_is_one_under_which_it_is_tried_again(store, run_of, drawn_films):
    stopped(store, "a" * 32, {"decode_timeout_s": 60}, {"decode_timeout_s": 90.5, "decode_memory_bytes": 2.0**30})
    manifest = find_manifest(store, "ingest", "a" * 32)
    overrides = dict(each.removeprefix("ingest.").split("=") for each in to_try_again(manifest.pending))
    fields = {name: yaml.safe_load(value) for name, value in overrides.items()}
    assert pending_again(run_of(drawn_films, ingest=fields), manifest) == manifest.pending


def test_tables_fit_sixty_columns(store, done, capsys, narrow):
    pointed(store, "clip", "d" * 32, ingest="a" * 32)
    status_screen(store, None)
    cost = {"seconds": 45 * 3600.0, "calls": 48000.0, "tokens": 23_500_000.0}
    paid = {"answer": Swept(24000, 33_000_000, cost, is_lower_bound=True)}
    garbage_screen(Garbage(items={"clip": Swept(100_000, 10**11, {"seconds": 1e6})}, paid=paid), deleted=False)
    screen = capsys.readouterr().out
    tables = [each for each in screen.splitlines() if each.startswith(" ")]
    assert max(map(len, tables)) <= 60
    assert "at least" in screen
    assert "stale" in screen


def test_what_made_an_item_is_told_by_the_key_of_its_file(store, tmp_path, narrow, capsys):
    made = recipe("clip", sha256="ab" * 32, span=[0, 24], encoder={"crf": 20})
    (tmp_path / "clip.mp4").write_text("a clip", encoding="utf-8")
    stored = Items(store).put_file(made.key, tmp_path / "clip.mp4", ".mp4")
    Items(store).put(made, {"width_px": 64}, [stored], cost={"seconds": 1.5})
    for key in (stored.key, made.key.record):
        artifact_screen(store, key, 5, False)
        told = capsys.readouterr().out
        assert "clips cut" in told
        assert "crf: 20" in told
        assert "width_px: 64" in told
        assert "1.5 seconds" in told
    for wrong, error in (("items/clip/aa/" + "a" * 32, DataError), ("items/foo/aa/b", UsageError)):
        with pytest.raises(error):
            artifact_screen(store, wrong, 5, False)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_head_of_a_table_names_its_columns_however_narrow_it_is(store, done, capsys, monkeypatch, width):
    monkeypatch.setattr(layout, "console", lambda: Console(width=width))
    artifact_screen(store, "films/clip", 5, False)
    screen = capsys.readouterr().out
    assert re.search(r"^ +(source_sha256|sha256) ", screen, re.MULTILINE)
    assert screen.count("source_sha256") >= 2  # of clips and of images
    assert max(map(len, screen.splitlines()[6:-1])) <= width


def test_the_end_of_a_run_and_a_plan_say_what_is_pending(store, done, capsys):
    run, manifests = done
    stopped = Try(kind="film", key="a" * 32, reason="No frame for 60 s.", limits={"ingest.decode_timeout_s": 60})
    ingest = manifests["ingest"].model_copy(update={"pending": [stopped]})
    final_screen(Path("run.yaml"), run, store, manifests | {"ingest": ingest})
    screen = capsys.readouterr().out
    assert "1 of ingest is pending: a limit stopped it; bricks show films/ingest --store" in screen
    assert f"bricks run run.yaml --set ingest.decode_timeout_s=120 --store {store.uri}\n" in screen
    cached = Step(STAGES["ingest"], "cached", [], manifest=ingest)
    plan_screen(run, store, [cached])
    assert "1 pending: ingest.decode_timeout_s" in capsys.readouterr().out


def test_a_stage_is_announced_in_one_line_that_holds_what_looks_like_markup(capsys):
    why = ["ingest.sources.0.path: films of a long name/[red]/and more of it → other films/[/bold]/and still more"]
    screens.announce(Step(STAGES["ingest"], "to run", why))
    assert capsys.readouterr().err == f"▸ ingest    {why[0]}\n"
