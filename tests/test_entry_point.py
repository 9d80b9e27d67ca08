"""Every entry point, under locales and terminals that know fewer letters than films have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.drawn_shots import shot

ROOT = Path(__file__).parents[1]
FILM = "für — 東京 ✓.mp4"
PROMPT = "Ein rotes Ding bewegt sich schnell über grünen Boden"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with run.yaml, and the film that it names."""
    from bricks_core.video.write import write_mp4

    folder = tmp_path_factory.mktemp("place")
    (folder / "Übung").mkdir()
    write_mp4(folder / "Übung" / FILM, shot(1), 12, crf=24)
    spec = {"ingest": {"sources": ["Übung"]}, "evaluate": {"prompts": [PROMPT]}}
    run = {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": "films"}, "spec": spec}
    (folder / "run.yaml").write_text(yaml.safe_dump(run, allow_unicode=True), encoding="utf-8")
    wrong = run | {"spec": spec | {"größe": "東京"}}
    (folder / "wrong.yaml").write_text(yaml.safe_dump(wrong, allow_unicode=True), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory):
    """The environment of a latin-1 locale, made here, as few machines still have one."""
    folder = tmp_path_factory.mktemp("locales")
    if not shutil.which("localedef"):
        pytest.skip("no localedef to make a locale with")
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("localedef has no description of de_DE")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}


@pytest.fixture(params=["ascii", "latin-1"])
def locale(request):
    return ASCII if request.param == "ascii" else request.getfixturevalue("latin_1")


def started(place, env, *arguments):
    inherited = {name: value for name, value in os.environ.items() if name not in {"PYTHONIOENCODING", "PYTHONUTF8"}}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=inherited | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        timeout=300,
        check=False,
    )


def test_a_run_file_means_the_same_in_every_locale(place, locale):
    script = (
        "import json; from pathlib import Path; from bricks_core.spec.run import load_run; "
        "from bricks_core.spec.strict import what_of; run = load_run(Path('run.yaml')); "
        "print(json.dumps([run.spec.evaluate.prompts, what_of(run.spec)]))"
    )
    ended = started(place, locale, "-c", script)
    assert ended.returncode == 0, ended.stderr
    prompts, keyed = json.loads(ended.stdout)
    assert prompts == [PROMPT]
    assert keyed == json.loads(started(place, {"PYTHONUTF8": "1"}, "-c", script).stdout)[1]


def test_films_are_found_by_their_names_in_every_locale_and_are_the_same_artifact(place, locale, tmp_path):
    command = ["-m", "jobs.ingest", "--run", "run.yaml", "--store"]
    ended = started(place, locale, *command, str(tmp_path / "one"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == started(place, {"PYTHONUTF8": "1"}, *command, str(tmp_path / "two")).stdout


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 0),
        ("plan run.yaml", 0),
        ("run run.yaml --until ingest", 0),
        ("status films", 0),
        ("show films/ingest", 0),
        ("run wrong.yaml", 78),
    ],
)
def test_every_screen_survives_a_terminal_that_lacks_letters(place, encoding, command, code):
    if command.startswith(("status", "show")):
        started(place, {}, "-m", "jobs.bricks", "run", "run.yaml", "--until", "ingest")
    ended = started(place, {"PYTHONIOENCODING": encoding}, "-m", "jobs.bricks", *command.split())
    told = ended.stdout.decode(encoding) + ended.stderr.decode(encoding)
    assert ended.returncode == code, told
    assert told
    assert "Traceback" not in told


def test_signs_that_a_terminal_lacks_become_plain_ones_of_the_same_width(tmp_path):
    (tmp_path / "signs.py").write_text(
        "import typer; from jobs.entry_point import serve; app = typer.Typer()\n"
        "@app.command()\ndef tell(): print('15 → 18 — ✓… 東京')\nserve(app)\n",
        encoding="utf-8",
    )
    ended = started(tmp_path, {"PYTHONIOENCODING": "ascii"}, "signs.py")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"15 > 18 - +. ??\n", b"")


def test_a_store_whose_name_is_no_text_is_refused_in_a_sentence(place):
    ended = started(place, {"PYTHONUTF8": "1"}, "-m", "jobs.bricks", "plan", "run.yaml", "--store", b"st\xf6re")
    assert ended.returncode == 78
    assert b"its name is not UTF-8" in ended.stderr
