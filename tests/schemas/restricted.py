"""The Pod Security standard `restricted`, as kubernetes.io/docs/concepts/security/pod-security-standards has it, and
what a pod that runs a stage keeps beyond it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tests.schemas.pods import Object

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range"),
}


def beyond_restricted(pod: Object, allow: Collection[str] = ()) -> Iterator[str]:
    """What the standard would refuse.

    `allow` "root-memlock": uid 0 with IPC_LOCK, and nothing else; "host-network": the host's network; "not-ours": all.
    """
    if "not-ours" in allow:
        return
    spec = pod["spec"]
    about = spec.get("securityContext") or {}
    root = "root-memlock" in allow
    for field in ("hostPID", "hostIPC", *(() if "host-network" in allow else ("hostNetwork",))):
        if spec.get(field):
            yield f"{field} is not for a restricted pod"
    for volume in spec.get("volumes", []):
        if kinds := sorted(set(volume) - {"name"} - VOLUMES):
            yield f"volume {volume['name']} is a {', '.join(kinds)}"
    for sysctl in about.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    every = [*spec.get("initContainers", []), *spec.get("ephemeralContainers", []), *spec["containers"]]
    for each in every:
        own = each.get("securityContext") or {}
        yield from (f"{each['name']}: {sentence}" for sentence in _container(each, about, own, root))


def _container(container: Object, about: Object, own: Object, root: bool) -> Iterator[str]:
    if own.get("privileged"):
        yield "it is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("procMount", "Default") != "Default":
        yield "procMount is not Default"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        yield "it does not drop ALL capabilities"
    if extra := set(capabilities.get("add", [])) - ({"IPC_LOCK"} if root else {"NET_BIND_SERVICE"}):
        yield f"it adds {', '.join(sorted(extra))}"
    user = own.get("runAsUser", about.get("runAsUser"))
    if not root and (user == 0 or own.get("runAsNonRoot", about.get("runAsNonRoot")) is not True):
        yield "it may run as root"
    seccomp = (own.get("seccompProfile") or about.get("seccompProfile") or {}).get("type")
    if seccomp not in ("RuntimeDefault", "Localhost"):
        yield "it has no seccomp profile"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "it has a hostPort"


def beyond_stage(pod: Object) -> Iterator[str]:
    """What is missing of what every pod that runs a stage has: it may be reading a stranger's video."""
    spec = pod["spec"]
    if "bricks.dev/stage" not in ((pod.get("metadata") or {}).get("labels") or {}):
        return
    if spec.get("automountServiceAccountToken") is not False:
        yield "it gets a service account's token"
    if spec.get("enableServiceLinks") is not False:
        yield "it is told of the namespace's services"
    if not isinstance((spec.get("securityContext") or {}).get("runAsUser"), int):
        yield "its user is no number"
    for volume in spec.get("volumes", []):
        if set(volume) & {"secret", "projected", "hostPath"}:
            yield f"volume {volume['name']} shows it what it does not need"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} is not bounded"
    for each in spec["containers"]:
        if (each.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            yield f"{each['name']} can write to its root"
        limits = (each.get("resources") or {}).get("limits") or {}
        for name in ("memory", "ephemeral-storage"):
            if name not in limits:
                yield f"{each['name']} is not limited in {name}"
        if each.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            yield f"{each['name']} does not keep its last lines"
