"""Any run and any cluster that our contract accepts, for tests that hold for all of them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from bricks_core.cluster.launcher import Owner, Task
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import BrickRun, load_run
from bricks_core.spec.stages import STAGES

QUICKSTART = load_run(Path(__file__).parents[2] / "k8s/runs/quickstart.yaml")

SHARDED = [name for name, stage in STAGES.items() if stage.sharded]
run_names = st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True)
names = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
resource_names = st.builds(lambda domain, name: f"{domain}.io/{name}", names, names)
quantities = st.builds(
    lambda number, unit: f"{number}{unit}", st.integers(1, 2000), st.sampled_from(["Mi", "Gi", "Ti"])
)
cpus = st.sampled_from(["1", "500m", "0.5", "8", "96"])
small_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


stage_settings = st.fixed_dictionaries(
    {},
    optional={
        "shards": st.integers(1, 10_000),
        "parallelism": st.integers(1, 10_000),
        "cpu": cpus,
        "memory": quantities,
        "scratch": quantities,
        "gpus": st.integers(0, 16),
        "deadline_s": st.integers(60, 10**6),
    },
)
cluster_settings = st.fixed_dictionaries(
    {},
    optional={
        "nodes": maybe(st.integers(1, 256)),
        "gpus_per_node": maybe(st.integers(0, 16)),
        "launcher": maybe(st.sampled_from(["pytorchjob", "trainjob", "job"])),
        "queue": maybe(st.just("") | names),
        "priority_class": maybe(st.just("") | names),
        "stages": st.dictionaries(st.sampled_from(list(STAGES)), stage_settings, max_size=3),
    },
)
tolerations = st.lists(
    st.fixed_dictionaries({"key": resource_names, "operator": st.just("Exists")})
    | st.fixed_dictionaries(
        {"key": names, "operator": st.just("Equal"), "value": names, "effect": st.just("NoExecute")}
    ),
    max_size=2,
)
label_maps = st.dictionaries(resource_names, names, max_size=2)
variables = st.from_regex(r"NCCL_[A-Z]{1,8}", fullmatch=True)
stores = st.just({"uri": "file:///store/bricks", "claim": "films"}) | st.fixed_dictionaries(
    {"uri": st.builds(lambda bucket: f"s3://{bucket}/bricks", names)},
    optional={"secret": names, "region": names, "endpoint": st.builds(lambda host: f"https://{host}.org", names)},
)
train_profiles = st.fixed_dictionaries(
    {},
    optional={
        "launcher": st.sampled_from(["pytorchjob", "trainjob", "job"]),
        "nodes": st.integers(1, 256),
        "gpusPerNode": st.integers(0, 16),
        "gpuResource": resource_names,
        "cpu": cpus,
        "memory": quantities,
        "scratch": quantities,
        "scratchStorageClass": st.just("") | names,
        "shm": quantities,
        "graceS": st.integers(30, 10_000),
        "maxRestarts": st.integers(0, 10),
        "rdma": st.fixed_dictionaries(
            {},
            optional={
                "resources": st.dictionaries(resource_names, st.integers(1, 8), max_size=8),
                "podAnnotations": st.dictionaries(resource_names, small_texts, max_size=2),
                "hostNetwork": st.booleans(),
                "memlock": st.sampled_from(["node", "root"]),
            },
        ),
        "nccl": st.dictionaries(variables, small_texts, max_size=3),
        "topology": st.dictionaries(resource_names, names, max_size=2),
        "excludeNodes": st.lists(names, max_size=3),
    },
)
profiles = st.builds(
    ClusterProfile.model_validate,
    st.fixed_dictionaries(
        {"store": stores},
        optional={
            "images": st.fixed_dictionaries({}, optional={"tag": names, "pullSecrets": st.lists(names, max_size=2)}),
            "secrets": st.fixed_dictionaries({}, optional={"caption": names, "tracking": names, "hub": names}),
            "serviceAccount": st.just("") | names,
            "queues": st.fixed_dictionaries({}, optional={"cpu": names, "gpu": names}),
            "priorityClass": st.just("") | names,
            "hostUsers": maybe(st.booleans()),
            "nodeSelector": label_maps,
            "gpuNodeSelector": label_maps,
            "tolerations": tolerations,
            "gpuTolerations": tolerations,
            "env": st.dictionaries(st.sampled_from(["LANG", "HTTPS_PROXY", "NCCL_DEBUG"]), small_texts),
            "train": train_profiles,
        },
    ),
)


def _run(name: str, cluster: dict, suspend: bool) -> BrickRun:
    document = QUICKSTART.model_dump(mode="json")
    document["metadata"]["name"] = name
    document["spec"] |= {"cluster": cluster, "suspend": suspend}
    return BrickRun.model_validate(document)


runs = st.builds(_run, run_names, cluster_settings, st.booleans())
owners = st.builds(Owner, run_names, st.uuids().map(str))
tasks = st.builds(
    Task,
    run=runs,
    stage=st.sampled_from(list(STAGES)),
    profile=profiles,
    attempt=st.integers(1, 20),
    owner=maybe(owners),
    excluded_nodes=st.lists(names, max_size=3, unique=True).map(tuple),
)
