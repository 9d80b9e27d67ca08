"""Somebody is told when a run ends, fails, meets a cap or has a verdict: one small POST to an address.

The address is a secret, as whoever has it can write there. It comes from BRICKS_NOTIFY_URL, or from `spec.notify` of
the run file, and leaves this module for nowhere but its own server: no log line, no error, no file of a run has it.

On a cluster the controller tells (controller/notices.py), of what is in a BrickRun's status.

    {"run": "films", "event": "finished", "stage": "latents", "summary": "…", "store": "s3://…", "at": "…", "text": "…"}

    finished   all that was asked for is done, and something was      failed   it ended with an error
    verdict    the same, and the evaluation is among what was done    cap      a limit on cost is reached

Slack's servers (hooks.slack.com) get {"text": "…"} alone. A server that does not take it is told of in one warning, and
ends nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3

from bricks_core.errors import BricksError, CapReached, SpecError
from bricks_core.pipeline.plan import Step
from bricks_core.report.read import read_report
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun, address_to_notify
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.store import Store

log = logging.getLogger("bricks")

VARIABLE = "BRICKS_NOTIFY_URL"
NUM_TRIES = 3
TRY_TIMEOUT_S = 3.0
LIMIT_S = 10.0
"""No run is held up for longer, whatever its address does."""
MAX_SUMMARY = 1000
"""Characters; Slack shows so many without folding."""


def notifies(run_path: Callable[..., dict[str, Manifest]]) -> Callable[..., dict[str, Manifest]]:
    """Let `run_path` tell of its end. Nothing is told of a run that was found done, or that a person stopped."""

    @functools.wraps(run_path)
    def and_tells(
        run: BrickRun,
        store: Store,
        stop_after: str | None = None,
        *,
        tell: Callable[[Step], None] = lambda step: None,
        **how: Any,
    ) -> dict[str, Manifest]:
        address = _address(run)
        if not address:
            return run_path(run, store, stop_after, tell=tell, **how)
        begun: list[Step] = []

        def heard(step: Step) -> None:
            begun.append(step)
            tell(step)

        def post(event: str, stage: str, summary: str) -> None:
            notify(address, message(run.name, event, stage, summary, store.uri))

        try:
            manifests = run_path(run, store, stop_after, tell=heard, **how)
        except Exception as error:
            if begun:  # else nothing was begun: who started it reads why
                event = "cap" if isinstance(error, CapReached) else "failed"
                post(event, begun[-1].stage.name, str(error) if isinstance(error, BricksError) else "A bug in Bricks.")
            raise
        done = [step.stage.name for step in begun if step.state != "cached"]
        if done:
            judged = "evaluate" in done
            summary = headline(store, manifests[done[-1]])
            post("verdict" if judged else "finished", done[-1], summary)
        return manifests

    return and_tells


def message(run: str, event: str, stage: str, summary: str, store: str) -> dict[str, str]:
    """What is told. `store` is an address without keys, as every address of a store is."""
    words = {"finished": "is finished", "verdict": "is evaluated", "cap": "has met a cap", "failed": "failed"}[event]
    summary = summary[:MAX_SUMMARY]
    return {
        "run": run,
        "event": event,
        "stage": stage,
        "summary": summary,
        "store": store,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "text": f"Run {run} {words}{f' ({stage})' if stage else ''}: {summary}",
    }


def notify(address: str, told: dict[str, str]) -> None:
    """POST it, within seconds. Never raises; what went wrong is one warning without the address."""
    wrong: list[str] = ["it did not answer in time"]

    def send() -> None:
        wrong[0] = _send(address, told)

    # A name server that hangs obeys no timeout of a client's.
    thread = threading.Thread(target=send, name="notify", daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    if why := wrong[0]:
        log.warning("Nobody was notified of the end of run %s: %s (%s, spec.notify).", told["run"], why, VARIABLE)


def _send(address: str, told: dict[str, str]) -> str:
    """What went wrong; empty when it was taken."""
    is_slack = urlsplit(address).hostname == "hooks.slack.com"
    body = json.dumps({"text": told["text"]} if is_slack else told, ensure_ascii=False).encode("utf-8", "replace")
    why = ""
    for _ in range(NUM_TRIES):
        try:
            # No retries and redirects of urllib3's own: it would log the address with each.
            with urllib3.PoolManager(retries=False) as pool:
                answer = pool.request(
                    "POST",
                    address,
                    body=body,
                    headers={"Content-Type": "application/json", "User-Agent": "bricks"},
                    timeout=urllib3.Timeout(total=TRY_TIMEOUT_S),
                    preload_content=False,  # what it says is of no use, and may have no end
                )
        except Exception as error:  # whatever it is; its text may hold the address
            why = f"its server cannot be reached: {type(error).__name__}"
            continue
        if answer.status < 300:
            return ""
        why = f"its server answers {answer.status}"
        if answer.status < 500 and answer.status != 429:
            break
    return why


def _address(run: BrickRun) -> str:
    """Where to tell; empty: nowhere. SpecError: as of `address_given`."""
    return run.spec.notify.get_secret_value() if run.spec.notify is not None else address_given()


def address_given() -> str:
    """Where to tell by the environment; empty: nowhere.

    Raises:
        SpecError: BRICKS_NOTIFY_URL is no address. What it is is not repeated.
    """
    given = os.environ.get(VARIABLE, "").strip()  # a Secret made of a file ends with a newline
    try:
        return address_to_notify(given) if given else ""
    except ValueError as error:
        raise SpecError(f"{VARIABLE}: {error}") from None


def headline(store: Store, manifest: Manifest) -> str:
    """What a stage made, in a line; of an evaluation, its verdict and how the held-out loss changed."""
    made = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in manifest.counts.items())
    if manifest.stage != "evaluate":
        return made
    try:
        report = read_report(Artifact(store, manifest))
        overall = [each for each in report["held_out"]["changes"] if not each["num_clips"]]
        losses = [str(report["verdict"]["title"])] if "verdict" in report else []
        losses += [f"held-out loss {-each['improvement_percent']:+.1f} % ({each['weights']})" for each in overall]
    except (BricksError, ValueError, KeyError, TypeError):
        losses = []  # its report is looked at in earnest elsewhere
    return "; ".join([*losses, made])
