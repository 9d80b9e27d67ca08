"""What must hold of every Dockerfile and of the Bake file, as they are written. Building and running them is another
matter: `make images-test`."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from bricks_core.spec.stages import STAGES
from tests.images.definitions import ROOT, budget_bytes, dockerfiles, images, read_bake, read_dockerfile

TORCH = {"latents", "train", "evaluate"}
EXTRA = {"ingest": "video", "clip": "video", "score": "video"}
"""Of pyproject.toml, where it is not called as the image is."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECRET = re.compile(r"(?i)secret|token|passw|credential|api_?key|access_?key")
every_dockerfile = pytest.mark.parametrize("file", dockerfiles(), ids=lambda file: file.parent.name)
every_image = pytest.mark.parametrize("name", images())


def image_of(name):
    return read_dockerfile(ROOT / "images" / name / "Dockerfile")


def commands(image):
    """Every RUN of an image, as one text each."""
    return [each.value[0] for stage in image.stages for each in stage.of("RUN")]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run(
        [hadolint, "--no-color", "--config", ROOT / "images/hadolint.yaml", *dockerfiles()],
        capture_output=True,
        encoding="utf-8",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_every_stage_and_the_controller_have_an_image():
    # serve comes later; its place is kept in the house, not here.
    assert set(images()) == {name for name in STAGES if (ROOT / "jobs" / f"{name}.py").exists()} | {"controller"}


def test_every_image_is_a_target_of_the_bake_file_and_every_target_has_its_dockerfile():
    _, targets, default = read_bake()
    assert sorted(default) == images()
    assert {name: targets[name].dockerfile for name in default} == {
        name: ROOT / "images" / name / "Dockerfile" for name in images()
    }
    base = image_of("base")
    lower = {name: target for name, target in targets.items() if name not in default}
    assert {target.dockerfile for target in lower.values()} == {base.file}
    assert {target.stage for target in lower.values()} <= {stage.name for stage in base.stages}


@every_image
def test_the_bake_file_gives_a_dockerfile_the_floors_it_stands_on(name):
    target, image = read_bake()[1][name], image_of(name)
    floors = {argument: default for argument, default in image.arguments.items() if default}
    assert set(floors.values()) == set(target.contexts)
    assert {argument: default.upper().replace("-", "_") for argument, default in floors.items()} == {
        argument: argument for argument in floors
    }
    assert ("bricks-torch" in target.contexts) == (name in TORCH)


@pytest.mark.parametrize("name", sorted(read_bake()[1]))
def test_the_bake_file_gives_arguments_that_the_dockerfile_takes_and_no_other(name):
    variables, targets, _ = read_bake()
    target = targets[name]
    image = read_dockerfile(target.dockerfile)
    taken = {each.value[0].partition("=")[0] for stage in image.stages for each in stage.of("ARG")}
    taken |= {argument for argument, default in image.arguments.items() if default not in target.contexts}
    given = set(target.args) - {"SOURCE_DATE_EPOCH"}  # BuildKit takes it itself
    assert given == taken
    assert set(target.args.values()) <= set(variables)


@pytest.mark.parametrize("name", sorted(read_bake()[1]))
def test_an_argument_means_the_same_by_default_in_both(name):
    variables, targets, _ = read_bake()
    image = read_dockerfile(targets[name].dockerfile)
    written = dict(image.arguments) | {
        key: value
        for stage in image.stages
        for each in stage.of("ARG")
        for key, _, value in [each.value[0].partition("=")]
    }
    # A build by hand says nothing of what it is; Bake gives every image the release's name.
    same = {key: value.strip('"') for key, value in written.items() if key in variables and key != "VERSION"}
    assert same == {key: variables[key] for key in same}


def test_a_release_says_what_it_was_built_from_and_what_is_in_it():
    _, targets, default = read_bake()
    for name in default:
        assert targets[name].written["attest"] == ["type=provenance,mode=max", "type=sbom"]
        assert "rewrite-timestamp=true" in targets[name].written["output"][0]


@every_image
def test_an_image_installs_the_extra_of_its_stage_and_no_other(name):
    installed = re.findall(r'"\.\[(.+?)\]"', " ".join(commands(image_of(name))))
    assert EXTRA.get(name, name) in PROJECT["optional-dependencies"]
    assert installed == [EXTRA.get(name, name), *(["opensora"] if name == "train" else [])]


@every_image
def test_an_image_ends_as_a_number_that_is_not_root_and_starts_without_a_shell(name):
    image = image_of(name)
    assert image.last.of("USER")[-1].value == ("65532:65532",)
    (entry,) = image.last.of("ENTRYPOINT")
    assert entry.json
    expected = {"train": ("bricks-train",), "controller": ("bricks-controller",)}
    assert entry.value == expected.get(name, ("python", "-m", f"jobs.{name}"))
    if len(entry.value) == 1:
        assert entry.value[0] in PROJECT["scripts"]
    else:
        assert (ROOT / entry.value[2].replace(".", "/")).with_suffix(".py").exists()


@every_dockerfile
def test_every_user_is_a_number_and_every_command_form_is_exec(file):
    for stage in read_dockerfile(file).stages:
        for user in stage.of("USER"):
            assert re.fullmatch(r"\d+:\d+", user.value[0]), user.original
        for command in stage.of("CMD") + stage.of("ENTRYPOINT"):
            assert command.json, command.original


@every_dockerfile
def test_every_base_is_one_of_ours_or_an_argument_with_a_tag(file):
    image = read_dockerfile(file)
    names = {stage.name for stage in image.stages}
    for stage in image.stages:
        argument = re.fullmatch(r"\$\{(\w+)\}", stage.base)
        if argument is None:
            assert stage.base in names | {"scratch"}, stage.base
            continue
        default = image.arguments[argument[1]]
        assert default is not None
        assert default in ("bricks-base", "bricks-torch", "bricks-code") or re.search(r":[\w.-]+$", default), default
        assert not default.endswith(":latest")


@every_dockerfile
def test_nothing_is_added_from_an_address_and_no_secret_is_an_argument_or_a_variable(file):
    for stage in read_dockerfile(file).stages:
        assert stage.of("ADD") == []
        for each in stage.of("ARG") + stage.of("ENV"):
            assert not re.search(r"(?i)secret|token|passw|credential|api_?key|access_?key", each.original), (
                each.original
            )
        for each in stage.of("RUN"):
            assert not re.search(r"\b(curl|wget)\b", each.original), each.original


@every_dockerfile
def test_a_command_stops_at_its_first_failure(file):
    for command in commands(read_dockerfile(file)):
        assert command.startswith("set -eu; ") or not re.search(r";|\|", command), command


@every_dockerfile
def test_packages_come_by_the_lock_and_leave_no_caches(file):
    for command in commands(read_dockerfile(file)):
        for install in re.findall(r"pip [^;]*?install[^;]*", command):
            assert "--no-cache-dir" in install, install
            assert "--no-compile" in install, install
            assert re.search(r"export PIP_CONSTRAINT=(requirements|torch)\.lock", command), command
        for install in re.findall(r"apt-get install[^;]*", command):
            assert "-y --no-install-recommends" in install, install
            assert "rm -rf /var/lib/apt/lists/*" in command, command


def ignored(path):
    """Whether .dockerignore keeps a path of the project from a build: the last line that matches decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if pattern and not pattern.startswith("#") and (pattern == "*" or fnmatch.fnmatch(path, pattern)):
            verdict = not line.startswith("!")
    return verdict


@every_dockerfile
def test_what_is_copied_is_let_in_by_dockerignore(file):
    for stage in read_dockerfile(file).stages:
        for each in stage.of("COPY"):
            if not any(flag.startswith("--from=") for flag in each.flags):
                for source in each.value[:-1]:
                    assert (ROOT / source).exists()
                    assert not ignored(source), source


def test_a_build_is_given_nothing_but_what_is_copied():
    let_in = {path.name for path in ROOT.iterdir() if not ignored(path.name)}
    copied = {
        source
        for file in dockerfiles()
        for stage in read_dockerfile(file).stages
        for each in stage.of("COPY")
        if not each.flags
        for source in each.value[:-1]
    }
    assert let_in == copied


def test_the_lowest_layer_names_all_that_pytorch_needs_and_nothing_else():
    (lock,) = [each for each in commands(image_of("base")) if "torch.lock" in each and "grep -E" in each]
    named = set(re.search(r"\^\(([^)]+)\)==", lock)[1].split("|"))
    needed, todo = set(), ["torch"]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            for each in metadata.requires(name) or []:
                requirement, _, marker = each.partition(";")
                # The CUDA builds also need NVIDIA's own packages, of exactly the versions that they name themselves.
                if "extra ==" not in marker and not re.match(r"nvidia|cuda|triton", requirement):
                    todo.append(re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-"))
    assert named == needed
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()}
    assert named <= locked


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        *(("HOME", "/scratch"), ("TMPDIR", "/scratch"), ("WANDB_DIR", "/scratch")),
        *((name, "/scratch/") for name in ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")),
        *((name, "/scratch/") for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR")),
        *((name, "/scratch/") for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "CUDA_CACHE_PATH")),
    ],
)
def test_what_libraries_keep_goes_where_it_may_be_written(variable, place):
    (python, *_) = image_of("base").stages
    (written,) = python.of("ENV")
    values = dict(zip(written.value[::2], written.value[1::2], strict=True))
    assert values[variable].startswith(place)


def test_images_with_gpus_ask_the_driver_for_computing_alone():
    stages = {stage.name: stage for stage in image_of("base").stages}
    told = " ".join(each.original for each in stages["torch"].of("ENV"))
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in told
    assert not any("NVIDIA" in each.original for name in ("python", "base") for each in stages[name].instructions)


def test_the_image_that_trains_has_the_users_half_of_infiniband():
    (install,) = image_of("train").last.of("RUN")
    words = set(install.value[0].replace(";", "").split())
    assert {"libibverbs1", "ibverbs-providers", "librdmacm1", "numactl"} <= words


def test_every_image_has_its_budget():
    assert sorted(budget_bytes()) == images()


def test_the_rules_of_hadolint_that_are_not_followed_are_few_and_explained():
    file = ROOT / "images/hadolint.yaml"
    assert sorted(yaml.safe_load(file.read_text(encoding="utf-8"))["ignored"]) == ["DL3002", "DL3008", "DL3013"]
    assert all("#" in line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("  - DL"))
