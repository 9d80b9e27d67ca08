"""Write the manifests of this folder again, from k8s/runs/ and k8s/cluster/: python k8s/generate.py

tests/cluster/test_manifests.py holds that they are fresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bricks_core.cluster.manifests import Origin, manifest, plain_task
from bricks_core.spec.cluster import load_profile
from bricks_core.spec.run import load_run

ROOT = Path(__file__).parents[1]
PROFILE = "k8s/cluster/profile-h100-ib.yaml"
LONG, SHORT, EVALUATION = (f"k8s/runs/{name}.yaml" for name in ("text2bricks-64f", "text2bricks-32f", "evaluate"))


@dataclass(frozen=True)
class Wanted:
    """A file, and what it is made of."""

    run: str
    stage: str = "train"
    preflight: bool = False

    def text(self, file: str) -> str:
        run, profile = load_run(ROOT / self.run), load_profile(ROOT / PROFILE)
        what = "--preflight" if self.preflight else f"--stage {self.stage}"
        command = f"bricks render {self.run} {what} --profile {PROFILE} > {file}"
        return manifest(plain_task(run, self.stage, profile, preflight_only=self.preflight), "", Origin(file, command))


FILES = {
    "k8s/ingest.yaml": Wanted(LONG, "ingest"),
    "k8s/clip.yaml": Wanted(LONG, "clip"),
    "k8s/score.yaml": Wanted(LONG, "score"),
    "k8s/caption.yaml": Wanted(LONG, "caption"),
    "k8s/latents.yaml": Wanted(LONG, "latents"),
    "k8s/train-64f.yaml": Wanted(LONG),
    "k8s/train-32f.yaml": Wanted(SHORT),
    "k8s/evaluate.yaml": Wanted(EVALUATION, "evaluate"),
    "k8s/preflight.yaml": Wanted(LONG, preflight=True),
}


def main() -> None:
    for file, wanted in FILES.items():
        (ROOT / file).write_text(wanted.text(file), encoding="utf-8")


if __name__ == "__main__":
    main()
