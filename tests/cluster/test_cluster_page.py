"""docs/cluster.md, held to what is there: its commands, its files, its links, its values and its reasons."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import helm_python
import pytest
import typer.main
import yaml

from bricks_core.controller.retries import RULES
from bricks_core.spec.run import BrickRun, load_run
from jobs.bricks import app

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cluster.md"
TEXT = PAGE.read_text(encoding="utf-8")
VERBS = {"install", "upgrade"}
Values = dict[str, Any]
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", TEXT, re.DOTALL | re.MULTILINE)


def shell_lines() -> list[str]:
    """The commands of all shell blocks, without comments, continued lines joined."""
    text = "\n".join(block for kind, block in BLOCKS if kind == "sh").replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*$", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def commands(program: str) -> list[str]:
    """What the page calls of a program, in blocks and in running text, where it says more than the program's name."""
    inline = re.findall(rf"`({program} [^`…]+)`", TEXT.replace("\n", " "))
    return sorted({line for line in [*shell_lines(), *inline] if line.startswith(program + " ")})


@pytest.mark.parametrize("command", commands("bricks"))
def test_every_bricks_command_on_the_page_can_be_called_so(command):
    place: click.Command = typer.main.get_command(app)
    context = click.Context(place)
    words = shlex.split(command)[1:]
    while isinstance(place, click.Group) and words:
        found = place.get_command(context, words.pop(0))
        assert found is not None, command
        place = found
    # In running text a command may be named without what it wants: then its name alone is held.
    if words or command in shell_lines():
        place.make_context(place.name, words)


def test_the_page_shows_all_that_can_be_done_with_a_run_on_a_cluster():
    shown = {shlex.split(command)[1] for command in commands("bricks")}
    assert {"submit", "status", "logs", "suspend", "resume", "cancel", "doctor", "render"} <= shown


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:k8s|helm|docs|images)/[\w./-]*\w", TEXT))))
def test_every_file_the_page_names_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", TEXT))))
def test_every_page_it_leads_to_is_there(link):
    assert (PAGE.parent / link).exists()


def test_every_section_it_leads_to_is_on_it():
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in TEXT.splitlines()}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings


def test_every_value_it_sets_is_one_of_the_charts():
    called = [words for line in shell_lines() if (words := shlex.split(line))[0] == "helm" and words[1] in VERBS]
    assert {words[1] for words in called} == VERBS
    for words in called:
        values: Values = {}
        for _, setting in (pair for pair in pairwise(words) if pair[0] == "--set"):
            name, value = setting.split("=", 1)
            *way, last = name.split(".")
            place = values
            for part in way:
                place = place.setdefault(part, {})
            place[last] = value
        if words[1] == "upgrade":  # what is reused
            values.setdefault("storage", {"s3": {"bucket": "bucket", "existingSecret": "secret"}})
        with helm_python.Chart.load(str(ROOT / "helm" / "bricks")) as chart:
            assert chart.render(values, name="bricks", namespace="bricks"), words


def test_the_namespace_of_its_commands_is_the_one_it_makes():
    named = set(re.findall(r"(?:-n|--namespace) (\w+)", "\n".join(shell_lines())))
    assert named == {
        yaml.safe_load((ROOT / "k8s/cluster/namespace.yaml").read_text(encoding="utf-8"))["metadata"]["name"]
    }


def test_its_yaml_of_a_run_is_a_runs():
    (snippet,) = (yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml" and "cluster:" in text)
    run = load_run(ROOT / "k8s/runs/quickstart.yaml").model_dump(mode="json")
    assert BrickRun.model_validate(run | {"spec": run["spec"] | snippet}).spec.cluster.nodes == 4


def test_it_says_what_follows_from_every_exit_code():
    table = TEXT[TEXT.index("## What happens when") : TEXT.index("## Who may do what")]
    for code in {code for rule in RULES for code in rule.codes} - {130}:  # 130 is ctrl-C's: nobody presses it here
        assert re.search(rf"\b{code}\b", table), code
