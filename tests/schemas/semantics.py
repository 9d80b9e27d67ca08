"""What no schema says: values that are enumerations, names and their lengths, fields that need each other.

Every rule is a generator of sentences over one object. Each has a test that it catches its fault
(test_semantics.py). Sources: Kubernetes' API reference and pkg/apis/*/validation, kubeflow/trainer's webhooks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

from tests.schemas.pods import Object, amount, pods_of
from tests.schemas.restricted import beyond_restricted, beyond_stage

LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
"""RFC 1035: what a Service, a PyTorchJob and a TrainJob are called."""
DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
"""RFC 1123."""
SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
LABEL_NAME = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
PORT_NAME = re.compile(r"^(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-))*$")

ENUMS: dict[str, set[str]] = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "capabilities.drop": {"ALL"},
    "cleanPodPolicy": {"None", "Running", "All"},
    "completionMode": {"Indexed", "NonIndexed"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "elasticPolicy.rdzvBackend": {"c10d", "etcd", "etcd-v2"},
    "emptyDir.medium": {"", "Memory"},
    "externalTrafficPolicy": {"Cluster", "Local"},
    "failurePolicy.restartStrategy": {"Recreate", "BlockingRecreate"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "hostPath.type": {
        *("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
    },
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "matchExpressions.operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"},
    "onExitCodes.operator": {"In", "NotIn"},
    "podFailurePolicy.rules.action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "policyTypes": {"Ingress", "Egress"},
    "ports.protocol": {"TCP", "UDP", "SCTP"},
    "preemptionPolicy": {"Never", "PreemptLowerPriority"},
    "reclaimPolicy": {"Delete", "Retain"},
    "restartPolicy": {"Always", "OnFailure", "Never", "ExitCode"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "spec.sessionAffinity": {"None", "ClientIP"},
    "spec.strategy.type": {"Recreate", "RollingUpdate"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "tolerations.effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "tolerations.operator": {"Exists", "Equal"},
    "volumeBindingMode": {"Immediate", "WaitForFirstConsumer"},
    "volumeMode": {"Filesystem", "Block"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
}
"""By the end of the place where a value stands, without numbers of items."""
QUANTITIES = ("sizeLimit", "nominalQuota", "borrowingLimit", "lendingLimit", "resources.requests.storage")
VOLUME_KINDS = {"configMap", "secret", "emptyDir", "ephemeral", "persistentVolumeClaim", "hostPath", "projected", "csi"}
FIELD_PATH = re.compile(
    r"^(metadata\.(name|namespace|uid)|metadata\.(labels|annotations)\['[^']+'\]"
    r"|spec\.(nodeName|serviceAccountName)|status\.(podIP|podIPs|hostIP|hostIPs))$"
)


def doubts(obj: Object, allow: Collection[str] = ()) -> list[str]:
    """What is wrong with an object that fits its schema. `allow`: see tests.schemas.valid."""
    found = [sentence for rule in RULES for sentence in rule(obj)]
    for path, pod in pods_of(obj):
        found += [f"{path}: {sentence}" for rule in POD_RULES for sentence in rule(pod)]
        # A training job's pods are restarted by its own policy; all others are held to one here.
        found += [f"{path}: {sentence}" for sentence in beyond_restricted(pod, allow)]
        found += [f"{path}: {sentence}" for sentence in beyond_stage(pod)]
    return found


# --- any object


def enumerations(obj: Object) -> Iterator[str]:
    for place, value in _leaves(obj):
        allowed = next((values for end, values in ENUMS.items() if _ends(place, end)), None)
        if allowed is not None and isinstance(value, str) and value not in allowed:
            yield f"{place} is {value!r}, and can be {', '.join(sorted(allowed))}"


def quantities(obj: Object) -> Iterator[str]:
    for place, value in _leaves(obj):
        if any(_ends(place, end) for end in QUANTITIES):
            try:
                amount(value)
            except ValueError as error:
                yield f"{place}: {error}"


def names(obj: Object) -> Iterator[str]:
    kind, name = obj.get("kind"), (obj.get("metadata") or {}).get("name", "")
    if not SUBDOMAIN.match(name) or len(name) > 253:
        yield f"metadata.name {name!r} is no DNS name"
    if kind in ("Service", "PyTorchJob", "TrainJob", "Namespace") and (len(name) > 63 or not DNS_LABEL.match(name)):
        yield f"metadata.name {name!r} of a {kind} is no DNS label"
    if kind in ("Service", "PyTorchJob", "TrainJob") and not LABEL.match(name):
        yield f"metadata.name {name!r} of a {kind} must begin with a letter (RFC 1035)"
    namespace = (obj.get("metadata") or {}).get("namespace")
    if namespace is not None and (not DNS_LABEL.match(namespace) or len(namespace) > 63):
        yield f"metadata.namespace {namespace!r} is no DNS label"
    longest = {
        "Job": lambda spec: f"{name}-{(spec.get('completions') or 1) - 1}",
        "PyTorchJob": lambda spec: f"{name}-worker-{spec['pytorchReplicaSpecs']['Worker'].get('replicas', 1) - 1}",
        "TrainJob": lambda spec: f"{name}-node-0-{(spec.get('trainer') or {}).get('numNodes', 1) - 1}",
    }.get(str(kind))
    if longest and len(host := longest(obj["spec"])) > 63:
        yield f"its last pod would be called {host}, which is longer than a host's name can be (63)"


def labels(obj: Object) -> Iterator[str]:
    for place, metadata in _metadata(obj):
        for what in ("labels", "annotations"):
            for key, value in (metadata.get(what) or {}).items():
                prefix, _, name = key.rpartition("/")
                if not LABEL_NAME.match(name) or len(name) > 63 or (prefix and not SUBDOMAIN.match(prefix)):
                    yield f"{place}.{what}: {key!r} is no key"
                if not isinstance(value, str):
                    yield f"{place}.{what}.{key} is {value!r}, and must be a text"
                elif what == "labels" and value and (not LABEL_NAME.match(value) or len(value) > 63):
                    yield f"{place}.labels.{key} is {value!r}, which no label can be"


def jobs(obj: Object) -> Iterator[str]:
    """batch/v1 Jobs, also inside a TrainingRuntime."""
    for path, spec in _job_specs(obj):
        template, completions = spec["template"]["spec"], spec.get("completions")
        restart = template.get("restartPolicy")
        if restart not in ("Never", "OnFailure"):
            yield f"{path}: restartPolicy of a Job is {restart!r}, and can be Never or OnFailure"
        if restart != "Never":
            for field in ("podFailurePolicy", "backoffLimitPerIndex"):
                if field in spec:
                    yield f"{path}: {field} needs restartPolicy Never, not {restart}"
        if "podFailurePolicy" in spec and spec.get("podReplacementPolicy", "Failed") != "Failed":
            yield f"{path}: with podFailurePolicy, podReplacementPolicy can only be Failed"
        if spec.get("completionMode") == "Indexed" and (completions is None or spec.get("parallelism") is None):
            yield f"{path}: an Indexed Job must say completions and parallelism"
        if "backoffLimitPerIndex" in spec and spec.get("completionMode") != "Indexed":
            yield f"{path}: backoffLimitPerIndex needs completionMode Indexed"
        if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
            yield f"{path}: maxFailedIndexes needs backoffLimitPerIndex"
        if spec.get("maxFailedIndexes", 0) > (completions or 0) and "maxFailedIndexes" in spec:
            yield f"{path}: maxFailedIndexes is more than completions"
        if spec.get("parallelism", 1) > 100_000 or (completions or 1) > 100_000:
            yield f"{path}: more than 100000 pods"
        yield from (f"{path}: {sentence}" for sentence in _failure_rules(spec))


def _failure_rules(spec: Object) -> Iterator[str]:
    rules = (spec.get("podFailurePolicy") or {}).get("rules", [])
    if len(rules) > 20:
        yield "podFailurePolicy has more than 20 rules"
    containers = {each["name"] for each in spec["template"]["spec"].get("containers", [])}
    for rule in rules:
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield "a rule of podFailurePolicy has either onExitCodes or onPodConditions"
        if rule.get("action") == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield "FailIndex needs backoffLimitPerIndex"
        codes = rule.get("onExitCodes") or {}
        if "containerName" in codes and codes["containerName"] not in containers:
            yield f"podFailurePolicy speaks of a container {codes['containerName']!r} that is not there"
        values = codes.get("values", [])
        if values != sorted(set(values)):
            yield f"exit codes {values} must be in order, each once"
        if codes.get("operator") == "In" and 0 in values:
            yield "exit code 0 is no failure"


def training_jobs(obj: Object) -> Iterator[str]:
    spec = obj.get("spec") or {}
    if obj.get("kind") == "PyTorchJob":
        elastic, workers = spec.get("elasticPolicy") or {}, spec["pytorchReplicaSpecs"].get("Worker") or {}
        for name, replica in spec["pytorchReplicaSpecs"].items():
            if name not in ("Master", "Worker"):
                yield f"pytorchReplicaSpecs has {name!r}: there are Master and Worker"
            containers = [each["name"] for each in replica["template"]["spec"]["containers"]]
            if "pytorch" not in containers:
                yield f"no container of {name} is called pytorch, but {', '.join(containers)}"
            if "restartPolicy" in replica["template"]["spec"]:
                yield f"restartPolicy of {name} stands in its template, where the operator overwrites it"
        if "nprocPerNode" in spec and "nProcPerNode" in elastic:
            yield "nprocPerNode stands in the spec and in elasticPolicy"
        if not str(spec.get("nprocPerNode", "auto")).isdigit() and spec.get("nprocPerNode") not in (
            *("auto", "cpu", "gpu", None),
        ):
            yield f"nprocPerNode is {spec['nprocPerNode']!r}"
        if elastic and "Master" in spec["pytorchReplicaSpecs"]:
            yield "an elastic job has workers alone"
        if elastic and not elastic["minReplicas"] <= workers.get("replicas", 1) <= elastic["maxReplicas"]:
            yield "replicas are not between minReplicas and maxReplicas"
    if obj.get("kind") == "TrainingRuntime":
        parts = {job["name"]: job["template"] for job in spec["template"]["spec"]["replicatedJobs"]}
        if "node" not in parts:
            yield f"no replicated job is called node, but {', '.join(parts)}"
        else:
            containers = [each["name"] for each in parts["node"]["spec"]["template"]["spec"]["containers"]]
            if "node" not in containers:
                yield f"no container is called node, but {', '.join(containers)}"
        if "ttlSecondsAfterFinished" in spec["template"]["spec"]:
            yield "Trainer makes a JobSet again that its ttlSecondsAfterFinished removed"
    if obj.get("kind") == "TrainJob" and "runtimeRef" not in spec:
        yield "runtimeRef is missing"


def config_maps(obj: Object) -> Iterator[str]:
    if obj.get("kind") != "ConfigMap":
        return
    for key in obj.get("data") or {}:
        if not re.match(r"^[-._a-zA-Z0-9]{1,253}$", key):
            yield f"data has a key {key!r}"
    if sum(len(str(value).encode()) for value in (obj.get("data") or {}).values()) > 1 << 20:
        yield "data is larger than 1 MiB"


def services(obj: Object) -> Iterator[str]:
    if obj.get("kind") != "Service":
        return
    ports = obj["spec"].get("ports", [])
    if len(ports) > 1 and any("name" not in port for port in ports):
        yield "several ports must have names"
    for port in ports:
        yield from _port(port, port.get("port"))


# --- pods


def containers(pod: Object) -> Iterator[str]:
    spec = pod["spec"]
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    every = [*spec.get("initContainers", []), *spec["containers"]]
    yield from _twice("containers", [each["name"] for each in every])
    yield from _twice("volumes", volumes)
    for name in [*volumes, *(each["name"] for each in every)]:
        if not DNS_LABEL.match(name) or len(name) > 63:
            yield f"{name!r} is no DNS label"
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUME_KINDS:
            yield f"volume {volume['name']} has {', '.join(sorted(kinds)) or 'no source'}: it must have one source"
    mounted = {mount["name"] for each in every for mount in each.get("volumeMounts", [])}
    for name in sorted(set(volumes) - mounted):
        yield f"volume {name} is mounted nowhere"
    for each in every:
        mounts = each.get("volumeMounts", [])
        yield from _twice(f"{each['name']}: mountPaths", [mount["mountPath"] for mount in mounts])
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"{each['name']} mounts {mount['name']!r}, and there is no such volume"
            if not mount["mountPath"].startswith("/"):
                yield f"{each['name']} mounts {mount['name']} at {mount['mountPath']!r}, which is no absolute path"
        if not re.match(r"^[^\s]+$", each.get("image", "")):
            yield f"{each['name']} has no image"
        for port in each.get("ports", []):
            yield from _port(port, port.get("containerPort"))


def environment(pod: Object) -> Iterator[str]:
    for each in pod["spec"]["containers"]:
        names = [variable["name"] for variable in each.get("env", [])]
        yield from _twice(f"{each['name']}: env", names)
        for variable in each.get("env", []):
            if not ENV_NAME.match(variable["name"]):
                yield f"{each['name']}: {variable['name']!r} is no variable's name"
            if "value" in variable and "valueFrom" in variable:
                yield f"{each['name']}: {variable['name']} has value and valueFrom"
            if not isinstance(variable.get("value", ""), str):
                yield f"{each['name']}: {variable['name']} is no text"
            path = ((variable.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath")
            if path is not None and not FIELD_PATH.match(path):
                yield f"{each['name']}: {variable['name']} is taken from {path!r}, which a pod has not"
        secrets = [ref["secretRef"]["name"] for ref in each.get("envFrom", []) if "secretRef" in ref]
        yield from _twice(f"{each['name']}: secrets", secrets)
        for name in secrets:
            if not SUBDOMAIN.match(name):
                yield f"{each['name']}: {name!r} is no Secret's name"


def resources(pod: Object) -> Iterator[str]:
    for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        given = each.get("resources") or {}
        requests, limits = given.get("requests") or {}, given.get("limits") or {}
        try:
            amounts = {name: (amount(value), amount(limits.get(name, value))) for name, value in requests.items()}
            devices = {name: amount(value) for name, value in (requests | limits).items() if "/" in name}
        except ValueError as error:
            yield f"{each['name']}: {error}"
            continue
        for name, (request, limit) in amounts.items():
            if request < 0:
                yield f"{each['name']}: less than nothing of {name}"
            if request > limit:
                yield f"{each['name']} requests {requests[name]} of {name}, and is limited to {limits[name]}"
        for name, count in devices.items():
            if count != int(count):
                yield f"{each['name']}: {name} is {count}, and a device is whole"
            if name not in limits:
                yield f"{each['name']}: {name} must be in limits"
            elif name in requests and requests[name] != limits[name]:
                yield f"{each['name']}: request and limit of {name} differ"


def scheduling(pod: Object) -> Iterator[str]:
    spec = pod["spec"]
    if spec.get("hostNetwork") and spec.get("hostUsers") is False:
        yield "hostUsers false does not go with hostNetwork"
    for toleration in spec.get("tolerations", []):
        if toleration.get("operator", "Equal") == "Exists" and toleration.get("value"):
            yield f"a toleration that Exists has a value: {toleration}"
        if not toleration.get("key") and toleration.get("operator") != "Exists":
            yield f"a toleration without key must say Exists: {toleration}"
    if "subdomain" in spec and (len(spec["subdomain"]) > 63 or not DNS_LABEL.match(spec["subdomain"])):
        yield f"subdomain {spec['subdomain']!r} is no DNS label"
    for field in ("serviceAccountName", "priorityClassName"):
        if field in spec and not SUBDOMAIN.match(spec[field]):
            yield f"{field} {spec[field]!r} is no DNS name"


RULES: list[Callable[[Object], Iterator[str]]] = [
    *(enumerations, quantities, names, labels, jobs, training_jobs, config_maps, services),
]
POD_RULES: list[Callable[[Object], Iterator[str]]] = [containers, environment, resources, scheduling]


# --- reading objects


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value and its place, without the numbers of items."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, place)
    else:
        yield place, value


def _ends(place: str, end: str) -> bool:
    return place == end or place.endswith(f".{end}")


def _metadata(obj: Object) -> Iterator[tuple[str, Object]]:
    yield "metadata", obj.get("metadata") or {}
    for path, pod in pods_of(obj):
        if pod is not obj:
            yield f"{path}.metadata", pod.get("metadata") or {}


def _job_specs(obj: Object) -> Iterator[tuple[str, Object]]:
    if obj.get("kind") == "Job":
        yield "spec", obj["spec"]
    if obj.get("kind") == "CronJob":
        yield "spec.jobTemplate.spec", obj["spec"]["jobTemplate"]["spec"]
    if obj.get("kind") == "TrainingRuntime":
        for job in obj["spec"]["template"]["spec"]["replicatedJobs"]:
            # The JobSet's controller makes them Indexed and says how many.
            indexed = {"completionMode": "Indexed", "completions": 1, "parallelism": 1}
            yield f"replicatedJobs {job['name']}", indexed | job["template"]["spec"]


def _twice(what: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what}: {name!r} stands {count} times"


def _port(port: Object, number: Any) -> Iterator[str]:
    name = port.get("name")
    if name is not None and (len(name) > 15 or not PORT_NAME.match(name) or name.endswith("-")):
        yield f"{name!r} is no port's name: at most 15 of a-z, 0-9 and -"
    if not isinstance(number, int) or not 1 <= number <= 65535:
        yield f"{number!r} is no port"
