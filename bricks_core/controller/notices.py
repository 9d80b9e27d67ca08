"""Somebody is told of a run's end, at the address in BRICKS_NOTIFY_URL, which is given to the controller alone.

The look that finds a run at its end writes that into its status, and in the same write that it is untold. A thread of
its own tells it and takes the mark away, so that no look waits for somebody else's server. A controller that was killed
in between finds the mark when it is back. So an end is told once, and twice only where the controller dies between the
server's answer and the next write: rather that than never, as whoever waits to hear of a failure leaves 32 GPUs idle
meanwhile. A server that takes it from nobody is given up after three tries, with one warning (pipeline/notify.py).
"""

from __future__ import annotations

import logging

from bricks_core.cluster.api import Changed, Cluster, NotThere
from bricks_core.controller.queue import KeyedQueue
from bricks_core.controller.status import RunStatus, Untold, read_status
from bricks_core.errors import BricksError
from bricks_core.pipeline.notify import LIMIT_S, headline, message, notify
from bricks_core.storage.artifacts import find_manifest
from bricks_core.storage.store import Store

log = logging.getLogger("bricks.controller")

AFTER_FAILURE_S = 5.0
MAX_WRITES = 5
"""Of a status, while others write it at the same time."""


def ending(before: RunStatus, now: RunStatus, *, is_stopped: bool) -> Untold | None:
    """The end that a run has come to between two statuses; None: it has not, or nobody is to be told.

    Nobody is told of a run that was found done when it was handed in (it never was unfinished), or that a person has
    stopped. `is_stopped`: it is cancelled or suspended.
    """
    was, found = before.condition("Finished"), now.condition("Finished")
    if was is None or was.status != "False" or found is None or found.status != "True":
        return None
    if found.reason == "Succeeded":
        done = {stage.name for stage in before.stages if stage.state == "Done"}
        made = [stage.name for stage in now.stages if stage.name not in done]
        last = (made or [stage.name for stage in now.stages])[-1]
        return Untold(event="verdict" if "evaluate" in made else "finished", stage=last)
    if is_stopped:
        return None
    # Only a pod's last lines tell a cap: it ends with the code of all that may be tried later.
    is_cap = now.current_stage == "caption" and "caption.max_calls" in found.message
    return Untold(event="cap" if is_cap else "failed", stage=now.current_stage)


class Notices:
    """Tells what is untold, one run after the other, at an address that no line of a log and no object ever has."""

    def __init__(self, cluster: Cluster, store: Store, address: str):
        self._cluster = cluster
        self._store = store
        self._address = address
        self._queue = KeyedQueue(self.tell, 1)
        self._told: dict[str, tuple[str, Untold]] = {}
        """By uid: since when the run is at its end, and what was told of it. Nothing is told twice because its mark
        could not be taken away."""

    def start(self) -> None:
        self._queue.start()

    def add(self, run: str) -> None:
        """Tell what is untold of a run, soon."""
        self._queue.add(run)

    def stop(self) -> None:
        """Begin nothing more, and wait for what is being told, which takes no longer than `notify` does."""
        self._queue.stop(LIMIT_S + AFTER_FAILURE_S)

    def is_alive(self) -> bool:
        return self._queue.is_alive()

    def tell(self, run: str) -> float | None:
        """Tell what is untold of a run, now, and take the mark away. Never raises.

        Returns seconds after which to ask for it again; None: that is not needed.
        """
        try:
            for _ in range(MAX_WRITES):
                raw = self._cluster.get("BrickRun", run)
                status = read_status(raw.get("status"))
                finished = status.condition("Finished")
                if status.untold is None:
                    return None
                end = (finished.last_transition_time if finished else "", status.untold)
                if self._told.get(raw["metadata"]["uid"]) != end:
                    self._post(run, status, status.untold)
                    self._told[raw["metadata"]["uid"]] = end
                left = {name: value for name, value in raw["status"].items() if name != "untold"}
                try:
                    self._cluster.write_status(raw | {"status": left})
                except Changed:
                    continue
                return None
        except NotThere:
            return None
        except BricksError as error:
            log.warning("cannot write that the end of run %s was told: %s", run, error, extra={"run": run})
        except Exception:
            log.exception("a fault of ours", extra={"run": run})
        return AFTER_FAILURE_S

    def _post(self, run: str, status: RunStatus, untold: Untold) -> None:
        summary = self._summary(status, untold)
        notify(self._address, message(run, untold.event, untold.stage, summary, self._store.uri))

    def _summary(self, status: RunStatus, untold: Untold) -> str:
        finished = status.condition("Finished")
        if untold.event in ("failed", "cap"):
            return finished.message if finished else ""
        stage = next((each for each in status.stages if each.name == untold.stage), None)
        if stage is None:
            return ""
        try:
            manifest = find_manifest(self._store, stage.name, stage.output.digest) if stage.output else None
        except BricksError:
            manifest = None
        return headline(self._store, manifest) if manifest else stage.message
