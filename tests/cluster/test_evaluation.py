"""bricks ci: the Job that a CI asks for, what became of it, and the report; on the double, with a test kubelet."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from bricks_core.cluster.evaluation import load_evaluation
from bricks_core.pipeline.points import point
from bricks_core.pipeline.resolve import Address
from bricks_core.spec.run import load_run
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import open_artifact
from tests.cluster.answered import answer
from tests.cluster.command_line import NAMESPACE, without_cluster
from tests.cluster.test_doctor import custom, make
from tests.kubernetes.double import Fault
from tests.kubernetes.kubelet import Kubelet
from tests.schemas.strict import mistakes

ROOT = Path(__file__).parents[2]
SHA = "12e4567890123456789012345678901234567890"  # a commit that some parsers take for a number, when shortened
PASSES = {"metric": "held_out.loss.ema", "at_most_of_base": 0.5}
FAILS = {"metric": "held_out.loss.best", "at_most": 0.01}


class Trained:
    """A volume with a run that is trained, and its files."""

    def __init__(self, folder):
        from tests.stages.evaluate.conftest import finish_inputs  # loads torch, which most of these tests do without

        (folder / "volume").mkdir()
        dice = np.random.default_rng(0)
        films = {film: [dice.integers(0, 255, (8, 32, 48, 3), dtype=np.uint8)] * 2 for film in ("one", "two")}
        prompts, least = ["@everyone: a | <b>blue</b> one"], {"num_sampling_steps": 1, "num_checkpoints": 2}
        made = finish_inputs(folder / "volume", films, prompts, **least)
        for name, digest in made.digests.items():
            manifest = open_artifact(made.store, name, digest).manifest
            spec = made.run.stage_spec(name)
            address = Address(STAGES[name], spec, digest, manifest.inputs, manifest.cache_key)
            point(made.run.name, made.store, address.pointer())
        self.volume, self.store, self.folder = folder / "volume", folder / "volume" / "store", folder
        self.document = made.run.model_dump(mode="json")

    def run_file(self, *gates, **spec):
        file = self.folder / "miniature.yaml"
        changed = {**self.document["spec"], "gates": list(gates), **spec}
        file.write_text(yaml.safe_dump(self.document | {"spec": changed}), encoding="utf-8")
        return file

    def kubelet(self, server):
        environment = {"OMP_NUM_THREADS": "1", "BRICKS_COMMIT": SHA, "PYTHONDONTWRITEBYTECODE": "1"}
        return Kubelet(server, NAMESPACE, self.folder / "pods", environment=environment, mounts={"/store": self.volume})


@pytest.fixture
def trained(tmp_path):
    return Trained(tmp_path)


@pytest.fixture
def profile(tmp_path):
    """A cluster whose store is a volume."""
    file = tmp_path / "profile.yaml"
    store = {"uri": "file:///store/store", "claim": "films"}
    file.write_text(yaml.safe_dump({"store": store, "priorityClass": "low"}), encoding="utf-8")
    return file


def render(bricks, run_file, *flags, sha=SHA):
    said = bricks("ci", "render", "--run", run_file, "--sha", sha, *flags)
    file = bricks.folder / "job.yaml"
    file.write_text(said.out, encoding="utf-8")
    return file


def create(server, file):
    for each in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        server.cluster(NAMESPACE).create(each)


def numbers(trained, weights):
    """The held-out loss over all buckets, as the store's report.json has it."""
    (file,) = trained.store.glob("artifacts/evaluate/*/report/report.json")
    changes = json.loads(file.read_text(encoding="utf-8"))["held_out"]["changes"]
    return next(each for each in changes if (each["weights"], each["bucket"]) == (weights, ""))


