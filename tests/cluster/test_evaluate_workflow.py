"""The workflow that evaluates a commit: what may start it and with which rights, and its steps as they are run."""

import base64
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from bricks_core.cluster.evaluation import load_evaluation
from jobs import ci
from tests.cluster.answered import answer
from tests.cluster.command_line import NAMESPACE, SMALL
from tests.kubernetes.access import service_account
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.serve import certificate

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yaml"))
SHA = "0123456789abcdef0123456789abcdef01234567"
NEEDED = ("kubectl", "jq", "curl")

needs_programs = pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)), reason=f"The steps are shell, and need {', '.join(NEEDED)}."
)


def loaded(file):
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    return document | {"on": document.pop(True)}  # YAML 1.1 takes "on" for true


WORKFLOW = loaded(ROOT / ".github/workflows/evaluate.yaml")
JOB = WORKFLOW["jobs"]["evaluate"]
STEPS = {step.get("name", step.get("uses", "")): step for step in JOB["steps"]}


# What may start it


def test_only_a_label_or_a_person_starts_an_evaluation():
    assert WORKFLOW["on"] == {
        "pull_request": {"types": ["labeled"]},
        "workflow_dispatch": WORKFLOW["on"]["workflow_dispatch"],
    }
    assert "github.event.label.name == 'run-eval'" in JOB["if"]


def test_code_of_a_fork_is_never_run_with_our_rights():
    assert "pull_request_target" not in json.dumps(WORKFLOW)
    assert "github.event.pull_request.head.repo.full_name == github.repository" in JOB["if"]
    (checkout,) = [step for step in JOB["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"] == {"ref": "${{ github.event.pull_request.base.sha }}", "persist-credentials": False}


def test_the_workflow_has_no_more_rights_than_it_uses():
    assert WORKFLOW["permissions"] == {}
    assert JOB["permissions"] == {
        "contents": "read",
        "id-token": "write",
        "packages": "read",
        "pull-requests": "write",
    }
    assert JOB["environment"] == "gpu-eval"


def test_a_newer_evaluation_of_a_pull_request_cancels_the_older_one():
    assert JOB["concurrency"]["cancel-in-progress"] is True
    assert "pull_request.number" in JOB["concurrency"]["group"]
    assert "concurrency" not in WORKFLOW, "another label would cancel what runs"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_commit_with_their_version_beside(file):
    used = re.findall(r"uses: *(\S+) *(.*)", file.read_text(encoding="utf-8"))
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r"# v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_that_a_stranger_writes_is_put_into_a_script(file):
    for job in loaded(file)["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "expressions go through the environment, which no shell reads"


def test_every_command_of_ours_is_one_that_the_command_line_takes(monkeypatch):
    taken = []
    for name in ("render", "wait", "report"):
        command = next(each for each in ci.app.registered_commands if (each.name or each.callback.__name__) == name)
        monkeypatch.setattr(command, "callback", recording(command.callback, taken, name))
    script = STEPS["Evaluate"]["run"].replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\S+=\S+ +)*bricks ci ([^\n|&>]+)", script, re.M)
    assert [line.split()[0] for line in lines] == ["render", "wait", "report"]
    for line in lines:
        words = [re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", word) for word in shlex.split(re.sub(r"\$\(\(.*?\)\)", "1", line))]
        ci.app(args=words, standalone_mode=False)
    assert taken == ["render", "wait", "report"]


def recording(callback, taken, name):
    @functools.wraps(callback)
    def record(**_):
        taken.append(name)

    return record


# Its steps, as GitHub runs them


class Runner:
    """Runs a step's script as GitHub's runner does, with stand-ins for GitHub alone: its token server and its gh."""

    def __init__(self, folder, server, token):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "temp").mkdir()
        self.comments = folder / "comments.json"
        self.comments.write_text("[]", encoding="utf-8")
        gh = folder / "bin" / "gh"
        gh.write_text(GH.replace("PYTHON", sys.executable), encoding="utf-8")
        gh.chmod(0o755)
        bricks = folder / "bin" / "bricks"
        bricks.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobs.bricks "$@"\n', encoding="utf-8")
        bricks.chmod(0o755)
        self.env = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "COMMENTS": str(self.comments),
            "GITHUB_ENV": str(folder / "env"),
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "GITHUB_REPOSITORY": "somebody/films",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_ACTOR": "somebody",
            "RUNNER_TEMP": str(folder / "temp"),
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "the runner's",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{token}?version=2",
            "SHA": SHA,
            "IMAGE_DIGEST": "sha256:" + "1" * 64,
            "NAMESPACE": NAMESPACE,
            "SUITE": JOB["env"]["SUITE"],
            "PULL_REQUEST": "7",
            "EVERY_S": "0.2",
            "WEB": "",
            "KUBE_CA": base64.b64encode(certificate()[1]).decode(),
            "KUBE_SERVER": server.url,
        }

    def step(self, name, code=0, **env):
        ended = self.start(name, **env)
        out, _ = ended.communicate(timeout=120)
        assert ended.returncode == code, f"{name} ended with {ended.returncode}:\n{out}"
        self._take_over()
        return out

    def start(self, name, **env):
        script = self.folder / f"{name}.sh"
        script.write_text(STEPS[name]["run"], encoding="utf-8")
        return subprocess.Popen(
            ["bash", "-e", str(script)],
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def output(self):
        return dict(
            line.split("=", 1) for line in Path(self.env["GITHUB_OUTPUT"]).read_text(encoding="utf-8").splitlines()
        )

    def _take_over(self):
        file = Path(self.env["GITHUB_ENV"])
        if file.exists():
            self.env |= dict(line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines())


GH = """#!PYTHON
import json, os, re, sys
file, words = os.environ["COMMENTS"], sys.argv[1:]
comments = json.load(open(file))
path = next(word for word in words if word.startswith("repos/somebody/films/issues/"))
method = words[words.index("--method") + 1] if "--method" in words else "GET"
if method == "GET":
    print(json.dumps(comments))
    sys.exit()
body = open(words[words.index("--field") + 1].removeprefix("body=@")).read()
if method == "POST":
    comments.append({"id": 100 + len(comments), "user": {"type": "Bot"}, "body": body, "path": path})
else:
    (found,) = [each for each in comments if path.endswith(f"/comments/{each['id']}")]
    found["body"] = body
json.dump(comments, open(file, "w"))
"""


class TokenServer(ThreadingHTTPServer):
    """GitHub's, which tells a workflow who it is: here a token that the double knows."""

    def __init__(self, token):
        super().__init__(("127.0.0.1", 0), _Tokens)
        self.token, self.asked = token, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/token"


class _Tokens(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Authorization"]))
        body = json.dumps({"value": self.server.token}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def tokens(double):
    server = TokenServer(double.token(service_account(NAMESPACE, "ci")))
    allow_ci(double)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def runner(double, tokens, tmp_path):
    runner = Runner(tmp_path, double, tokens.url)
    run = SMALL | {"spec": SMALL["spec"] | {"gates": [{"metric": "held_out.loss.ema", "at_most_of_base": 0.5}]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    (tmp_path / "volume").mkdir()
    store = {"uri": "file:///store/store", "claim": "films"}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"store": store}), encoding="utf-8")
    runner.env |= {"RUN_FILE": "run.yaml", "PROFILE": "profile.yaml", "BRICKS_STORE": str(tmp_path / "volume/store")}
    runner.step("Log in to the cluster", SERVER=double.url, AUTHORITY=runner.env["KUBE_CA"], AUDIENCE="bricks-ci")
    return runner


def allow_ci(server):
    """The rights that the chart gives a CI, read from its template."""
    text = (ROOT / "helm/bricks/templates/rbac.yaml").read_text(encoding="utf-8")
    rules = re.search(r"name: \{\{ \$name \}\}-ci\n.*?rules:\n(.*?)---", text, re.S)[1]
    rbac = "rbac.authorization.k8s.io/v1"
    meta = {"name": "ci", "namespace": NAMESPACE}
    server.make({"apiVersion": rbac, "kind": "Role", "metadata": meta, "rules": yaml.safe_load(rules)})
    subject = {"kind": "ServiceAccount", "name": "ci", "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ci"}
    server.make({"apiVersion": rbac, "kind": "RoleBinding", "metadata": meta, "subjects": [subject], "roleRef": role})


def rendered(runner):
    """What the workflow will render: the run that its Job answers."""
    out = subprocess.run(
        ["bricks", "ci", "render", "--run", "run.yaml", "--sha", SHA, "--profile", "profile.yaml"],
        cwd=runner.folder,
        env=runner.env,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    (runner.folder / "asked.yaml").write_text(out.stdout, encoding="utf-8")
    return load_evaluation(runner.folder / "asked.yaml").run


@needs_programs
def test_a_commit_is_judged_and_told_in_one_comment_that_is_kept_up_to_date(runner, double, tokens, tmp_path):
    answer(tmp_path / "volume/store", rendered(runner), code_version=f"0.1.0+{SHA[:12]}")
    with Kubelet(double, NAMESPACE, tmp_path / "pods", mounts={"/store": tmp_path / "volume"}):
        out = runner.step("Evaluate")
    assert "job.batch/eval-0123456789ab-default-r1 created" in out
    assert "is complete" in out
    assert runner.output()["code"] == "0"
    assert ("/token?version=2&audience=bricks-ci", "bearer the runner's") in tokens.asked
    runner.step("Summary")
    assert "### ✅" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    runner.step("Comment")
    runner.step("Verdict", CODE="0")

    # A stricter gate and the same commit: the Job is taken up, not made anew, and judged again.
    run = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    run["spec"]["gates"][0]["at_most_of_base"] = 0.3
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    Path(runner.env["GITHUB_OUTPUT"]).unlink()
    assert "already exists" in runner.step("Evaluate")
    assert len(double.cluster(NAMESPACE).list("Job")) == 1
    assert runner.output()["code"] == "1"
    runner.step("Comment")
    (comment,) = json.loads(runner.comments.read_text(encoding="utf-8"))
    assert comment["path"] == "repos/somebody/films/issues/7/comments"
    assert "❌ at most 0.3 of base" in comment["body"]
    runner.step("Verdict", CODE="1", code=1)


@needs_programs
def test_an_evaluation_that_breaks_is_tried_once_more_and_then_says_nothing_of_the_commit(runner, double, tmp_path):
    with Kubelet(double, NAMESPACE, tmp_path / "pods", mounts={"/store": tmp_path / "volume"}):
        runner.step("Evaluate")
    assert runner.output()["code"] == "75"
    names = [job["metadata"]["name"] for job in double.cluster(NAMESPACE).list("Job")]
    assert names == ["eval-0123456789ab-default-r1", "eval-0123456789ab-default-r2"]
    assert "no verdict" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "::warning::" in runner.step("Verdict", CODE="75")


@needs_programs
def test_a_cancelled_workflow_takes_its_job_with_it(runner, double):
    step = runner.start("Evaluate")
    deadline = time.monotonic() + 60
    while not any(request.verb == "get" and request.resource == "jobs" for request in double.requests):
        assert time.monotonic() < deadline
        assert step.poll() is None, step.stdout.read()
        time.sleep(0.1)
    step.send_signal(signal.SIGINT)
    out, _ = step.communicate(timeout=60)
    assert step.returncode == 143, out
    assert double.cluster(NAMESPACE).list("Job") == []


def test_a_step_without_an_answer_is_red(runner):
    runner.step("Verdict", CODE="", code=1)
