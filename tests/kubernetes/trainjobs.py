"""The TrainJob controller of the double, as Kubeflow Trainer 2.2 and 2.3 work.

A TrainJob and its TrainingRuntime become an Indexed Job of the nodes and a headless Service, PET_* are injected, and
the ends are told as Complete or Failed.

Left out: the JobSet between them (its rules that we use are worked out here: maxRestarts, FailJobSet), ClusterTraining-
Runtimes, runtimePatches, validation by webhook.
"""

from __future__ import annotations

import copy

from tests.kubernetes.failures import Object, Resource
from tests.kubernetes.jobs import INDEX, owner_of, set_condition, set_status
from tests.kubernetes.storage import Storage, seconds

API = "trainer.kubeflow.org/v1alpha1"
JOBSET = "jobset.sigs.k8s.io"
PORT = 29500


class TrainJobs:
    def work(self, storage: Storage) -> None:
        train_jobs, runtimes = storage.kind(API, "TrainJob"), storage.kind(API, "TrainingRuntime")
        if train_jobs is None or runtimes is None:
            return
        for train_job in storage.all(train_jobs):
            if not train_job["metadata"].get("deletionTimestamp"):
                _Sync(storage, train_jobs, runtimes, train_job).run()


class _Sync:
    def __init__(self, storage: Storage, train_jobs: Resource, runtimes: Resource, train_job: Object) -> None:
        self.storage, self.train_jobs, self.train_job = storage, train_jobs, train_job
        jobs, services = storage.kind("batch/v1", "Job"), storage.kind("v1", "Service")
        assert jobs is not None
        assert services is not None
        self.jobs, self.services = jobs, services
        self.spec, self.status = train_job["spec"], copy.deepcopy(train_job.get("status") or {})
        self.name, self.namespace = train_job["metadata"]["name"], train_job["metadata"]["namespace"]
        self.runtime = storage.find(runtimes, self.namespace, self.spec["runtimeRef"]["name"])

    def run(self) -> None:
        if any(self._has(kind) for kind in ("Complete", "Failed")):
            return
        if self.runtime is None:
            message = f"TrainingRuntime {self.spec['runtimeRef']['name']} is not there"
            self._condition("Failed", "TrainingRuntimeNotSupported", message)
        else:
            self._work()
        set_status(self.storage, self.train_jobs, self.train_job, self.status)

    def _work(self) -> None:
        suspended = bool(self.spec.get("suspend"))
        if suspended:
            self._condition("Suspended", "Suspended", "TrainJob is suspended")
        elif self._has("Suspended"):
            set_condition(self.status, self.storage, "Suspended", "False", "Resumed", "TrainJob is resumed")
        if self.storage.find(self.services, self.namespace, self.name) is None:
            self.storage.create(self.services, self.namespace, self._service())
        job = self.storage.find(self.jobs, self.namespace, f"{self.name}-node-0")
        if job is None:
            job = self.storage.create(self.jobs, self.namespace, self._job(suspended))
        elif bool(job["spec"].get("suspend")) != suspended:
            job = self._set_suspend(job, suspended)
        self._judge(job)

    def _set_suspend(self, job: Object, suspended: bool) -> Object:
        def change(now: Object) -> Object:
            now["spec"]["suspend"] = suspended
            return now

        return self.storage.update(self.jobs, self.namespace, job["metadata"]["name"], change)

    def _judge(self, job: Object) -> None:
        status = job.get("status") or {}
        ended = {each["type"]: each for each in status.get("conditions", []) if each["status"] == "True"}
        wanted = job["spec"]["completions"]
        ready = status.get("ready", 0) + status.get("succeeded", 0) >= wanted
        # Counted in Jobs, not in pods: there is one Job of all nodes.
        self.status["jobsStatus"] = [
            {
                "name": "node",
                "active": int(bool(status.get("active")) and not ready),
                "ready": int(ready and "Complete" not in ended),
                "succeeded": int("Complete" in ended),
                "failed": int("Failed" in ended),
                "suspended": int("Suspended" in ended),
            }
        ]
        deadline = self.spec.get("activeDeadlineSeconds")
        created = seconds(self.train_job["metadata"]["creationTimestamp"])
        if "Complete" in ended:
            self._condition("Complete", "AllJobsCompleted", "jobset completed successfully")
        elif "Failed" in ended:
            self._failed(job, ended["Failed"])
        elif deadline is not None and self.storage.clock.now() >= created + deadline:
            self._condition("Failed", "DeadlineExceeded", "TrainJob exceeded its active deadline")
            self._remove(job)

    def _failed(self, job: Object, why: Object) -> None:
        policy = self._template()["spec"].get("failurePolicy") or {}
        rules = policy.get("rules") or []
        at_once = any(
            rule["action"] == "FailJobSet" and why["reason"] in (rule.get("onJobFailureReasons") or [why["reason"]])
            for rule in rules
        )
        restarts = int(job["metadata"]["labels"].get(f"{JOBSET}/restart-attempt", "0"))
        if at_once or restarts >= policy.get("maxRestarts", 0):
            reason = "FailJobSetFailurePolicyAction" if at_once else "ReachedMaxRestarts"
            name = job["metadata"]["name"]
            self._condition("Failed", reason, f"jobset failed due to job {name}: {why['reason']}")
        elif not job["metadata"].get("deletionTimestamp"):
            self.status["restarts"] = restarts + 1
            self._remove(job)

    def _remove(self, job: Object) -> None:
        self.storage.delete(self.jobs, self.namespace, job["metadata"]["name"], {"propagationPolicy": "Foreground"})

    def _template(self) -> Object:
        assert self.runtime is not None
        return self.runtime["spec"]["template"]

    def _service(self) -> Object:
        meta = {"name": self.name, "ownerReferences": [owner_of(self.train_job)]}
        spec = {"clusterIP": "None", "selector": {f"{JOBSET}/jobset-name": self.name}, "publishNotReadyAddresses": True}
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}

    def _job(self, suspended: bool) -> Object:
        node = next(each for each in self._template()["spec"]["replicatedJobs"] if each["name"] == "node")
        template = copy.deepcopy(node["template"])
        trainer = self.spec.get("trainer") or {}
        assert self.runtime is not None
        num_nodes = trainer.get("numNodes") or self.runtime["spec"]["mlPolicy"].get("numNodes") or 1
        labels = {
            f"{JOBSET}/jobset-name": self.name,
            f"{JOBSET}/replicatedjob-name": "node",
            f"{JOBSET}/job-index": "0",
            f"{JOBSET}/restart-attempt": str(self.status.pop("restarts", 0)),
        }
        spec = template["spec"]
        spec |= {"completionMode": "Indexed", "completions": num_nodes, "parallelism": num_nodes, "suspend": suspended}
        pod = spec["template"]
        pod.setdefault("metadata", {}).setdefault("labels", {}).update(labels)
        pod["spec"] |= {"subdomain": self.name}
        container = next(each for each in pod["spec"]["containers"] if each["name"] == "node")
        for key in ("image", "command", "args"):
            if trainer.get(key):
                container[key] = trainer[key]
        if trainer.get("resourcesPerNode"):
            container["resources"] = trainer["resourcesPerNode"]
        container["env"] = [*container.get("env", []), *(trainer.get("env") or [])]
        if self.spec.get("trainer"):
            container["env"] += self._torch(num_nodes, trainer)
        meta = {
            "name": f"{self.name}-node-0",
            "labels": {**(template.get("metadata") or {}).get("labels", {}), **labels},
            "ownerReferences": [owner_of(self.train_job)],
        }
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}

    def _torch(self, num_nodes: int, trainer: Object) -> list[Object]:
        rank = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
        return [
            {"name": "PET_NNODES", "value": str(num_nodes)},
            {"name": "PET_NPROC_PER_NODE", "value": str(trainer.get("numProcPerNode", "auto"))},
            {"name": "PET_NODE_RANK", "valueFrom": rank},
            {"name": "PET_MASTER_ADDR", "value": f"{self.name}-node-0-0.{self.name}"},
            {"name": "PET_MASTER_PORT", "value": str(PORT)},
        ]

    def _has(self, kind: str) -> bool:
        return any(each["type"] == kind and each["status"] == "True" for each in self.status.get("conditions", []))

    def _condition(self, kind: str, reason: str, message: str) -> None:
        set_condition(self.status, self.storage, kind, "True", reason, message)
        for each in self.status["conditions"]:
            each.pop("lastProbeTime", None)