def test_the_job_is_named_after_commit_suite_and_attempt_and_always_the_same(bricks):
    file = render(bricks, ROOT / "k8s/runs/evaluate.yaml", "--suite", "smoke", "--attempt", "2", "-n", NAMESPACE)
    first = file.read_bytes()
    config, job = yaml.safe_load_all(first)
    assert job["metadata"]["name"] == "eval-12e456789012-smoke-r2"
    assert (config["metadata"]["namespace"], job["metadata"]["namespace"]) == (NAMESPACE, NAMESPACE)
    assert job["spec"]["ttlSecondsAfterFinished"] == 86_400
    assert job["spec"]["activeDeadlineSeconds"] == 7200
    assert render(bricks, ROOT / "k8s/runs/evaluate.yaml", "--suite", "smoke", "--attempt", "2", "-n", NAMESPACE)
    assert file.read_bytes() == first


def test_the_job_and_its_run_file_are_what_kubernetes_takes(bricks, profile):
    digest = "sha256:" + "0" * 64
    file = render(bricks, bricks.run_file(gates=[PASSES]), "--profile", profile, "--image-digest", digest)
    config, job = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    assert mistakes(config) == mistakes(job) == []
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].endswith(f"bricks-evaluate@{digest}")
    assert pod["priorityClassName"] == "low"
    assert pod["automountServiceAccountToken"] is False


def test_the_run_asks_for_this_commits_answer_and_goes_on_from_the_trained_run(bricks):
    run = load_evaluation(render(bricks, bricks.run_file())).run
    assert (run.name, run.spec.inputs_of, run.spec.evaluate.code) == ("eval-12e456789012-default", "small", SHA)
    assert load_evaluation(render(bricks, bricks.run_file(), "--any-code")).run.spec.evaluate.code == ""
    again = load_evaluation(render(bricks, bricks.run_file(inputs_of="first"))).run
    assert again.spec.inputs_of == "first"


