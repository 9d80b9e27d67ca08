"""Builds judge.go with Kubernetes' own libraries, which Debian has: python -m tests.controller.kubernetes_code

No API server later than 1.20 can be had from Debian, but the code by which one judges custom resources can: 1.36.4 in
sid, with Go (3.5 GB unpacked, in `$XDG_CACHE_HOME/bricks/kubernetes`, and 2 to 6 minutes of compiling). Then

    pytest tests/controller/test_crd_by_kubernetes.py

asks it; without it these tests are skipped. It needs mmdebstrap and apt for the mirror that is configured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "sid"
PACKAGES = ("golang-go", "golang-k8s-apiextensions-apiserver-dev", "golang-k8s-apiserver-dev")
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bricks" / "kubernetes"
JUDGE = FOLDER / "judge"
SOURCE = Path(__file__).with_name("judge.go")


def build() -> None:
    """Unpack the packages, once, and compile judge.go."""
    if shutil.which("mmdebstrap") is None:
        sys.exit("mmdebstrap is not here: Kubernetes' libraries come as Debian packages. apt-get install mmdebstrap")
    tree, unpacked = FOLDER / "tree", FOLDER / "unpacked"
    if not unpacked.exists():
        shutil.rmtree(tree, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
        mirror = subprocess.run(targets, check=True, capture_output=True, encoding="utf-8").stdout.split()[0]
        options = ['Acquire::Check-Valid-Until "false"', 'APT::Install-Recommends "false"']
        words = ["--variant=extract", *(f"--aptopt={each}" for each in options), f"--include={','.join(PACKAGES)}"]
        subprocess.run(["mmdebstrap", "--quiet", *words, SUITE, tree, mirror], check=True)
        unpacked.touch()
    (go,) = (tree / "usr" / "lib").glob("go-*")
    environment = {
        "PATH": f"{go}/bin:/usr/bin:/bin",
        "HOME": str(FOLDER),
        "GOROOT": str(go),
        "GOPATH": str(tree / "usr" / "share" / "gocode"),
        "GOCACHE": str(FOLDER / "compiled"),
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    subprocess.run([go / "bin" / "go", "build", "-o", JUDGE, SOURCE], check=True, env=environment)
    print(f"{JUDGE} is built.")


if __name__ == "__main__":
    build()
