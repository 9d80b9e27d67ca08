"""What must hold of an image as it was built: who runs it, what it starts, what is in it and what is not."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.images.definitions import budget_bytes
from tests.images.podman import Podman, pip_settings

USER = "65532:65532"
SOMEBODY_OF_OPENSHIFT = "1000670000:0"
WRITABLE = {"/scratch", "/store", "/tmp", "/var/tmp", "/run/lock"}
ENTRIES = {"train": ["bricks-train"], "controller": ["bricks-controller"]}
MODULES = {
    "controller": ["jobs.controller", "bricks_core.controller.*", "bricks_core.cluster.*"],
    "train": ["jobs.bricks_train", "jobs.train_process", "bricks_core.stages.train.*", "bricks_core.nodes.*", "wandb"],
    "caption": ["jobs.caption", "bricks_core.stages.caption.*", "openai"],
    "latents": ["jobs.latents", "bricks_core.stages.latents.*", "transformers", "diffusers", "sentencepiece", "ftfy"],
    "evaluate": ["jobs.evaluate", "bricks_core.stages.evaluate.*", "wandb", "ftfy"],
}
"""What an image is for; the others: their entry point and their stage."""
HOLDS = {
    "controller": {"kopf", "kubernetes"},
    "ingest": {"av", "cv2"},
    "clip": {"av", "cv2"},
    "score": {"av", "cv2"},
    "caption": {"av", "cv2", "openai"},
    "latents": {"av", "cv2", "diffusers", "torch", "transformers"},
    "train": {"diffusers", "torch", "transformers", "wandb"},
    "evaluate": {"av", "cv2", "diffusers", "torch", "transformers", "wandb"},
}
"""Of what is watched (inside.WATCHED), exactly this is in an image; the base's pip comes besides."""
INSIDE = Path(__file__).with_name("inside.py")


def check(podman: Podman, name: str, image: str, revision: str) -> dict[str, Any]:
    """Look at an image from outside and from inside. Returns its size in bytes and what it holds.

    Raises AssertionError with everything that is wrong.
    """
    facts = podman.inspect(image)
    wrong = [*_outside(podman, name, image, facts, revision)]
    for user in (USER, SOMEBODY_OF_OPENSHIFT):
        for problem in _inside(podman, name, image, user):
            wrong.append(f"as {user}: {problem}")
    if wrong:
        raise AssertionError(f"bricks-{name}:\n" + "\n".join(f"  {each}" for each in wrong))
    return facts


def _outside(podman: Podman, name: str, image: str, facts: dict[str, Any], revision: str) -> Iterator[str]:
    config = facts["Config"]
    if config["User"] != USER:
        yield f"it runs as {config['User']!r}"
    command = {"train": ["bricks-train"], "controller": ["bricks-controller"]}.get(
        name, ["python", "-m", f"jobs.{name}"]
    )
    if config["Entrypoint"] != command:
        yield f"it starts {config['Entrypoint']}"
    if config["Labels"].get("org.opencontainers.image.revision") != revision:
        yield f"it says it is of {config['Labels'].get('org.opencontainers.image.revision')!r}"
    most = budget_bytes()[name]
    if facts["Size"] > most:
        yield f"it has {facts['Size'] / 1e6:.0f} MB, and images/budget.yaml allows {most / 1e6:.0f}"
    history = podman("history", "--no-trunc", "--format", "json", image).stdout
    told = history + json.dumps(config)
    for found in re.findall(r"(?i)\b\w*(?:password|passwd|secret|token|api_?key|access_?key)\w*\s*[=:]", told):
        yield f"its history or settings have {found!r}"
    for key, value in pip_settings().items():
        if key in {"extra-index-url", "find-links", "index-url"} and value in told:
            yield f"its history or settings have this machine's {key}"


def _inside(podman: Podman, name: str, image: str, user: str) -> Iterator[str]:
    modules = MODULES.get(name, [f"jobs.{name}", f"bricks_core.stages.{name}.*"])
    flags = ["--rm", "--pull=never", "--network=none", "--user", user, "--cap-drop=ALL"]
    flags += ["--security-opt=no-new-privileges", "--volume", f"{INSIDE}:/inside.py:ro", "--entrypoint", "python"]
    # Once as pods run it, and once with a root that could be written, to see whether anybody may.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o1777)
        closed = ["--read-only", "--read-only-tmpfs=false", "--volume", f"{scratch}:/scratch", "--tmpfs=/tmp"]
        found = json.loads(podman("run", *flags, *closed, image, "/inside.py", *modules).stdout)
    for module, error in found["failed"].items():
        yield f"{module} cannot be imported: {error}"
    if found["home"] != "/scratch":
        yield f"its home is {found['home']}"
    if found["uncompiled"]:
        yield f"not compiled: {', '.join(found['uncompiled'][:5])}"
    if set(found["there"]) - {"pip"} != HOLDS[name]:
        yield f"it holds {', '.join(found['there'])}"
    if "pip" in found["there"]:
        yield "its own Python has pip"
    opened = json.loads(podman("run", *flags, image, "/inside.py").stdout)
    if unexpected := set(opened["writable"]) - WRITABLE:
        yield f"it may write {', '.join(sorted(unexpected)[:5])}"