def test_a_commit_that_looks_like_a_number_stays_a_text_for_every_parser(bricks):
    text = render(bricks, bricks.run_file(), sha="12e4567").read_text(encoding="utf-8")
    assert "bricks.dev/commit: '12e4567'" in text


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--sha", "main"], 64, "git rev-parse HEAD"),
        (["--sha", SHA, "--suite", "Far too long"], 64, "such as smoke"),
        (["--sha", SHA, "--image-digest", "latest"], 64, "sha256:"),
        (["--sha", SHA, "-n", "Not Ok"], 64, "name of a namespace"),
        (["--sha", SHA, "--set", "evaluate=null"], 78, "no spec.evaluate"),
        (["--sha", SHA, "--profile", "nowhere.yaml"], 78, "nowhere.yaml is not there"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(bricks, flags, code, says):
    assert says in bricks("ci", "render", "--run", bricks.run_file(), *flags, code=code).error


def test_an_evaluation_holds_no_address_of_whoever_is_told(bricks, capsys):
    file = render(bricks, bricks.run_file(notify="https://example.org/T0P"))
    assert "T0P" not in file.read_text(encoding="utf-8")
    assert "spec.notify is left out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "kind: Job", "{", "kind: Job\n---\nkind: ConfigMap\ndata: {run.yaml: 1}\n"])
@pytest.mark.parametrize("command", ["wait", "report"])
def test_a_file_that_render_did_not_write_is_refused(bricks, text, command):
    (bricks.folder / "job.yaml").write_text(text, encoding="utf-8")
    assert "render" in bricks("ci", command, "--job", "job.yaml", code=78).error or text == "{"


def test_a_commit_is_evaluated_and_judged(bricks, double, trained, monkeypatch, profile):
    file = render(bricks, trained.run_file(PASSES), "--profile", profile)
    create(double, file)
    with trained.kubelet(double):
        waited = bricks("ci", "wait", "--job", file, "--timeout", "5m", "--every", "0.3", "--logs")
        assert "is complete" in waited.out
        assert "samples" in waited.out, "the pod's lines"
    config = double.cluster(NAMESPACE).get("ConfigMap", load_evaluation(file).config["metadata"]["name"])
    assert [each["kind"] for each in config["metadata"]["ownerReferences"]] == ["Job"], "it goes when its Job does"
    flags = ["ci", "report", "--job", file, "--store", trained.store, "--out", "report.md", "--exit-code"]
    assert "The gate is passed." in bricks(*flags, "--web", "https://store.example").out
    report = Path("report.md").read_text(encoding="utf-8")
    first, second, *rest = report.splitlines()
    assert first == "<!-- bricks-evaluation: default -->"
    assert second == "### ✅ Evaluation default of `12e456789012`: passed"
    (row,) = [line.split(" | ") for line in rest if line.startswith("| `held_out.loss.ema` ")]
    before, after = (numbers(trained, "ema")[key] for key in ("before", "after"))
    assert row[1:4] == [f"{before:.4g}", f"{after:.4g}", f"−{(before - after) / before:.1%}"]
    assert "✅ at most 0.5 of base |" in report
    assert "https://store.example/artifacts/evaluate/" in report
    assert "@everyone" not in report
    assert "<b>" not in report
    assert "⚠️" not in report, "the image is of the commit"

    # Gates are judged when read: the same artifact, another gate, and nothing runs.
    render(bricks, trained.run_file(PASSES, FAILS), "--profile", profile)
    said = bricks(*flags, code=1)
    assert "1 of 2 gates are not passed: held_out.loss.best (failed)." in said.error
    assert "### ❌" in Path("report.md").read_text(encoding="utf-8")

    # Another commit of the same run has another cache key, though nothing else differs.
    other = render(bricks, trained.run_file(PASSES), "--profile", profile, sha="b" * 40)
    without_cluster(bricks.folder, monkeypatch)
    said = bricks("ci", "report", "--job", other, "--store", trained.store, "--exit-code", code=75)
    assert "holds no report" in said.error


def test_a_job_that_fails_without_a_report_is_infrastructure(bricks, double, profile, tmp_path):
    (tmp_path / "volume").mkdir()
    file = render(bricks, bricks.run_file(inputs_of="nobody"), "--profile", profile)
    create(double, file)
    with Kubelet(double, NAMESPACE, tmp_path / "pods", mounts={"/store": tmp_path / "volume"}):
        waited = bricks("ci", "wait", "--job", file, "--timeout", "5m", "--every", "0.3")
    assert "Job eval-12e456789012-default-r1 failed: pod " in waited.out
    flags = ["ci", "report", "--job", file, "--store", tmp_path / "volume/store", "--out", "report.md"]
    assert "ended with 65" in bricks(*flags, "--exit-code", code=75).error
    report = Path("report.md").read_text(encoding="utf-8")
    assert "### ⚠️ Evaluation default of `12e456789012`: no verdict" in report
    assert "has not ingested these sources" in report
    assert bricks(*flags).code == 0


def test_a_run_of_the_controllers_is_reported_on_in_the_same_way(bricks, tmp_path):
    gate = {"metric": "held_out.loss.ema", "at_most_of_base": 0.5}
    answer(tmp_path / "store", load_run(bricks.run_file()), code_version=f"0.1.0+{SHA[:12]}")
    file = render(bricks, bricks.run_file(gates=[gate]), "--any-code")
    said = bricks("ci", "report", "--job", file, "--store", tmp_path / "store", "--exit-code")
    assert "### ✅" in said.out


@pytest.mark.parametrize(
    ("made_by", "says"),
    [
        (f"0.1.0+{SHA[:12]}", None),
        (f"0.1.0+{SHA[:12]}-dirty", "with changes"),
        ("0.1.0+abcdef012345", "`abcdef012345`: the image is not of this commit"),
        ("0.1.0", "version 0.1.0"),
    ],
)
def test_a_report_says_when_another_code_than_the_commits_made_it(bricks, tmp_path, made_by, says):
    file = render(bricks, bricks.run_file())
    answer(tmp_path / "store", load_evaluation(file).run, code_version=made_by)
    out = bricks("ci", "report", "--job", file, "--store", tmp_path / "store").out
    assert says in out if says else "⚠️" not in out


def test_waiting_says_why_and_survives_an_api_server_that_fails_for_a_while(bricks, double, profile):
    file = render(bricks, bricks.run_file(), "--profile", profile)
    create(double, file)
    trouble = iter([Fault(status=503), Fault(drop="before"), Fault(status=429), Fault(status=401)])
    answered = []

    def fail_later(request):
        if request.resource == "jobs" and request.verb == "get":
            answered.append(request)
            return next(trouble, None) if len(answered) > 1 else None
        return None

    double.faults.append(fail_later)
    thread, said = bricks.background("ci", "wait", "--job", file, "--timeout", "2m", "--every", "0.1")
    for _ in range(600):
        if len(answered) > 8:
            break
        thread.join(0.1)
    double.cluster(NAMESPACE).delete("Job", "eval-12e456789012-default-r1", foreground=False)
    thread.join(60)
    assert said[0].code == 75
    assert "was deleted" in said[0].error
    assert "waits" in said[0].out
    assert "Trying again" in said[0].out


def test_waiting_in_a_queue_is_told_in_kueues_words(bricks, double, tmp_path):
    double.make(custom("Workload", "workloads", "kueue.x-k8s.io", "v1beta2"))
    (tmp_path / "queued.yaml").write_text(yaml.safe_dump({"queues": {"gpu": "bricks-gpu"}}), encoding="utf-8")
    file = render(bricks, bricks.run_file(), "--profile", tmp_path / "queued.yaml")
    create(double, file)
    cluster, name = double.cluster(NAMESPACE), "eval-12e456789012-default-r1"
    job = cluster.patch("Job", name, {"spec": {"suspend": True}})
    says = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu"
    labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
    waits = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": says}
    make(
        double,
        "Workload",
        f"job-{name}",
        api_version="kueue.x-k8s.io/v1beta2",
        metadata={"labels": labels},
        status={"conditions": [waits]},
    )
    said = bricks("ci", "wait", "--job", file, "--timeout", "0.5s", "--every", "0.1", code=75)
    assert said.out == f"Job {name} waits in queue bricks-gpu: {says}.\n"


def test_waiting_for_a_job_that_is_not_there_says_how_to_create_it(bricks, profile):
    file = render(bricks, bricks.run_file(), "--profile", profile)
    said = bricks("ci", "wait", "--job", file, "--timeout", "1s", "--every", "0.1", code=65)
    assert "kubectl create -f" in said.error


def test_waiting_for_another_job_of_the_same_name_is_refused(bricks, double, profile):
    file = render(bricks, bricks.run_file(), "--profile", profile)
    create(double, file)
    render(bricks, bricks.run_file(inputs_of="somebody", clip={"min_frames": 20}), "--profile", profile)
    assert "is for other work" in bricks("ci", "wait", "--job", file, "--timeout", "1s", code=65).error


def test_waiting_ends_with_75_when_its_time_is_up(bricks, double, profile):
    file = render(bricks, bricks.run_file(), "--profile", profile)
    create(double, file)
    assert "goes on" in bricks("ci", "wait", "--job", file, "--timeout", "0.3s", "--every", "0.1", code=75).error


@pytest.mark.parametrize("timeout", ["soon", "-3m", "1d", ""])
def test_a_timeout_that_is_no_time_is_refused(bricks, timeout):
    file = render(bricks, bricks.run_file())
    assert "110m" in bricks("ci", "wait", "--job", file, "--timeout", timeout, code=64).error


def test_a_volume_of_the_cluster_cannot_be_read_from_outside(bricks, profile):
    file = render(bricks, bricks.run_file(), "--profile", profile)
    said = bricks("ci", "report", "--job", file, "--exit-code", code=75)
    assert "volume of the cluster" in said.error


def test_bricks_eval_is_another_name_for_bricks_ci_that_no_help_tells():
    from typer.main import get_command

    from jobs.bricks import app

    command = get_command(app)
    assert set(command.commands["eval"].commands) == set(command.commands["ci"].commands)
    assert command.commands["eval"].hidden
    assert not command.commands["ci"].hidden
