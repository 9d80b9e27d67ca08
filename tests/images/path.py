"""The path of a tiny run in containers: each pod as it is rendered for a cluster, stages that share nothing but S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bricks_core.cluster.launcher import Object, Task
from bricks_core.cluster.launchers import launcher_for
from bricks_core.errors import WRONG_FOR_ALL
from bricks_core.pipeline.resolve import finished
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun, load_run
from bricks_core.storage.places import open_store
from tests.images.pods import Container, Node
from tests.journey.tiny_run import ROOT, STAGES, TINY
from tests.s3_server import BUCKET, KEY_ID, SECRET, S3Server

SHARDS = {"ingest": 2, "clip": 2, "score": 2, "caption": 2, "latents": 2}
LONG = 120
"""Steps of the first phase of training: long enough to be stopped in their midst."""
PREFIX = "containers"
PATIENCE_S = 300.0


@dataclass
class TinyPath:
    """A run on its way through a store in S3. Stages of `contained` run in containers, others as processes here."""

    node: Node
    server: S3Server
    run: BrickRun
    run_file: Path
    profile: ClusterProfile
    contained: Collection[str]
    say: Callable[[str], None]

    @property
    def store(self) -> Any:
        os.environ.update(self.server.environment)
        return open_store(self.profile.store.uri)

    def manifest(self, stage: str) -> Manifest | None:
        """The stage's, once it is done."""
        found = finished(self.run, self.store).get(stage)
        return found[1] if found else None

    def objects(self, stage: str) -> list[Object]:
        return launcher_for(self.run, self.profile, stage).render(Task(self.run, stage, self.profile))

    def start(self, stage: str, index: int = 0, **changes: Any) -> Container:
        *configs, workload = self.objects(stage)
        return self.node.start(workload["spec"]["template"], configs, index=index, **changes)

    def bring(self, stage: str) -> None:
        """Run a stage to its end, and see that it left its manifest."""
        began_s = time.monotonic()
        if stage in self.contained:
            num = SHARDS.get(stage, 1)
            with ThreadPoolExecutor(num) as threads:
                pods = list(threads.map(lambda index: self.start(stage, index), range(num)))
                codes = list(threads.map(lambda pod: pod.wait(), pods))
            told = "\n".join(pod.said for pod in pods)
            assert codes == [0] * num, f"{stage} ended with {codes}:\n{told}"
            # Whoever finds nothing missing commits: the last one at least.
            where = f"{num} container{'s' * (num > 1)}"
        else:
            command = [sys.executable, "-m", f"jobs.{stage}", "--run", str(self.run_file)]
            environment = os.environ | self.server.environment | {"BRICKS_STORE": self.profile.store.uri}
            ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
            assert ended.returncode == 0, f"{stage} ended with {ended.returncode}:\n{ended.stderr}"
            told, where = ended.stderr, "a process here"
        manifest = self.manifest(stage)
        assert manifest is not None, f"{stage} left no manifest:\n{told}"
        if stage in self.contained:
            image = self.profile.images.of(stage)
            assert manifest.host.get("image") == image, f"{stage}'s manifest tells {manifest.host}, not {image}"
        self.say(f"{stage}: done in {where}, {time.monotonic() - began_s:.0f} s: {manifest.counts}")

    def until(self, what: str, pod: Container, holds: Callable[[], bool]) -> None:
        """Wait until something holds while a container runs."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert pod.running, f"{pod.name} ended before {what}:\n{pod.said}"
            assert time.monotonic() < deadline_s, f"{pod.name}: not {what} after {PATIENCE_S:g} s:\n{pod.said}"
            time.sleep(0.1)

    def keys(self, text: str) -> list[str]:
        return [key for key in self.server.keys("") if text in key]

    def stop_clip(self) -> None:
        """SIGTERM in the midst of clips: 143, and what was finished is kept."""
        # One film after the other, and slowly: the others are still to come when the first one is done.
        configs, template = self._clip_in_one_shard()
        (container,) = template["spec"]["containers"]
        container["env"] = [
            each | {"value": "1"} if each["name"] == "BRICKS_CPUS" else each for each in container["env"]
        ]
        pod = self.node.start(template, configs, cpus=0.3)
        self.until("the first clip was kept", pod, lambda: bool(self._records("clip")))
        pod.terminate()
        code = pod.wait()
        assert code == 143, f"clip was asked to stop and ended with {code}:\n{pod.said}"
        kept = self._records("clip")
        assert kept, "clip kept nothing"
        self.bring("clip")
        changed = [key for key, tag in self._records("clip").items() if kept.get(key, tag) != tag]
        assert not changed, f"clip made again what was finished: {changed}"
        self.say(f"clip: SIGTERM gave 143; {len(kept)} finished clips were kept")

    def _clip_in_one_shard(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Its configs and its pod's template. Which of two shards a film is of, its bytes decide: one may have none."""
        *configs, workload = self.objects("clip")
        template = json.loads(json.dumps(workload["spec"]["template"]))
        (container,) = template["spec"]["containers"]
        container["args"][container["args"].index("--num-shards") + 1] = "1"
        return configs, template

    def starve_clip(self) -> None:
        """Memory that runs out: the process is killed, or what it reads a film with; the film is not blamed."""
        configs, template = self._clip_in_one_shard()
        pod = self.node.start(template, configs, memory="112Mi")
        code = pod.wait()
        assert code in (137, 75), f"clip with too little memory ended with {code}:\n{pod.said}"
        assert self.manifest("clip") is None, "clip finished with too little memory"
        self.say(f"clip: out of memory gave {code}")

    def stop_train(self) -> None:
        """SIGTERM in the midst of training: 143, a checkpoint, and the next pod goes on from it."""
        pod = self.start("train")
        self.until("training had begun", pod, lambda: self._steps() >= 10)
        pod.terminate()
        code = pod.wait()
        assert code == 143, f"train was asked to stop and ended with {code}:\n{pod.said}"
        kept = self.keys("trainings/")
        assert kept, f"train kept no checkpoint:\n{self.keys('/train/')}\n{pod.said}"
        self.say(f"train: SIGTERM gave 143 and left a checkpoint of {len(kept)} objects")
        self.bring("train")

    def refuse(self, stage: str) -> None:
        """A run file that says nothing usable: told as wrong for every pod, and without a trace."""
        *configs, workload = self.objects(stage)
        (config,) = configs
        broken = config | {
            "data": config["data"] | {"run.yaml": "kind: BrickRun\nspec: {clip: {min_duration_s: no}}\n"}
        }
        pod = self.node.start(workload["spec"]["template"], [broken])
        code = pod.wait()
        assert code in WRONG_FOR_ALL, f"{stage} with a wrong run file ended with {code}:\n{pod.said}"
        assert "Traceback" not in pod.said, pod.said
        self.say(f"{stage}: a wrong run file gave {code}")

    def _records(self, kind: str) -> dict[str, str]:
        """Records of finished items, each with its ETag."""
        listed = self.server.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {
            each["Key"]: each["ETag"]
            for each in listed
            if f"/items/{kind}/" in each["Key"] and each["Key"].endswith(".json")
        }

    def _steps(self) -> int:
        """As the heartbeat tells them."""
        found = self.server.objects(f"{PREFIX}/runs/{self.run.name}/status/train.json").values()
        return max((int(json.loads(text).get("done", 0)) for text in found), default=0)


