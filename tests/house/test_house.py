"""The house (docs/house.md), checked: every stage has all its packages and files, and no name says nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bricks_core.spec.run import RunSpec
from bricks_core.spec.stages import STAGES

ROOT = Path(__file__).parents[2]
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc", "core"}
HEAVY = {
    *("aiohttp", "av", "boto3", "cv2", "diffusers", "kopf", "kubernetes"),
    *("openai", "pyarrow", "torch", "transformers", "wandb"),
}


def python_files():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_its_place_on_every_floor(stage):
    places = {
        "entry point": ROOT / "jobs" / f"{stage}.py",
        "contract": ROOT / "bricks_core/spec" / f"{stage}.py",
        "work": ROOT / "bricks_core/stages" / stage / "stage.py",
        "tests": ROOT / "tests/stages" / stage,
        "page": ROOT / "docs" / f"{stage}.md",
        "image": ROOT / "images" / stage / "Dockerfile",
    }
    assert [name for name, path in places.items() if not path.exists()] == []
    assert stage in RunSpec.model_fields


def test_no_package_has_a_name_that_says_nothing():
    parts = {part.removesuffix(".py") for file in python_files() for part in file.parts}
    assert parts & NAMES_THAT_SAY_NOTHING == set()


def test_every_text_names_its_encoding():
    """ruff's PLW1514 says so of what it knows to be a path; here, of everything that is called like one's methods."""
    found = []
    for file in python_files():
        for call in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and all(each.arg != "encoding" for each in call.keywords):
                method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
                is_text = len(call.args) <= {"read_text": 0, "write_text": 1}.get(method, -1)
                asks_text = any(each.arg == "text" and ast.unparse(each.value) == "True" for each in call.keywords)
                if is_text or asks_text:
                    found.append(f"{file}:{call.lineno}")
    assert found == []


def test_the_command_line_starts_without_anything_heavy():
    code = "import sys, jobs.bricks; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    assert set(loaded.stdout.split()) & HEAVY == set()


def test_the_contract_the_store_and_the_controller_load_no_torch():
    code = (
        "import sys, bricks_core.spec.run, bricks_core.storage.work, bricks_core.pipeline.local, "
        "bricks_core.pipeline.screen, bricks_core.controller.handlers, jobs.controller; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    assert set(loaded.stdout.split()) & {"torch", "diffusers", "transformers", "av", "cv2", "wandb", "openai"} == set()


def test_every_exit_code_that_a_class_has_is_explained_to_users():
    from bricks_core import errors

    codes = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    page = (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")
    assert [code for code in codes if not re.search(rf"^\| {code} ", page, re.M)] == []


def test_every_page_named_in_the_readme_and_the_docs_is_there():
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []
