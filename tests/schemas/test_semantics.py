"""Each rule catches its fault: a sound manifest of ours, one thing wrong with it, and what is said of it."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from tests.schemas import documents, mistakes, valid

ROOT = Path(__file__).parents[2]
DELETED = object()


def objects(file):
    return {each["kind"]: each for each in documents((ROOT / file).read_text(encoding="utf-8"))}


def wrong(obj, path, value):
    """The object with one place of it changed; numbers in the path count items, a last + adds one, ~ is a key's /."""
    changed = deepcopy(obj)
    *way, last = (name.replace("~", "/") for name in path.split("/"))
    place = changed
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    if last == "+":
        place.append(value)
    elif value is DELETED:
        del place[int(last) if isinstance(place, list) else last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return changed


JOB = objects("k8s/clip.yaml")["Job"]
CONFIG = objects("k8s/clip.yaml")["ConfigMap"]
TRAINING = objects("k8s/train-64f.yaml")["PyTorchJob"]
QUEUE = next(
    each
    for each in documents((ROOT / "k8s/cluster/queues.yaml").read_text(encoding="utf-8"))
    if each["metadata"]["name"] == "bricks-gpu" and each["kind"] == "ClusterQueue"
)
POD = "spec/template/spec"
MAIN = f"{POD}/containers/0"
WORKER = "spec/pytorchReplicaSpecs/Worker"

STRUCTURE = [
    (JOB, "spec/parallelsim", 3, "parallelsim"),
    (JOB, "spec/completions", "16", "'16'"),
    (JOB, f"{MAIN}/imagepullPolicy", "Always", "imagepullPolicy"),
    (JOB, "apiVersion", "batch/v2", "has no batch/v2 Job"),
    (TRAINING, "spec/nprocPerNode", 8, "8 is not of type 'string'"),
    (TRAINING, f"{WORKER}/template/spec/containers/0/volumemounts", [], "volumemounts"),
    (TRAINING, "spec/runPolicy/cleanPods", "All", "cleanPods"),
    (QUEUE, "spec/cohort", "ours", "cohort"),
]
MEANING = [
    (JOB, "spec/completionMode", "indexed", "completionMode"),
    (JOB, "spec/podReplacementPolicy", "Always", "podReplacementPolicy"),
    (JOB, "spec/podReplacementPolicy", "TerminatingOrFailed", "can only be Failed"),
    (JOB, f"{POD}/restartPolicy", "never", "restartPolicy"),
    (JOB, f"{POD}/restartPolicy", "Always", "of a Job is 'Always'"),
    (JOB, f"{POD}/restartPolicy", DELETED, "of a Job is None"),
    (JOB, f"{POD}/restartPolicy", "OnFailure", "podFailurePolicy needs restartPolicy Never"),
    (JOB, f"{POD}/restartPolicy", "OnFailure", "backoffLimitPerIndex needs restartPolicy Never"),
    (JOB, "spec/completions", DELETED, "must say completions"),
    (JOB, "spec/completionMode", "NonIndexed", "needs completionMode Indexed"),
    (JOB, "spec/maxFailedIndexes", 1000, "more than completions"),
    (JOB, "spec/backoffLimitPerIndex", DELETED, "FailIndex needs backoffLimitPerIndex"),
    (JOB, "spec/backoffLimitPerIndex", DELETED, "maxFailedIndexes needs backoffLimitPerIndex"),
    (JOB, "spec/podFailurePolicy/rules/0/action", "ignore", "action"),
    (JOB, "spec/podFailurePolicy/rules/1/onExitCodes/operator", "in", "operator"),
    (JOB, "spec/podFailurePolicy/rules/1/onExitCodes/containerName", "clip", "that is not there"),
    (JOB, "spec/podFailurePolicy/rules/1/onExitCodes/values", [78, 64], "must be in order"),
    (JOB, "spec/podFailurePolicy/rules/1/onExitCodes/values", [0, 64], "0 is no failure"),
    (JOB, "spec/podFailurePolicy/rules/1/onPodConditions", [{"type": "Ready", "status": "True"}], "either"),
    (JOB, "spec/parallelism", 100_001, "more than 100000"),
    (JOB, "metadata/name", "Clip", "no DNS name"),
    (JOB, "metadata/name", "a" * 62, "longer than a host's name"),
    (JOB, "metadata/namespace", "our.namespace", "metadata.namespace"),
    (JOB, "metadata/labels/bricks.dev~~run", "x", "is no key"),
    (JOB, "metadata/labels/app", "-no-", "which no label can be"),
    (JOB, "metadata/labels/app", "a" * 64, "which no label can be"),
    (JOB, "spec/template/metadata/labels/app", "a b", "which no label can be"),
    (JOB, f"{MAIN}/imagePullPolicy", "Sometimes", "imagePullPolicy"),
    (JOB, f"{MAIN}/terminationMessagePolicy", "Logs", "terminationMessagePolicy"),
    (JOB, f"{MAIN}/image", "", "has no image"),
    (JOB, f"{MAIN}/name", "Main", "no DNS label"),
    (JOB, f"{MAIN}/env/0/name", "BRICKS-STORE", "no variable's name"),
    (JOB, f"{MAIN}/env/+", {"name": "HOME", "value": "/"}, "stands 2 times"),
    (JOB, f"{MAIN}/env/0/valueFrom", {"fieldRef": {"fieldPath": "spec.nodeName"}}, "value and valueFrom"),
    (JOB, f"{MAIN}/env/0", {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.node"}}}, "a pod has not"),
    (JOB, f"{MAIN}/envFrom/+", {"secretRef": {"name": "bricks-s3"}}, "stands 2 times"),
    (JOB, f"{MAIN}/envFrom/0/secretRef/name", "Bricks_S3", "no Secret's name"),
    (JOB, f"{MAIN}/volumeMounts/0/name", "cfg", "no such volume"),
    (JOB, f"{MAIN}/volumeMounts/0/mountPath", "/scratch", "stands 2 times"),
    (JOB, f"{MAIN}/volumeMounts/0/mountPath", "etc", "no absolute path"),
    (JOB, f"{POD}/volumes/0/name", "config_1", "no DNS label"),
    (JOB, f"{POD}/volumes/0/emptyDir", {}, "must have one source"),
    (JOB, f"{POD}/volumes/+", {"name": "more", "emptyDir": {"sizeLimit": "1Gi"}}, "mounted nowhere"),
    (JOB, f"{POD}/volumes/1/emptyDir/sizeLimit", "40 GB", "no quantity"),
    (JOB, f"{POD}/volumes/1/emptyDir/medium", "memory", "medium"),
    (JOB, f"{MAIN}/resources/limits/memory", "1GB", "no quantity"),
    (JOB, f"{MAIN}/resources/limits/memory", "1Gi", "is limited to 1Gi"),
    (JOB, f"{MAIN}/resources/requests/nvidia.com~gpu", "1", "must be in limits"),
    (JOB, f"{MAIN}/resources/limits/nvidia.com~gpu", "500m", "is whole"),
    (JOB, f"{MAIN}/ports", [{"name": "a-very-long-port", "containerPort": 1}], "no port's name"),
    (JOB, f"{MAIN}/ports", [{"name": "web", "containerPort": 70_000}], "no port"),
    (JOB, f"{POD}/serviceAccountName", "Bricks", "no DNS name"),
    (JOB, f"{POD}/tolerations", [{"key": "a", "operator": "exists"}], "operator"),
    (JOB, f"{POD}/tolerations", [{"key": "a", "operator": "Exists", "value": "b"}], "has a value"),
    (JOB, f"{POD}/tolerations", [{"effect": "NoSchedule"}], "without key"),
    (JOB, f"{POD}/subdomain", "a.b", "subdomain"),
    (JOB, f"{POD}/dnsPolicy", "HostFirst", "dnsPolicy"),
    (TRAINING, "metadata/name", "64f-train", "must begin with a letter"),
    (TRAINING, "metadata/name", "a" * 60, "longer than a host's name"),
    (TRAINING, "spec/nprocPerNode", "eight", "nprocPerNode"),
    (TRAINING, "spec/elasticPolicy/nProcPerNode", 8, "and in elasticPolicy"),
    (TRAINING, "spec/elasticPolicy/maxReplicas", 3, "not between"),
    (TRAINING, "spec/elasticPolicy/rdzvBackend", "static", "rdzvBackend"),
    (TRAINING, "spec/runPolicy/cleanPodPolicy", "running", "cleanPodPolicy"),
    (TRAINING, f"{WORKER}/restartPolicy", "onFailure", "restartPolicy"),
    (TRAINING, f"{WORKER}/template/spec/restartPolicy", "Never", "the operator overwrites it"),
    (TRAINING, f"{WORKER}/template/spec/containers/0/name", "main", "is called pytorch"),
    (TRAINING, f"{WORKER}/template/spec/containers/0/resources/limits/nvidia.com~gpu", "7", "is limited to 7"),
    (TRAINING, "spec/pytorchReplicaSpecs/Master", TRAINING["spec"]["pytorchReplicaSpecs"]["Worker"], "workers alone"),
    (CONFIG, "data/run file", "", "has a key"),
    (CONFIG, "data/run.yaml", "x" * (1 << 20), "larger than 1 MiB"),
    (QUEUE, "spec/resourceGroups/0/flavors/0/resources/0/nominalQuota", "many", "no quantity"),
]
SECURITY = [
    (JOB, f"{POD}/hostNetwork", True, "hostNetwork"),
    (JOB, f"{POD}/hostPID", True, "hostPID"),
    (JOB, f"{POD}/volumes/+", {"name": "h", "hostPath": {"path": "/"}}, "volume h is a hostPath"),
    (JOB, f"{POD}/volumes/+", {"name": "s", "secret": {"secretName": "all"}}, "what it does not need"),
    (JOB, f"{POD}/volumes/1/emptyDir", {}, "is not bounded"),
    (JOB, f"{POD}/securityContext/seccompProfile", DELETED, "no seccomp profile"),
    (JOB, f"{POD}/securityContext/seccompProfile/type", "Unconfined", "no seccomp profile"),
    (JOB, f"{POD}/securityContext/runAsNonRoot", False, "may run as root"),
    (JOB, f"{POD}/securityContext/runAsUser", 0, "may run as root"),
    (JOB, f"{POD}/securityContext/runAsUser", DELETED, "its user is no number"),
    (JOB, f"{POD}/securityContext/sysctls", [{"name": "kernel.msgmax", "value": "1"}], "sysctl kernel.msgmax"),
    (JOB, f"{POD}/automountServiceAccountToken", DELETED, "gets a service account's token"),
    (JOB, f"{POD}/enableServiceLinks", DELETED, "told of the namespace's services"),
    (JOB, f"{MAIN}/securityContext/privileged", True, "it is privileged"),
    (JOB, f"{MAIN}/securityContext/allowPrivilegeEscalation", DELETED, "allowPrivilegeEscalation"),
    (JOB, f"{MAIN}/securityContext/capabilities/drop", [], "does not drop ALL"),
    (JOB, f"{MAIN}/securityContext/capabilities/add", ["IPC_LOCK"], "adds IPC_LOCK"),
    (JOB, f"{MAIN}/securityContext/runAsUser", 0, "may run as root"),
    (JOB, f"{MAIN}/securityContext/procMount", "Unmasked", "procMount"),
    (JOB, f"{MAIN}/securityContext/readOnlyRootFilesystem", DELETED, "can write to its root"),
    (JOB, f"{MAIN}/ports", [{"containerPort": 80, "hostPort": 80}], "hostPort"),
    (JOB, f"{MAIN}/resources/limits/memory", DELETED, "not limited in memory"),
    (JOB, f"{MAIN}/terminationMessagePolicy", DELETED, "does not keep its last lines"),
]


def cases(table):
    return [pytest.param(*case, id=f"{case[0]['kind']}-{case[1]}-{number}") for number, case in enumerate(table)]


@pytest.mark.parametrize(("obj", "path", "value", "said"), cases(STRUCTURE + MEANING + SECURITY))
def test_a_fault_is_caught(obj, path, value, said):
    found = mistakes(wrong(obj, path, value), versions=["1.33"])
    assert any(said in each for each in found), found


def test_what_is_not_changed_has_no_fault():
    for each in (JOB, CONFIG, TRAINING, QUEUE):
        valid(each)


def test_root_that_pins_memory_is_allowed_where_it_is_asked_for_and_nothing_else_is():
    template = f"{WORKER}/template/spec"
    root = wrong(TRAINING, f"{template}/securityContext/runAsUser", 0)
    root = wrong(root, f"{template}/securityContext/runAsNonRoot", False)
    root = wrong(root, f"{template}/containers/0/securityContext/capabilities/add", ["IPC_LOCK"])
    assert any("may run as root" in each for each in mistakes(root))
    valid(root, allow=["root-memlock"])
    more = wrong(root, f"{template}/containers/0/securityContext/capabilities/add", ["IPC_LOCK", "SYS_ADMIN"])
    assert any("adds SYS_ADMIN" in each for each in mistakes(more, allow=["root-memlock"]))


def test_a_key_that_stands_twice_is_no_yaml_of_ours():
    with pytest.raises(yaml.YAMLError, match='the key "kind" stands twice'):
        documents("kind: Job\nmetadata: {}\nkind: Pod\n")


def test_a_training_runtime_without_a_node_is_caught(rendered_runtime):
    job = rendered_runtime["spec"]["template"]["spec"]["replicatedJobs"][0]
    valid(rendered_runtime)
    job["name"] = "trainer"
    assert any("no replicated job is called node" in each for each in mistakes(rendered_runtime))
    job["name"], job["template"]["spec"]["template"]["spec"]["containers"][0]["name"] = "node", "trainer"
    assert any("no container is called node" in each for each in mistakes(rendered_runtime))
    rendered_runtime["spec"]["template"]["spec"]["ttlSecondsAfterFinished"] = 60
    assert any("makes a JobSet again" in each for each in mistakes(rendered_runtime))


@pytest.fixture
def rendered_runtime():
    from bricks_core.cluster.launcher import Task
    from bricks_core.cluster.launchers import TRAINERS
    from bricks_core.spec.cluster import ClusterProfile
    from bricks_core.spec.run import load_run

    run = load_run(ROOT / "k8s/runs/quickstart.yaml")
    return next(
        each
        for each in TRAINERS["trainjob"].render(Task(run, "train", ClusterProfile()))
        if each["kind"] == "TrainingRuntime"
    )
