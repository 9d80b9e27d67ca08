"""The controller with 200 runs in mixed states: how soon it is ready, how much memory it takes, how long a look at all.

python -m benchmarks.controller [--save] [--runs 200] [--repeats 5]

The API server is the tests' double, in this process, and the store moto's S3, so a look at all is mostly their time:
its figure is for comparison with itself. Start and memory are held against a Python that does no more than import what
no such controller can do without (kopf and the Kubernetes client), in the same run.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.record import flags, keep
from bricks_core.controller.crd import crd
from bricks_core.controller.reconcile import Reconciler
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.storage.places import open_store
from tests.controller.executor import Executor
from tests.kubernetes.double import Double
from tests.s3_server import BUCKET, S3Server

STAGES = ("ingest", "clip", "score", "caption", "latents")
PROFILE = {"stages": {stage: {"shards": 1} for stage in STAGES}}
BARE = "import time; import kopf, kubernetes.client; print('ready', flush=True); time.sleep(60)"
STORE = f"s3://{BUCKET}/artifacts"
LONGEST_S = 120.0
STATES = ("done", "failed", "running", "waiting", "wrong")
CODES: dict[str, int | None] = {"done": 0, "failed": 64, "running": None}
"""With which pods of a run end."""
NUM_STEPS = {"done": 2 * len(STAGES), "failed": 2, "running": 1}


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    s3 = S3Server()
    s3.start()
    os.environ.update(s3.environment)
    with tempfile.TemporaryDirectory() as folder, Double(crds=[crd()]) as server:
        place = Path(folder)
        reconciler = town(server, place, arguments.runs)
        kubeconfig = server.kubeconfig(place / "kubeconfig", namespace="bricks")
        env = os.environ | {"KUBECONFIG": str(kubeconfig), "BRICKS_STORE": STORE, "OMP_NUM_THREADS": "1"}
        (place / "profile.yaml").write_text(str(PROFILE).replace("'", '"'), encoding="utf-8")
        bare, ours = [], []
        for _ in range(arguments.repeats):
            bare.append(measure_bare())
            ours.append(measure_controller(place, env))
        phases = Counter(run["status"]["phase"] for run in server.cluster().list("BrickRun"))
        found = {
            "runs": arguments.runs,
            "phases": dict(phases),
            "start": compared([each["start_s"] for each in ours], [each["start_s"] for each in bare], "s"),
            "rss": compared([each["rss_mb"] for each in ours], [each["rss_mb"] for each in bare], "MB"),
            "stop_s": round(statistics.median(each["stop_s"] for each in ours), 3),
            "look_at_all": look_at_all(server, reconciler),
        }
    s3.kill()
    keep("controller", found, save=arguments.save)


def town(server: Double, place: Path, num_runs: int) -> Reconciler:
    """Runs that have succeeded, failed, run, wait, and cannot be used, in equal parts."""
    store = open_store(STORE)
    profile = ClusterProfile.model_validate(PROFILE)
    reconciler = Reconciler(server.cluster(), store, profile)
    for i in range(num_runs):
        # One state after the other, as a step is for all pods there are. Each run has films of its own, so that none
        # finds what another has made, nor waits for it.
        films = place / "films" / f"{i:03d}"
        films.mkdir(parents=True)
        (films / "a.mp4").write_bytes(b"never opened here")
        source = {"ingest": {"sources": [{"path": str(films)}]}}
        state = STATES[i * len(STATES) // num_runs]
        begin(server, reconciler, f"run-{i:03d}", state, source)
        executor = Executor(server, store, lambda stage, attempt, code=CODES.get(state): code)  # type: ignore[misc]
        for _ in range(NUM_STEPS.get(state, 0)):
            executor.step()
            reconciler.reconcile(f"run-{i:03d}")
    return reconciler


def begin(server: Double, reconciler: Reconciler, name: str, state: str, spec: dict[str, Any]) -> None:
    meta = {"name": name, "namespace": "bricks"}
    wrong: dict[str, Any] = {"cilp": {}} if state == "wrong" else {}
    server.make({"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": meta, "spec": spec | wrong})
    reconciler.reconcile(name)


def look_at_all(server: Double, reconciler: Reconciler) -> dict[str, Any]:
    """Every run that is left to do, one after the other, when nothing has changed."""
    names = reconciler.runs()
    seconds, num_requests = [], 0
    for _ in range(3):
        server.requests.clear()
        begun = time.perf_counter()
        for name in reconciler.runs():
            reconciler.reconcile(name)
        seconds.append(time.perf_counter() - begun)
        num_requests = len(server.requests)
    return {
        "runs_looked_at": len(names),
        "median_s": round(statistics.median(seconds), 3),
        "ms_a_run": round(1000 * statistics.median(seconds) / max(1, len(names)), 2),
        "requests_a_run": round(num_requests / max(1, len(names)), 2),
        "writes": sum(request.method != "GET" for request in server.requests),
    }


def measure_bare() -> dict[str, float]:
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    process.stdout.readline()
    start_s = time.perf_counter() - begun
    rss_mb = memory_mb(process.pid)
    process.kill()
    process.wait()
    return {"start_s": start_s, "rss_mb": rss_mb}


def measure_controller(place: Path, env: dict[str, str]) -> dict[str, float]:
    """From its start to its first good answer to a probe; its memory after it has looked at everything."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["-m", "jobs.controller", f"--health-port={port}", f"--profile={place / 'profile.yaml'}", "--resync-s=3"]
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.DEVNULL)
    while not answers(port):
        assert time.perf_counter() - begun < LONGEST_S, "it is never ready"
        time.sleep(0.02)
    start_s = time.perf_counter() - begun
    time.sleep(10)
    rss_mb = memory_mb(process.pid)
    asked = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONGEST_S) == 0
    return {"start_s": start_s, "rss_mb": rss_mb, "stop_s": time.perf_counter() - asked}


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def memory_mb(pid: int) -> float:
    """The most that a process has had in memory so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def compared(ours: list[float], bare: list[float], unit: str) -> dict[str, float]:
    """Medians, and ours as a multiple of the bare one's."""
    mine, other = statistics.median(ours), statistics.median(bare)
    return {f"median_{unit}": round(mine, 3), f"bare_{unit}": round(other, 3), "x_bare": round(mine / other, 2)}


if __name__ == "__main__":
    main()
