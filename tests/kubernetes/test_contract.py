"""What an API server does, as far as we lean on it: the same tests on the double and, where it is at hand, a real one.

A test that fails on the real server is wrong about Kubernetes; one that fails on the double shows where the double is.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bricks_core.cluster.api import AlreadyThere, Changed, NotThere, Refused
from bricks_core.errors import ClusterDenied
from tests.kubernetes.conftest import Server
from tests.kubernetes.double import client_of
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.raw import JSON_PATCH, STRATEGIC, Answered, Api, eventually
from tests.kubernetes.real import token_of

Object = dict[str, Any]


def config_map(name: str, data: Object | None = None, **meta: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}, "data": data or {"a": "1"}}


def pod(name: str, **meta: Any) -> Object:
    spec = {"containers": [{"name": "main", "image": "x"}], "terminationGracePeriodSeconds": 7}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **meta}, "spec": spec}


def job(name: str, program: str = "pass", **spec: Any) -> Object:
    container = {"name": "main", "image": "x", "command": ["python", "-c", program]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 5}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": template, **spec}}


def owner(obj: Object, *, blocks: bool = True) -> Object:
    meta = obj["metadata"]
    named = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**named, "controller": True, "blockOwnerDeletion": blocks}


@pytest.fixture
def maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


@pytest.fixture
def pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


@pytest.fixture
def jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def refused(status: int) -> pytest.RaisesExc[Answered]:
    return pytest.raises(Answered, match=rf"^{status}:")


# Names, versions, conflicts


def test_an_object_gets_a_uid_a_version_and_a_time_and_is_found_by_its_name(api: Api, maps: str) -> None:
    made = api.post(maps, config_map("a"))
    meta = made["metadata"]
    assert uuid.UUID(meta["uid"])
    assert int(meta["resourceVersion"]) > 0
    assert meta["creationTimestamp"].endswith("Z")
    assert api.get(f"{maps}/a") == made


def test_a_name_is_taken_once(api: Api, maps: str) -> None:
    api.post(maps, config_map("a"))
    with refused(409) as raised:
        api.post(maps, config_map("a"))
    assert raised.value.body["reason"] == "AlreadyExists"
    assert raised.value.body["message"] == 'configmaps "a" already exists'


def test_what_is_not_there_is_told_by_name_and_kind(api: Api, jobs: str) -> None:
    with refused(404) as raised:
        api.get(f"{jobs}/nothing")
    assert raised.value.body["message"] == 'jobs.batch "nothing" not found'
    assert raised.value.body["details"] == {"name": "nothing", "group": "batch", "kind": "jobs"}


def test_a_name_that_is_no_dns_name_is_refused(api: Api, maps: str) -> None:
    with refused(422) as raised:
        api.post(maps, config_map("Not_A_Name"))
    assert raised.value.body["details"]["causes"][0]["field"] == "metadata.name"


def test_a_name_can_be_made_up_from_a_prefix(api: Api, maps: str) -> None:
    asked = config_map("")
    asked["metadata"] = {"generateName": "made-"}
    names = {api.post(maps, asked)["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("made-") and len(name) == len("made-") + 5 for name in names)


def test_nothing_is_made_in_a_namespace_that_is_not_there(api: Api) -> None:
    with refused(404) as raised:
        api.post("/api/v1/namespaces/nowhere/configmaps", config_map("a"))
    assert raised.value.body["details"] == {"name": "nowhere", "kind": "namespaces"}


def test_a_write_that_names_an_old_version_is_a_conflict(api: Api, maps: str) -> None:
    old = api.post(maps, config_map("a"))
    new = api.put(f"{maps}/a", {**old, "data": {"a": "2"}})
    assert int(new["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])
    with refused(409) as raised:
        api.put(f"{maps}/a", {**old, "data": {"a": "3"}})
    assert raised.value.body["reason"] == "Conflict"
    assert "the object has been modified" in raised.value.body["message"]
    with refused(409):
        version = old["metadata"]["resourceVersion"]
        api.patch(f"{maps}/a", {"metadata": {"resourceVersion": version}, "data": {"a": "3"}})
    assert api.patch(f"{maps}/a", {"data": {"a": "4"}})["data"] == {"a": "4"}


def test_a_write_that_changes_nothing_makes_no_version(api: Api, maps: str) -> None:
    made = api.post(maps, config_map("a"))
    assert api.put(f"{maps}/a", made)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_what_the_server_wrote_cannot_be_rewritten(api: Api, maps: str) -> None:
    made = api.post(maps, config_map("a"))
    changed = copy.deepcopy(made)
    changed["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    assert api.put(f"{maps}/a", changed)["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    with refused(422):
        api.patch(f"{maps}/a", {"metadata": {"uid": str(uuid.uuid4())}})
    changed["metadata"] |= {"uid": str(uuid.uuid4()), "resourceVersion": ""}
    with refused(409):
        api.put(f"{maps}/a", changed)


def test_an_immutable_config_map_stays_as_it_is(api: Api, maps: str) -> None:
    api.post(maps, {**config_map("a"), "immutable": True})
    with refused(422):
        api.patch(f"{maps}/a", {"data": {"a": "2"}})
    assert api.patch(f"{maps}/a", {"metadata": {"labels": {"b": "c"}}})["metadata"]["labels"] == {"b": "c"}


# Patches


def test_a_merge_patch_sets_and_removes(api: Api, maps: str) -> None:
    api.post(maps, config_map("a", {"keep": "1", "change": "1", "drop": "1"}))
    assert api.patch(f"{maps}/a", {"data": {"change": "2", "drop": None}})["data"] == {"keep": "1", "change": "2"}


def test_a_json_patch_is_done_as_a_whole_or_not_at_all(api: Api, maps: str) -> None:
    api.post(maps, config_map("a", {"x": "1"}))
    done = api.patch(
        f"{maps}/a",
        [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "add", "path": "/data/y", "value": "2"}],
        JSON_PATCH,
    )
    assert done["data"] == {"x": "1", "y": "2"}
    with refused(422):
        api.patch(
            f"{maps}/a",
            [{"op": "remove", "path": "/data/y"}, {"op": "test", "path": "/data/x", "value": "other"}],
            JSON_PATCH,
        )
    assert api.get(f"{maps}/a")["data"] == {"x": "1", "y": "2"}


def test_a_strategic_patch_knows_containers_by_name_and_conditions_by_type(api: Api, pods: str) -> None:
    api.post(pods, pod("a"))
    change = {"spec": {"containers": [{"name": "main", "image": "y"}]}}
    patched = api.patch(f"{pods}/a", change, STRATEGIC)
    assert [(each["name"], each["image"]) for each in patched["spec"]["containers"]] == [("main", "y")]
    for kind in ("Ready", "PodScheduled", "Ready"):
        status = {"conditions": [{"type": kind, "status": "True"}]}
        patched = api.patch(f"{pods}/a/status", {"status": status}, STRATEGIC)
    assert sorted(each["type"] for each in patched["status"]["conditions"]) == ["PodScheduled", "Ready"]


# Lists and selectors


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("colour=red", "ad"),
        ("colour!=red", "bc"),
        ("colour in (red, blue)", "abd"),
        ("colour notin (red,blue)", "c"),
        ("colour", "abd"),
        ("!colour", "c"),
        ("colour=red,size=1", "a"),
        ("colour==red,size notin (1)", "d"),
    ],
)
def test_labels_select(api: Api, maps: str, selector: str, names: str) -> None:
    api.post(maps, config_map("a", labels={"colour": "red", "size": "1", "t": "1"}))
    api.post(maps, config_map("b", labels={"colour": "blue", "t": "1"}))
    api.post(maps, config_map("c", labels={"t": "1"}))
    api.post(maps, config_map("d", labels={"colour": "red", "t": "1"}))
    found = api.get(maps, labelSelector=f"t=1,{selector}")["items"]
    assert "".join(each["metadata"]["name"] for each in found) == names


def test_fields_select_and_unknown_ones_are_refused(api: Api, maps: str, pods: str) -> None:
    for name in ("a", "b"):
        api.post(maps, config_map(name))
        api.post(pods, pod(name))
    assert len(api.get(maps, fieldSelector="metadata.name=a")["items"]) == 1
    api.patch(f"{pods}/b/status", {"status": {"phase": "Running"}})
    pending = api.get(pods, fieldSelector="status.phase!=Running")["items"]
    assert [each["metadata"]["name"] for each in pending] == ["a"]
    with refused(400):
        api.get(maps, fieldSelector="data.a=1")


def test_a_list_says_what_it_is_and_comes_in_pages_of_one_moment(api: Api, maps: str) -> None:
    for name in "abcde":
        api.post(maps, config_map(name, labels={"t": "1"}))
    page = api.get(maps, limit=2, labelSelector="t=1")
    assert page["kind"] == "ConfigMapList"
    assert "kind" not in page["items"][0]
    names, version = [each["metadata"]["name"] for each in page["items"]], page["metadata"]["resourceVersion"]
    api.post(maps, config_map("d2", labels={"t": "1"}))  # comes after the moment of the list
    while token := page["metadata"].get("continue"):
        page = api.get(maps, limit=2, labelSelector="t=1", **{"continue": token})
        names += [each["metadata"]["name"] for each in page["items"]]
        assert page["metadata"]["resourceVersion"] == version
    assert names == list("abcde")


# Watches


def test_a_watch_tells_what_happened_since_a_version_and_goes_on_where_it_was_cut(api: Api, maps: str) -> None:
    start = api.get(maps)["metadata"]["resourceVersion"]
    for name in ("a", "b"):
        api.post(maps, config_map(name))
    api.patch(f"{maps}/a", {"data": {"a": "2"}})
    api.delete(f"{maps}/b")
    events = []
    for event in api.watch(maps, resourceVersion=start):
        events.append((event["type"], event["object"]["metadata"]["name"]))
        version = event["object"]["metadata"]["resourceVersion"]
        if len(events) == 3:
            break
    assert events == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a")]
    event = next(api.watch(maps, resourceVersion=version))
    assert (event["type"], event["object"]["metadata"]["name"]) == ("DELETED", "b")
    assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)


def test_a_watch_without_a_version_begins_with_all_that_is_there(api: Api, maps: str) -> None:
    api.post(maps, config_map("a"))
    watch = api.watch(maps, fieldSelector="metadata.name=a")
    event = next(watch)
    assert (event["type"], event["object"]["kind"]) == ("ADDED", "ConfigMap")


def test_to_a_watch_with_a_selector_an_object_that_loses_its_label_is_deleted(api: Api, maps: str) -> None:
    start = api.get(maps)["metadata"]["resourceVersion"]
    api.post(maps, config_map("a"))
    api.patch(f"{maps}/a", {"metadata": {"labels": {"in": "yes"}}})
    api.patch(f"{maps}/a", {"data": {"a": "2"}})
    api.patch(f"{maps}/a", {"metadata": {"labels": {"in": None}}})
    types = []
    for event in api.watch(maps, resourceVersion=start, labelSelector="in=yes"):
        types.append(event["type"])
        if len(types) == 3:
            break
    assert types == ["ADDED", "MODIFIED", "DELETED"]


def test_a_watch_ends_when_its_time_is_over(api: Api, maps: str) -> None:
    start = api.get(maps)["metadata"]["resourceVersion"]
    assert list(api.watch(maps, resourceVersion=start, seconds=1)) == []


def test_bookmarks_tell_how_far_a_quiet_watch_is(api: Api, maps: str) -> None:
    start = api.get(maps)["metadata"]["resourceVersion"]
    quiet = {"fieldSelector": "metadata.name=nothing", "allowWatchBookmarks": "true"}
    events = list(api.watch(maps, resourceVersion=start, seconds=4, **quiet))
    assert events
    assert {event["type"] for event in events} == {"BOOKMARK"}
    assert events[-1]["object"]["kind"] == "ConfigMap"
    assert int(events[-1]["object"]["metadata"]["resourceVersion"]) >= int(start)


# Deletion


def test_only_the_object_that_is_meant_is_deleted(api: Api, maps: str) -> None:
    made = api.post(maps, config_map("a"))
    with refused(409):
        api.delete(f"{maps}/a", preconditions={"uid": str(uuid.uuid4())})
    gone = api.delete(f"{maps}/a", preconditions={"uid": made["metadata"]["uid"]})
    assert (gone["kind"], gone["status"]) == ("Status", "Success")
    with refused(404):
        api.delete(f"{maps}/a")


def test_a_finalizer_holds_what_is_deleted(api: Api, maps: str) -> None:
    api.post(maps, config_map("a", finalizers=["bricks.dev/hold"]))
    api.delete(f"{maps}/a")
    held = api.get(f"{maps}/a")
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    with refused(422) as raised:
        api.patch(f"{maps}/a", {"metadata": {"finalizers": ["bricks.dev/hold", "bricks.dev/more"]}})
    assert "no new finalizers can be added" in raised.value.body["message"]
    api.patch(f"{maps}/a", {"metadata": {"finalizers": None}})
    with refused(404):
        api.get(f"{maps}/a")


def test_a_collection_is_deleted_by_its_labels(api: Api, maps: str) -> None:
    for name in "ab":
        api.post(maps, config_map(name, labels={"name": name}))
    api.call("DELETE", maps, labelSelector="name=a")
    assert [each["metadata"]["name"] for each in api.get(maps, labelSelector="name")["items"]] == ["b"]


def test_a_pod_on_a_node_gets_its_grace_and_goes_when_the_kubelet_says_so(api: Api, pods: str) -> None:
    api.post(pods, pod("a"))
    bind(api, pods, "a")
    going = api.delete(f"{pods}/a")
    assert going["kind"] == "Pod"
    assert api.get(f"{pods}/a")["metadata"]["deletionGracePeriodSeconds"] == 7
    assert api.get(f"{pods}/a")["metadata"]["deletionTimestamp"] > going["metadata"]["creationTimestamp"]
    api.delete(f"{pods}/a", gracePeriodSeconds=0)
    with refused(404):
        api.get(f"{pods}/a")


def test_a_pod_without_a_node_or_that_has_ended_goes_at_once(api: Api, pods: str) -> None:
    api.post(pods, pod("unbound"))
    api.post(pods, pod("ended"))
    bind(api, pods, "ended")
    api.patch(f"{pods}/ended/status", {"status": {"phase": "Succeeded"}})
    for name in ("unbound", "ended"):
        api.delete(f"{pods}/{name}")
        with refused(404):
            api.get(f"{pods}/{name}")


def test_a_pod_is_bound_once(api: Api, pods: str) -> None:
    api.post(pods, pod("a"))
    bind(api, pods, "a")
    assert api.get(f"{pods}/a")["spec"]["nodeName"] == "node-1"
    with refused(409):
        bind(api, pods, "a")


def bind(api: Api, pods: str, name: str) -> None:
    target = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
    api.post(
        f"{pods}/{name}/binding",
        {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target},
    )


# Owners


def test_what_is_owned_goes_after_its_owner(api: Api, maps: str) -> None:
    parent = api.post(maps, config_map("parent"))
    child = api.post(maps, config_map("child", ownerReferences=[owner(parent)]))
    api.post(maps, config_map("grandchild", ownerReferences=[owner(child)]))
    api.delete(f"{maps}/parent", propagationPolicy="Background")
    eventually(lambda: not names(api, maps) & {"parent", "child", "grandchild"})


def test_in_the_foreground_the_owner_goes_last(api: Api, maps: str) -> None:
    parent = api.post(maps, config_map("parent"))
    api.post(maps, config_map("child", ownerReferences=[owner(parent)], finalizers=["bricks.dev/hold"]))
    api.delete(f"{maps}/parent", propagationPolicy="Foreground")
    eventually(lambda: api.get(f"{maps}/child")["metadata"].get("deletionTimestamp"))
    waiting = api.get(f"{maps}/parent")["metadata"]
    assert waiting["deletionTimestamp"]
    assert waiting["finalizers"] == ["foregroundDeletion"]
    api.patch(f"{maps}/child", {"metadata": {"finalizers": None}})
    eventually(lambda: not names(api, maps) & {"parent", "child"})


def test_a_child_that_does_not_block_is_not_waited_for(api: Api, maps: str) -> None:
    parent = api.post(maps, config_map("parent"))
    mine = [owner(parent, blocks=False)]
    api.post(maps, config_map("child", ownerReferences=mine, finalizers=["bricks.dev/hold"]))
    api.delete(f"{maps}/parent", propagationPolicy="Foreground")
    eventually(lambda: "parent" not in names(api, maps))
    eventually(lambda: api.get(f"{maps}/child")["metadata"].get("deletionTimestamp"))
    api.patch(f"{maps}/child", {"metadata": {"finalizers": None}})


def test_orphans_stay_and_forget_their_owner(api: Api, maps: str) -> None:
    parent = api.post(maps, config_map("parent"))
    api.post(maps, config_map("child", ownerReferences=[owner(parent)]))
    api.delete(f"{maps}/parent", propagationPolicy="Orphan")
    eventually(lambda: "parent" not in names(api, maps))
    assert "ownerReferences" not in api.get(f"{maps}/child")["metadata"]


def test_a_child_of_an_owner_that_is_gone_is_collected(api: Api, maps: str) -> None:
    parent = api.post(maps, config_map("parent"))
    api.delete(f"{maps}/parent")
    api.post(maps, config_map("late", ownerReferences=[owner(parent)]))
    eventually(lambda: "late" not in names(api, maps))


def test_a_child_with_two_owners_stays_while_one_does(api: Api, maps: str) -> None:
    parents = [api.post(maps, config_map(name)) for name in ("one", "two")]
    references = [{**owner(each), "controller": False} for each in parents]
    api.post(maps, config_map("child", ownerReferences=references))
    api.delete(f"{maps}/one")
    left = eventually(lambda: len(api.get(f"{maps}/child")["metadata"]["ownerReferences"]) == 1)
    assert left
    api.delete(f"{maps}/two")
    eventually(lambda: "child" not in names(api, maps))


def test_a_namespace_goes_with_all_that_is_in_it(api: Api) -> None:
    name = f"short-{uuid.uuid4().hex[:6]}"
    api.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    api.post(f"/api/v1/namespaces/{name}/configmaps", config_map("a", finalizers=["bricks.dev/hold"]))
    api.delete(f"/api/v1/namespaces/{name}")
    eventually(lambda: api.get(f"/api/v1/namespaces/{name}")["status"]["phase"] == "Terminating")
    with refused(403) as raised:
        api.post(f"/api/v1/namespaces/{name}/configmaps", config_map("b"))
    assert "because it is being terminated" in raised.value.body["message"]
    eventually(lambda: api.get(f"/api/v1/namespaces/{name}/configmaps/a")["metadata"].get("deletionTimestamp"))
    api.patch(f"/api/v1/namespaces/{name}/configmaps/a", {"metadata": {"finalizers": None}})
    eventually(lambda: name not in names(api, "/api/v1/namespaces"))


def names(api: Api, path: str) -> set[str]:
    return {each["metadata"]["name"] for each in api.get(path)["items"]}


# Rights


@pytest.fixture
def guest(server: Server, api: Api, namespace: str) -> Api:
    """A service account that may look at pods and write one ConfigMap."""
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["get", "patch"]},
    ]
    rbac, group = "rbac.authorization.k8s.io", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "guest"}}
    api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "look"}, "rules": rules}
    api.post(f"{group}/roles", role)
    subject = {"kind": "ServiceAccount", "name": "guest", "namespace": namespace}
    reference = {"apiGroup": rbac, "kind": "Role", "name": "look"}
    api.post(
        f"{group}/rolebindings",
        {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": "look"}}
        | {"subjects": [subject], "roleRef": reference},
    )
    user = Api(server.url, token_of(api, namespace, "guest"))
    eventually(lambda: user.get(f"/api/v1/namespaces/{namespace}/pods")["kind"] == "PodList")
    return user


def test_a_role_gives_what_it_says_and_nothing_else(api: Api, guest: Api, namespace: str, pods: str, maps: str) -> None:
    api.post(maps, config_map("mine"))
    assert guest.get(pods)["items"] == []
    assert guest.patch(f"{maps}/mine", {"data": {"b": "2"}})["data"]["b"] == "2"
    with refused(403) as raised:
        guest.post(pods, pod("a"))
    assert raised.value.body["message"] == (
        f'pods is forbidden: User "system:serviceaccount:{namespace}:guest" cannot create resource "pods" in API group '
        f'"" in the namespace "{namespace}"'
    )
    for method, path in (
        ("GET", f"{maps}/other"),
        ("GET", maps),
        ("DELETE", f"{maps}/mine"),
        ("GET", f"{pods}/a/log"),
        ("GET", "/api/v1/namespaces/default/pods"),
        ("GET", "/api/v1/nodes"),
        ("GET", f"/api/v1/namespaces/{namespace}/pods?watch=true"),
    ):
        with refused(403):
            guest.call(method, path)


@pytest.mark.parametrize(("verb", "resource", "may"), [("list", "pods", True), ("create", "pods", False)])
def test_somebody_can_ask_what_they_may(guest: Api, namespace: str, verb: str, resource: str, may: bool) -> None:
    asked = {"namespace": namespace, "verb": verb, "resource": resource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = guest.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert answer["status"]["allowed"] is may


def test_a_token_that_is_nobodys_is_not_let_in(server: Server) -> None:
    with refused(401):
        Api(server.url, "made-up").get("/api/v1/namespaces/default/pods")


# Kinds of our own


@pytest.fixture
def toys(api: Api, namespace: str) -> Iterator[str]:
    """The path of a kind that this test defines."""
    plural = f"toys{uuid.uuid4().hex[:6]}"
    path = f"/apis/bricks.test/v1/namespaces/{namespace}/{plural}"
    with refused(404):
        api.get(path)
    define_toys(api, path)
    yield path
    api.delete(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.bricks.test")

    def unknown() -> bool:
        try:
            api.get(path)
        except Answered as answer:
            return answer.status == 404
        return False

    eventually(unknown)


def define_toys(api: Api, path: str) -> None:
    """Define a kind whose objects are at a path, and wait until it is served."""
    plural = path.rpartition("/")[2]
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["colour"],
                "properties": {
                    "colour": {"type": "string", "enum": ["red", "blue"]},
                    "size": {"type": "integer", "minimum": 1, "default": 3},
                    "parts": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                    "either": {"x-kubernetes-int-or-string": True},
                },
            },
            "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
        },
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.bricks.test"},
        "spec": {
            "group": "bricks.test",
            "scope": "Namespaced",
            "names": {"kind": plural.title().removesuffix("s"), "plural": plural},
            "versions": [{**version, "subresources": {"status": {}}}],
        },
    }
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    eventually(lambda: api.get(path)["kind"])


def toy(path: str, spec: Object, name: str = "a") -> Object:
    kind = path.rpartition("/")[2].title().removesuffix("s")
    return {"apiVersion": "bricks.test/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def test_a_kind_is_served_as_soon_as_it_is_defined(api: Api, toys: str) -> None:
    plural = toys.rpartition("/")[2]
    served = {each["name"] for each in api.get("/apis/bricks.test/v1")["resources"]}
    assert {plural, f"{plural}/status"} <= served
    made = api.post(
        toys, toy(toys, {"colour": "red", "unknown": 1, "parts": [{"name": "x", "odd": 1}], "free": {"z": 1}})
    )
    assert made["spec"] == {"colour": "red", "size": 3, "parts": [{"name": "x"}], "free": {"z": 1}}
    assert made["metadata"]["generation"] == 1
    assert api.get(toys)["items"] == [made]


@pytest.mark.parametrize(
    ("spec", "where", "what"),
    [
        ({"colour": "green"}, "spec.colour", "supported values"),
        ({}, "spec.colour", "Required value"),
        ({"colour": "red", "size": 0}, "spec.size", "should be greater than or equal to 1"),
        ({"colour": "red", "size": "big"}, "spec.size", 'must be of type integer: "string"'),
        ({"colour": "red", "either": 1.5}, "spec.either", "must be of type"),
    ],
)
def test_what_does_not_fit_its_schema_is_refused(api: Api, toys: str, spec: Object, where: str, what: str) -> None:
    with refused(422) as raised:
        api.post(toys, toy(toys, spec))
    (cause,) = raised.value.body["details"]["causes"]
    assert cause["field"] == where
    assert what in cause["message"]


def test_the_status_has_a_door_of_its_own(api: Api, toys: str) -> None:
    made = api.post(toys, {**toy(toys, {"colour": "red"}), "status": {"phase": "early"}})
    assert "status" not in made
    made["status"] = {"phase": "late", "odd": "pruned"}
    made["spec"]["colour"] = "blue"
    done = api.put(f"{toys}/a/status", made)
    assert (done["status"], done["spec"]["colour"], done["metadata"]["generation"]) == ({"phase": "late"}, "red", 1)
    done["status"] = {"phase": "other"}
    done["spec"]["colour"] = "blue"
    changed = api.put(f"{toys}/a", done)
    assert (changed["status"], changed["spec"]["colour"]) == ({"phase": "late"}, "blue")
    assert changed["metadata"]["generation"] == 2
    with refused(409):
        api.put(f"{toys}/a/status", made)
    labelled = api.patch(f"{toys}/a", {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 2


def test_a_strategic_patch_is_not_for_kinds_of_our_own(api: Api, toys: str) -> None:
    api.post(toys, toy(toys, {"colour": "red"}))
    with refused(415):
        api.patch(f"{toys}/a", {"spec": {"colour": "blue"}}, STRATEGIC)


# Jobs


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"restartPolicy": "Always"}, "spec.template.spec.restartPolicy"),
        ({"restartPolicy": None}, "spec.template.spec.restartPolicy"),
        ({"containers": []}, "spec.template.spec.containers"),
    ],
)
def test_a_job_that_cannot_be_is_refused(api: Api, jobs: str, change: Object, where: str) -> None:
    asked = job("a")
    asked["spec"]["template"]["spec"] |= change
    with refused(422) as raised:
        api.post(jobs, asked)
    assert where in {cause["field"] for cause in raised.value.body["details"]["causes"]}


def test_of_a_job_only_how_much_at_once_is_changed(api: Api, jobs: str) -> None:
    made = api.post(jobs, job("a", parallelism=2, completions=4))
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert (labels["job-name"], labels["controller-uid"]) == ("a", made["metadata"]["uid"])
    assert api.patch(f"{jobs}/a", {"spec": {"parallelism": 3}})["spec"]["parallelism"] == 3
    with refused(422) as raised:
        api.patch(f"{jobs}/a", {"spec": {"completions": 5}})
    assert "field is immutable" in raised.value.body["message"]


def conditions(obj: Object) -> Object:
    found = (obj.get("status") or {}).get("conditions") or []
    return {each["type"]: each for each in found if each["status"] == "True"}


def test_a_job_is_complete_when_its_pods_have_succeeded(
    server: Server, api: Api, namespace: str, jobs: str, pods: str, tmp_path: Path
) -> None:
    with Kubelet(server, namespace, tmp_path):
        api.post(jobs, job("a", "print('hello')", completions=2, parallelism=2))
        eventually(lambda: "Complete" in conditions(api.get(f"{jobs}/a")))
        status = api.get(f"{jobs}/a")["status"]
        assert (status["succeeded"], status.get("active", 0)) == (2, 0)
        assert status["completionTime"]
        found = api.get(pods, labelSelector="job-name=a")["items"]
        assert [each["status"]["phase"] for each in found] == ["Succeeded"] * 2
        assert found[0]["metadata"]["ownerReferences"][0]["kind"] == "Job"
        assert found[0]["metadata"]["name"].startswith("a-")


def test_a_job_fails_when_its_pods_failed_too_often(
    server: Server, api: Api, namespace: str, jobs: str, pods: str, tmp_path: Path
) -> None:
    with Kubelet(server, namespace, tmp_path):
        api.post(jobs, job("a", "raise SystemExit(3)", backoffLimit=0))
        failed = eventually(lambda: conditions(api.get(f"{jobs}/a")).get("Failed"))
        assert failed is not None
        assert failed["reason"] == "BackoffLimitExceeded"
        assert api.get(f"{jobs}/a")["status"]["failed"] == 1


def test_a_job_that_is_deleted_as_we_do_takes_its_pods_along(
    server: Server, api: Api, namespace: str, jobs: str, pods: str, tmp_path: Path
) -> None:
    cluster = server.cluster(namespace)
    with Kubelet(server, namespace, tmp_path):
        api.post(jobs, job("a", "import time; time.sleep(600)"))
        eventually(lambda: [each for each in api.get(pods)["items"] if each["status"]["phase"] == "Running"])
        cluster.delete("Job", "a")
        eventually(lambda: not names(api, pods) and not names(api, jobs))


def test_a_job_that_is_deleted_without_a_word_leaves_its_pods(api: Api, jobs: str, pods: str) -> None:
    api.post(jobs, job("a"))
    eventually(lambda: names(api, pods))
    api.call("DELETE", f"{jobs}/a")
    eventually(lambda: not names(api, jobs))
    assert eventually(lambda: [each for each in api.get(pods)["items"] if "ownerReferences" not in each["metadata"]])


# Our client, which everything else uses


def test_our_client_tells_what_is_what(server: Server, namespace: str) -> None:
    cluster = server.cluster(namespace)
    made = cluster.create(config_map("a"))
    with pytest.raises(AlreadyThere, match=f"There is a ConfigMap a in namespace {namespace} already"):
        cluster.create(config_map("a"))
    with pytest.raises(NotThere, match=f"There is no ConfigMap b in namespace {namespace}"):
        cluster.get("ConfigMap", "b")
    with pytest.raises(Refused, match=r"metadata\.name"):
        cluster.create(config_map("Not_A_Name"))
    cluster.patch("ConfigMap", "a", {"data": {"a": "2"}})
    with pytest.raises(Changed):
        cluster.patch("ConfigMap", "a", {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}})
    with pytest.raises(ClusterDenied, match="install Kubeflow's Training Operator"):
        cluster.list("PyTorchJob")
    found = cluster.list("ConfigMap")
    assert ("v1", "ConfigMap", "a") in {(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in found}
    cluster.delete("ConfigMap", "a", uid=str(uuid.uuid4()))  # another one: as good as deleted
    assert cluster.get("ConfigMap", "a")["data"] == {"a": "2"}
    cluster.delete("ConfigMap", "a", uid=made["metadata"]["uid"])
    cluster.delete("ConfigMap", "a")
    eventually(lambda: "a" not in {each["metadata"]["name"] for each in cluster.list("ConfigMap")})


def test_our_client_knows_what_is_served(server: Server, namespace: str) -> None:
    cluster = server.cluster(namespace)
    assert cluster.version().startswith("v1.")
    assert cluster.knows("Job")
    assert not cluster.knows("PyTorchJob")


def test_our_client_writes_a_status_that_it_has_read(server: Server, api: Api, namespace: str, pods: str) -> None:
    cluster = server.cluster(namespace)
    made = cluster.create(pod("a"))
    made["status"]["phase"] = "Running"
    assert cluster.write_status(made)["status"]["phase"] == "Running"
    with pytest.raises(Changed):
        cluster.write_status(made)


def test_an_event_told_again_is_counted(server: Server, api: Api, namespace: str) -> None:
    cluster = server.cluster(namespace)
    about = cluster.create(config_map("a"))
    for _ in range(3):
        cluster.tell(about, "Waits", "for room")
    cluster.tell(about, "Waits", "for something else", warning=True)
    selector = f"involvedObject.name=a,involvedObject.uid={about['metadata']['uid']}"
    told = api.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector=selector)["items"]
    assert sorted((each["message"], each["count"], each["type"]) for each in told) == [
        ("for room", 3, "Normal"),
        ("for something else", 1, "Warning"),
    ]


def test_who_lacks_a_right_is_told_which(server: Server, guest: Api, namespace: str) -> None:
    cluster = client_of(server.url, guest.token, namespace)
    with pytest.raises(ClusterDenied, match=r'needs the verb "create" on "jobs.batch"') as raised:
        cluster.create(job("a"))
    assert guest.token not in str(raised.value)
