"""The kinds that the double serves from the start."""

from tests.kubernetes.failures import Resource

_RBAC = "rbac.authorization.k8s.io"


def _of(group: str, version: str, *rows: tuple[str, str, str]) -> list[Resource]:
    """rows: (kind, plural, what is special: c cluster-scoped, s status)."""
    return [
        Resource(group, version, kind, plural, namespaced="c" not in special, status="s" in special)
        for kind, plural, special in rows
    ]


KINDS = [
    *_of(
        "",
        "v1",
        ("ConfigMap", "configmaps", ""),
        ("Event", "events", ""),
        ("Namespace", "namespaces", "cs"),
        ("Node", "nodes", "cs"),
        ("PersistentVolumeClaim", "persistentvolumeclaims", "s"),
        ("Pod", "pods", "s"),
        ("Secret", "secrets", ""),
        ("Service", "services", "s"),
        ("ServiceAccount", "serviceaccounts", ""),
    ),
    *_of("apiextensions.k8s.io", "v1", ("CustomResourceDefinition", "customresourcedefinitions", "cs")),
    *_of("apps", "v1", ("Deployment", "deployments", "s"), ("StatefulSet", "statefulsets", "s")),
    *_of("batch", "v1", ("CronJob", "cronjobs", "s"), ("Job", "jobs", "s")),
    *_of("coordination.k8s.io", "v1", ("Lease", "leases", "")),
    *_of("networking.k8s.io", "v1", ("NetworkPolicy", "networkpolicies", "")),
    *_of("policy", "v1", ("PodDisruptionBudget", "poddisruptionbudgets", "s")),
    *_of(
        _RBAC,
        "v1",
        ("ClusterRole", "clusterroles", "c"),
        ("ClusterRoleBinding", "clusterrolebindings", "c"),
        ("Role", "roles", ""),
        ("RoleBinding", "rolebindings", ""),
    ),
    *_of("scheduling.k8s.io", "v1", ("PriorityClass", "priorityclasses", "c")),
]

REVIEWS = [
    Resource("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False),
    Resource("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", namespaced=False),
]
"""Kinds that are only asked, never kept."""

SUBRESOURCES = {"pods": ("binding", "eviction", "log"), "serviceaccounts": ("token",)}
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
SHORT_NAMES = {
    "configmaps": ["cm"],
    "customresourcedefinitions": ["crd", "crds"],
    "deployments": ["deploy"],
    "events": ["ev"],
    "namespaces": ["ns"],
    "nodes": ["no"],
    "persistentvolumeclaims": ["pvc"],
    "pods": ["po"],
    "serviceaccounts": ["sa"],
    "services": ["svc"],
}
