"""kopf, which watches: whatever happens to a run or its children asks for a look at that run, and that is all.

No handler keeps anything on an object (no finalizer, no annotation), so nothing is stuck when the controller goes
first. An event that is lost is made up for by a look at everything, every so often.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from bricks_core.cluster.api import KINDS, Cluster
from bricks_core.cluster.launcher import RUN_LABEL
from bricks_core.cluster.observe import NOT_DONE
from bricks_core.controller.notices import Notices
from bricks_core.controller.queue import KeyedQueue
from bricks_core.controller.reconcile import WORKLOADS, Reconciler, is_settled
from bricks_core.errors import BricksError

log = logging.getLogger("bricks.controller")

SOON_S = 0.2
"""Events come in bursts; what they ask for is done once for all of them."""
AFTER_FAILURE_S = 5.0
IN_HAND_S = 1.0
"""How long a look that is under way may go on when the controller is stopped."""


class Shell:
    """The controller as a process: watches, looks at everything now and then, and tells whether it is alive."""

    def __init__(self, reconciler: Reconciler, *, resync_s: float, workers: int, notices: Notices | None = None):
        self._reconciler = reconciler
        self._notices = notices
        self._cluster = reconciler.cluster
        self._resync_s = resync_s
        self._queue = KeyedQueue(reconciler.reconcile, workers)
        self._looked_s = time.monotonic()
        self._stopped = threading.Event()
        self._watched: list[str] = []
        self._begin_anew = False

    def serve(self, health_port: int | None = None) -> None:
        """Work until SIGTERM or SIGINT, or until `stop`. In a thread that is not the main one, only `stop` ends it."""
        self._queue.start()
        if self._notices is not None:
            self._notices.start()
        threading.Thread(target=self._resync, name="resync", daemon=True).start()
        try:
            asyncio.run(self._watch(health_port))
        finally:
            self._stopped.set()
            self._queue.stop(IN_HAND_S)
            if self._notices is not None:
                self._notices.stop()
        log.info("stopped")

    def stop(self) -> None:
        """End `serve`. From any thread."""
        self._stopped.set()

    def _resync(self) -> None:
        """Ask for a look at every run, again and again: events may be lost, and time passes without any."""
        while not self._stopped.is_set():
            wait_s = self._resync_s
            try:
                for name in self._reconciler.runs():
                    self._queue.add(name)
            except BricksError as error:
                log.warning("cannot list the runs: %s", error)
                wait_s = min(wait_s, AFTER_FAILURE_S)
            except Exception:
                log.exception("a fault of ours")
            self._looked_s = time.monotonic()
            self._stopped.wait(wait_s)

    async def _watch(self, health_port: int | None) -> None:
        """Watch with kopf; begin anew when it fails, and when the cluster has come to know other kinds."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        watcher = asyncio.create_task(self._until_changed(ended))
        endpoint = f"http://0.0.0.0:{health_port}/healthz" if health_port else None
        while not self._stopped.is_set():
            ended.clear()
            self._begin_anew = False
            try:
                self._watched = await asyncio.to_thread(self._kinds)
                await kopf.operator(
                    registry=self._registry(ended),
                    settings=_settings(),
                    namespaces=[self._cluster.namespace],
                    standalone=True,
                    liveness_endpoint=endpoint,
                    stop_flag=ended,
                )
                if not self._begin_anew:  # a signal has ended it
                    self._stopped.set()
            except Exception as error:
                log.warning("cannot watch, and try again: %s: %s", type(error).__name__, error)
                _on_signals(loop, self._stopped.set)
                await asyncio.to_thread(self._stopped.wait, AFTER_FAILURE_S)
        watcher.cancel()

    async def _until_changed(self, ended: asyncio.Event) -> None:
        """Ends kopf's watch when the controller is stopped, or other kinds are there to be watched."""
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            if self._stopped.is_set():
                ended.set()
            elif time.monotonic() - looked_s > self._resync_s:
                looked_s = time.monotonic()
                try:
                    kinds = await asyncio.to_thread(self._kinds)
                except BricksError:
                    continue
                if kinds != self._watched:
                    log.info("the cluster's kinds are others now: %s", ", ".join(kinds))
                    self._begin_anew = True
                    ended.set()

    def _kinds(self) -> list[str]:
        return [kind for kind in ("BrickRun", *WORKLOADS) if self._cluster.knows(kind)] + ["Pod"]

    def _registry(self, ended: asyncio.Event) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.cleanup(registry=registry)
        async def end(**_: Any) -> None:
            ended.set()  # a task of kopf's waits for it, and kopf for that task: 5 s

        @kopf.on.login(registry=registry)
        def login(**_: Any) -> kopf.ConnectionInfo:
            return _login(self._cluster)

        @kopf.on.probe(registry=registry, id="alive")
        def alive(**_: Any) -> bool:
            late_s = time.monotonic() - self._looked_s
            tells = self._notices is None or self._notices.is_alive()
            if not tells or not self._queue.is_alive() or late_s > 5 * self._resync_s + 60:
                raise RuntimeError(f"nothing was looked at for {late_s:.0f} s")
            return True

        async def on_run(name: str, type: str | None, body: Mapping[str, Any], **_: Any) -> None:
            if type is not None or not is_settled(dict(body)):  # None: it was there when the watch began
                self._queue.add(name, SOON_S)

        async def on_child(labels: Mapping[str, str], **_: Any) -> None:
            self._queue.add(labels[RUN_LABEL], SOON_S)

        for kind in self._watched:
            place = KINDS[kind]
            group, _, version = place.api_version.rpartition("/")
            if kind == "BrickRun":
                kopf.on.event(group, version, place.plural, registry=registry)(on_run)
            else:
                selected = {RUN_LABEL: kopf.PRESENT}
                kopf.on.event(group, version, place.plural, registry=registry, labels=selected)(on_child)
        return registry


def _login(cluster: Cluster) -> kopf.ConnectionInfo:
    """The reconciler's own connection, so that both speak to the same server as the same account."""
    found = cluster.connection()
    scheme, _, token = found.authorization.partition(" ")
    return kopf.ConnectionInfo(
        server=found.address,
        scheme=scheme or None,
        token=token or None,
        ca_path=found.ca_file,
        ca_data=None if found.ca_file else found.ca_data,
        certificate_path=found.certificate_file,
        private_key_path=found.key_file,
        insecure=not found.is_verified,
    )


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are the reconciler's
    settings.scanning.disabled = True  # a namespace's Role lists neither namespaces nor CRDs
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.queueing.exit_timeout = 0.5
    settings.queueing.idle_timeout = 1.0
    for kind in (*WORKLOADS, "Pod"):
        group, _, version = KINDS[kind].api_version.rpartition("/")
        settings.watching.label_selectors[group, version, KINDS[kind].plural] = RUN_LABEL
    # One that leaves the selection, as it has ended well, is told as deleted.
    settings.watching.field_selectors["", "v1", "pods"] = NOT_DONE
    return settings


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """kopf listens to them while it watches, and not in between."""
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop)
