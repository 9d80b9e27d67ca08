"""The path as a cluster goes it: the chart's controller in its container, and a BrickRun that it brings to its end.

The API server is the tests' double (tests/kubernetes), with the chart's accounts and rights; its kubelet runs every pod
as a container.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import yaml

from bricks_core.controller.crd import crd
from bricks_core.spec.manifest import Manifest
from tests.images.path import SECRETS, TinyPath
from tests.images.podman import Podman
from tests.images.pods import ContainerKubelet
from tests.journey.tiny_run import ROOT, STAGES
from tests.kubernetes.access import service_account
from tests.kubernetes.double import Double
from tests.kubernetes.serve import certificate
from tests.s3_server import BUCKET

NAMESPACE = "bricks"
PATIENCE_S = 600.0
CONTROLLER_MEMORY = "150Mi"
"""What it promises to stay under with 200 runs; here it has one, and is killed above."""


def chart(path: TinyPath) -> list[dict[str, Any]]:
    """What `helm install` would create, for the store and the images of the path."""
    profile = path.profile
    stages = {name: {**each.model_dump(mode="json", by_alias=True), "gpus": 0} for name, each in profile.stages.items()}
    values = {
        "images": profile.images.model_dump(mode="json", by_alias=True),
        "storage": {
            "mode": "s3",
            "s3": {
                "bucket": BUCKET,
                "prefix": "controlled",
                "endpoint": profile.store.endpoint,
                "region": profile.store.region,
                "existingSecret": profile.store.secret,
            },
        },
        "stages": stages,
        "train": profile.train.model_dump(mode="json", by_alias=True),
        "preflight": profile.preflight.model_dump(mode="json", by_alias=True),
        "controller": {"resources": {"limits": {"memory": CONTROLLER_MEMORY}}},
    }
    with helm_python.Chart.load(str(ROOT / "helm/bricks")) as loaded:
        rendered = loaded.render(values, name="bricks", namespace=NAMESPACE)
    texts = [text for name, text in rendered.items() if name.endswith((".yaml", ".yml")) and "/test" not in name]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def follow(podman: Podman, network: str, path: TinyPath, folder: Path, say: Callable[[str], None]) -> None:
    """Install, hand in the run, wait for its end, and stop the controller."""
    documents = chart(path)
    with Double(crds=[crd()], namespaces=[NAMESPACE]) as server:
        for each in documents:
            if each["kind"] in ("ServiceAccount", "Role", "RoleBinding", "ConfigMap"):
                server.make(each)
        for name, data in SECRETS.items():
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}}
            server.make(secret | {"stringData": data})
        (deployment,) = [each for each in documents if each["kind"] == "Deployment"]
        template = deployment["spec"]["template"]
        # It shares this machine's network, where the double is, and so its ports.
        (container,) = template["spec"]["containers"]
        container["args"] = [each.replace("8080", str(_free_port())) for each in container["args"]]
        account = _account(server, template["spec"]["serviceAccountName"], folder / "account")
        host, port = server.url.removeprefix("https://").split(":")
        began_s = time.monotonic()
        controller = path.node.start(
            template,
            documents,
            network="host",
            environment={"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port},
            mounts=[f"{account}:/var/run/secrets/kubernetes.io/serviceaccount:ro"],
        )
        run = path.run.model_dump(mode="json")
        server.make(run | {"metadata": {"name": path.run.name, "namespace": NAMESPACE}})
        try:
            with ContainerKubelet(podman, network, server, NAMESPACE, folder / "pods") as kubelet:
                found = _finished(server, path.run.name, controller, kubelet)
        finally:
            controller.terminate()
            code = controller.wait()
    assert found["reason"] == "Succeeded", f"the run ended with {found}:\n{controller.said}"
    assert code in (0, 143), f"the controller was asked to stop and ended with {code}:\n{controller.said}"
    for stage in STAGES:
        manifest = Manifest.model_validate_json(_manifest(path, stage))
        assert manifest.host.get("image") == path.profile.images.of(stage), f"{stage}: {manifest.host}"
    say(f"controller: brought the whole run to its end in {time.monotonic() - began_s:.0f} s, with the chart's rights")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _account(server: Double, name: str, folder: Path) -> Path:
    """What a kubelet mounts for a service account."""
    folder.mkdir(parents=True)
    for file, text in {
        "token": server.token(service_account(NAMESPACE, name)),
        "ca.crt": certificate()[1].decode(),
        "namespace": NAMESPACE,
    }.items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def _finished(server: Double, name: str, controller: Any, kubelet: ContainerKubelet) -> dict[str, Any]:
    """The run's condition of that name, once it is there."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        run = server.cluster(NAMESPACE).get("BrickRun", name)
        conditions = {each["type"]: each for each in run.get("status", {}).get("conditions", [])}
        if conditions.get("Finished", {}).get("status") == "True":
            return dict(conditions["Finished"])
        assert controller.running, f"the controller ended:\n{controller.said}"
        assert kubelet.error is None, f"the kubelet: {kubelet.error}"
        assert time.monotonic() < deadline_s, f"not finished: {run.get('status')}\n{controller.said}"
        time.sleep(0.5)


def _manifest(path: TinyPath, stage: str) -> bytes:
    objects = path.server.objects(f"controlled/artifacts/{stage}/")
    (text,) = [content for key, content in objects.items() if key.endswith("/manifest.json")]
    return text
