"""The PyTorchJob controller of the double, as Kubeflow's Training Operator v1.9.4 works (research: its source).

Worker-only with an elasticPolicy, which is what we render: headless Services and pods <job>-worker-<i>, PET_*, done as
soon as any worker succeeds, cleanPodPolicy, restartPolicy OnFailure and Never (ExitCode counts as Never and is not
worked out), backoffLimit over container restarts, deadline, ttl, suspend. Not here: Master, gang schedulers.
"""

from __future__ import annotations

import copy
from typing import Any

from tests.kubernetes.failures import Object, Resource
from tests.kubernetes.jobs import owner_of, set_status
from tests.kubernetes.storage import Storage, seconds

JOB_NAME = "training.kubeflow.org/job-name"
REPLICA_INDEX = "training.kubeflow.org/replica-index"
REPLICA_TYPE = "training.kubeflow.org/replica-type"
OPERATOR = "training.kubeflow.org/operator-name"
PORT = 23456


class PyTorchJobs:
    def work(self, storage: Storage) -> None:
        jobs, pods = storage.kind("kubeflow.org/v1", "PyTorchJob"), storage.kind("v1", "Pod")
        services = storage.kind("v1", "Service")
        if jobs is None:
            return
        assert pods is not None
        assert services is not None
        for job in storage.all(jobs):
            if not job["metadata"].get("deletionTimestamp"):
                _Sync(storage, jobs, pods, services, job).run()


