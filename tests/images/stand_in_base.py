"""A base image made of Debian's packages, for machines that reach no registry.

It stands in for python:3.11-slim-bookworm under that very name, so that the Dockerfiles stay as they are.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.images.podman import NotHere, Podman

SUITE, PYTHON = "bookworm", "3.11"
NAME = f"localhost/python:{PYTHON}-slim-{SUITE}"
UNWANTED = ("doc", "man", "info", "locale")


def make(podman: Podman) -> None:
    """Make it, unless it is there. Raises NotHere: Debian's packages cannot be fetched."""
    if podman.has(NAME):
        return
    tar = podman.folder / "base.tar"
    if not tar.exists():
        unfinished = tar.with_suffix(".unfinished.tar")
        try:
            subprocess.run(_mmdebstrap(unfinished), check=True, stdin=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise NotHere(f"mmdebstrap cannot make a base image here (exit code {error.returncode}).") from None
        unfinished.rename(tar)
    changes = [
        "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV LANG=C.UTF-8",
        'CMD ["python3"]',
    ]
    podman("import", *(flag for change in changes for flag in ("--change", change)), tar, NAME)


def _mmdebstrap(tar: Path) -> list[str]:
    # The registry's image has its Python in /usr/local and says nothing of Debian's rules about pip.
    links = f'for p in python python3 python{PYTHON}; do ln -sf /usr/bin/python{PYTHON} "$1/usr/local/bin/$p"; done'
    hooks = [
        'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
        links,
        'ln -sf /usr/bin/pip3 "$1/usr/local/bin/pip"',
    ]
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--include=ca-certificates,python3,python3-venv,python3-pip",
        *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in UNWANTED),
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE,
        str(tar),
        *_mirror(),
    ]


def _mirror() -> list[str]:
    """Where this machine gets Debian's packages; elsewhere mmdebstrap knows."""
    folder = Path("/etc/apt")
    for file in sorted([*folder.glob("sources.list.d/*.sources"), *folder.glob("sources.list*")]):
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if found := re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(http\S*/debian/?)(?:\s|$)", text, re.MULTILINE):
            return [found[1]]
    return []