def tiny_path(
    node: Node, server: S3Server, folder: Path, tag: str, contained: Collection[str], say: Callable[[str], None]
) -> TinyPath:
    """Films in S3, a run of them, and a profile that asks for no more than this machine has."""
    films = folder / "films"
    settings = ["--films", "3", "--scenes", "3", "--height", "96", "--photos", "16", "16"]
    subprocess.run(
        [sys.executable, "examples/make_films.py", films, *settings], cwd=ROOT, check=True, capture_output=True
    )
    for file in sorted(films.rglob("*")):
        if file.is_file():
            server.client.upload_file(str(file), BUCKET, f"films/{file.relative_to(films)}")
    document = yaml.safe_load(yaml.safe_dump(TINY))
    document["spec"]["ingest"]["sources"][0]["path"] = f"s3://{BUCKET}/films"
    document["spec"]["train"]["phases"][0]["steps"] = LONG
    document["spec"]["train"]["checkpoint_every_steps"] = LONG
    document["spec"]["train"]["held_out"]["every_steps"] = LONG
    run_file = folder / "tiny.yaml"
    run_file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    small = {"cpu": "1", "memory": "2Gi", "scratch": "1Gi"}
    profile = ClusterProfile.model_validate(
        {
            "images": {"registry": "localhost", "tag": tag, "pullPolicy": "Never"},
            "store": {
                "uri": f"s3://{BUCKET}/{PREFIX}",
                "endpoint": server.endpoint,
                "region": "us-east-1",
                "secret": "bricks-s3",
            },
            "stages": {stage: small | {"shards": SHARDS.get(stage, 1)} for stage in STAGES if stage != "train"},
            "train": {**small, "memory": "3Gi", "gpusPerNode": 0, "shm": "256Mi", "graceS": 60},
            "preflight": {"freeDiskBytes": 1 << 28, "shmBytes": 1 << 20},
        }
    )
    return TinyPath(node, server, load_run(run_file), run_file, profile, contained, say)


SECRETS = {"bricks-s3": {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}}