class _Sync:
    def __init__(self, storage: Storage, jobs: Resource, pods: Resource, services: Resource, job: Object) -> None:
        self.storage, self.jobs, self.pods, self.services, self.job = storage, jobs, pods, services, job
        self.spec, self.status = job["spec"], copy.deepcopy(job.get("status") or {})
        self.policy = self.spec.get("runPolicy") or {}
        self.worker = self.spec["pytorchReplicaSpecs"]["Worker"]
        self.name, self.namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        self.size = self.worker.get("replicas", 1)

    def run(self) -> None:
        if self._has("Succeeded") or self._has("Failed"):
            self._clean()
            self._expire()
            return
        self._condition("Created", "PyTorchJobCreated", f"PyTorchJob {self.name} is created.")
        if self.policy.get("suspend"):
            self._suspend()
        else:
            self._work()
        set_status(self.storage, self.jobs, self.job, self.status)
        if self._has("Succeeded") or self._has("Failed"):
            self._clean()

    def _suspend(self) -> None:
        for pod in self._mine():
            self._delete(self.pods, pod)
        self._condition("Suspended", "PyTorchJobSuspended", f"PyTorchJob {self.name} is suspended.")
        self._condition("Running", "PyTorchJobSuspended", f"PyTorchJob {self.name} is suspended.", "False")
        self.status.pop("startTime", None)

    def _work(self) -> None:
        if self._has("Suspended"):
            self._condition("Suspended", "PyTorchJobResumed", f"PyTorchJob {self.name} is resumed.", "False")
        self.status.setdefault("startTime", self.storage.clock.stamp())
        if self._too_late() or self._too_often():
            return
        for index in range(self.size):
            self._keep(index)
        phases = [pod.get("status", {}).get("phase") for pod in self._mine()]
        counts = {"active": phases.count("Running"), "succeeded": phases.count("Succeeded")}
        counts["failed"] = phases.count("Failed")
        labels = f"{JOB_NAME}={self.name},{OPERATOR}=pytorchjob-controller,{REPLICA_TYPE}=worker"
        worker: Object = {key: value for key, value in counts.items() if value} | {"selector": labels}
        self.status["replicaStatuses"] = {"Worker": worker}
        if counts["succeeded"]:  # one is enough for an elastic job
            self._condition(
                "Running", "PyTorchJobSucceeded", f"PyTorchJob {self.name} is successfully completed.", "False"
            )
            self._condition("Succeeded", "PyTorchJobSucceeded", f"PyTorchJob {self.name} is successfully completed.")
            self.status["completionTime"] = self.storage.clock.stamp()
        elif counts["failed"]:
            message = f"PyTorchJob {self.name} is failed because {counts['failed']} Worker replica(s) failed."
            self._fail("PyTorchJobFailed", message)
        elif counts["active"]:
            self._condition("Running", "PyTorchJobRunning", f"PyTorchJob {self.name} is running.")

    def _too_late(self) -> bool:
        deadline = self.policy.get("activeDeadlineSeconds")
        if deadline is None or self.storage.clock.now() < seconds(self.status["startTime"]) + deadline:
            return False
        message = f"PyTorchJob {self.name} has failed because it was active longer than specified deadline"
        self._fail("PyTorchJobFailed", message)
        return True

    def _too_often(self) -> bool:
        """backoffLimit is held against the restarts of containers of running pods, all together."""
        limit = self.policy.get("backoffLimit")
        if limit is None or self.worker.get("restartPolicy") != "OnFailure":
            return False
        running = [pod for pod in self._mine() if pod.get("status", {}).get("phase") == "Running"]
        restarts = sum(
            each.get("restartCount", 0) for pod in running for each in pod["status"].get("containerStatuses", [])
        )
        if not running or (restarts < limit if limit else not restarts):
            return False
        message = f"PyTorchJob {self.name} has failed because it has reached the specified backoff limit"
        self._fail("PyTorchJobFailed", message)
        return True

    def _fail(self, reason: str, message: str) -> None:
        self._condition("Running", reason, message, "False")
        self._condition("Failed", reason, message)
        self.status["completionTime"] = self.storage.clock.stamp()

    def _keep(self, index: int) -> None:
        """A Service and a pod of this index; a pod that failed is made anew where the policy says so."""
        name = f"{self.name}-worker-{index}"
        if self.storage.find(self.services, self.namespace, name) is None:
            self.storage.create(self.services, self.namespace, self._service(name, index))
        pod = self.storage.find(self.pods, self.namespace, name)
        if pod is None:
            self.storage.create(self.pods, self.namespace, self._pod(name, index))
        elif pod.get("status", {}).get("phase") == "Failed" and self.worker.get("restartPolicy") == "OnFailure":
            self._delete(self.pods, pod)
            message = f"PyTorchJob {self.name} is restarting because 1 Worker replica(s) failed."
            self._condition("Running", "PyTorchJobRestarting", message, "False")
            self._condition("Restarting", "PyTorchJobRestarting", message)

    def _labels(self, index: int) -> dict[str, str]:
        worker = {REPLICA_TYPE: "worker", REPLICA_INDEX: str(index)}
        return {JOB_NAME: self.name, OPERATOR: "pytorchjob-controller"} | worker

    def _service(self, name: str, index: int) -> Object:
        meta = {"name": name, "labels": self._labels(index), "ownerReferences": [owner_of(self.job)]}
        ports = [{"name": "pytorchjob-port", "port": PORT, "targetPort": PORT}]
        spec = {"clusterIP": "None", "selector": self._labels(index), "ports": ports}
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}

    def _pod(self, name: str, index: int) -> Object:
        template = copy.deepcopy(self.worker["template"])
        given, spec = template.get("metadata") or {}, template["spec"]
        spec["restartPolicy"] = (
            "Never" if self.worker.get("restartPolicy") == "ExitCode" else (self.worker.get("restartPolicy") or "Never")
        )
        container = next(each for each in spec["containers"] if each["name"] == "pytorch")
        container["env"] = [*container.get("env", []), *self._environment()]
        ports = container.setdefault("ports", [])
        if not any(port.get("name") == "pytorchjob-port" for port in ports):
            ports.append({"name": "pytorchjob-port", "containerPort": PORT, "protocol": "TCP"})
        meta: Object = {
            "name": name,
            "labels": {**(given.get("labels") or {}), **self._labels(index)},
            "ownerReferences": [owner_of(self.job)],
        }
        if given.get("annotations"):
            meta["annotations"] = given["annotations"]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}

    def _environment(self) -> list[Object]:
        elastic: Any = self.spec.get("elasticPolicy")
        env = {"PYTHONUNBUFFERED": "1"}
        if elastic is not None:
            low, high = elastic.get("minReplicas", self.size), elastic.get("maxReplicas", self.size)
            env["PET_RDZV_BACKEND"] = elastic.get("rdzvBackend", "c10d")
            env["PET_RDZV_ENDPOINT"] = f"{self.name}-worker-0:{elastic.get('rdzvPort', PORT)}"
            env["PET_NNODES"] = f"{low}:{high}"
            if elastic.get("rdzvId"):
                env["PET_RDZV_ID"] = elastic["rdzvId"]
            if elastic.get("rdzvConf"):
                env["PET_RDZV_CONF"] = ",".join(f"{each['key']}={each['value']}" for each in elastic["rdzvConf"])
            if elastic.get("maxRestarts") is not None:
                env["PET_MAX_RESTARTS"] = str(elastic["maxRestarts"])
        if self.spec.get("nprocPerNode"):
            env["PET_NPROC_PER_NODE"] = self.spec["nprocPerNode"]
        return [{"name": name, "value": value} for name, value in env.items()]

    def _mine(self) -> list[Object]:
        found = (self.storage.find(self.pods, self.namespace, f"{self.name}-worker-{i}") for i in range(self.size))
        return [pod for pod in found if pod is not None]

    def _delete(self, resource: Resource, obj: Object) -> None:
        if not obj["metadata"].get("deletionTimestamp"):
            self.storage.delete(resource, self.namespace, obj["metadata"]["name"])

    def _clean(self) -> None:
        """cleanPodPolicy: None keeps everything, Running keeps what has ended, All keeps nothing."""
        policy = self.policy.get("cleanPodPolicy", "None")
        for pod in self._mine() if policy != "None" else []:
            if policy == "All" or pod.get("status", {}).get("phase") in ("Running", "Pending"):
                self._delete(self.pods, pod)
                service = self.storage.find(self.services, self.namespace, pod["metadata"]["name"])
                if service is not None:
                    self._delete(self.services, service)

    def _expire(self) -> None:
        ttl, ended = self.policy.get("ttlSecondsAfterFinished"), self.status.get("completionTime")
        if ttl is not None and ended and self.storage.clock.now() >= seconds(ended) + ttl:
            self.storage.delete(self.jobs, self.namespace, self.name, {"propagationPolicy": "Background"})

    def _has(self, kind: str) -> bool:
        return any(each["type"] == kind and each["status"] == "True" for each in self.status.get("conditions", []))

    def _condition(self, kind: str, reason: str, message: str, value: str = "True") -> None:
        """Running and Restarting replace each other."""
        conditions = self.status.setdefault("conditions", [])
        if value == "True" and kind in ("Running", "Restarting"):
            other = "Restarting" if kind == "Running" else "Running"
            conditions[:] = [each for each in conditions if each["type"] != other]
        there = next((each for each in conditions if each["type"] == kind), None)
        if there is None and value == "False":
            return
        if there is not None and (there["status"], there["reason"]) == (value, reason):
            return
        now = self.storage.clock.stamp()
        made = {"type": kind, "status": value, "reason": reason, "message": message}
        made |= {"lastUpdateTime": now, "lastTransitionTime": now}
        if there is None:
            conditions.append(made)
        else:
            there.update(made)
