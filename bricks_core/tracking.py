"""Where a run's numbers and pictures also go: Weights & Biases, as an exporter and nothing more.

Tables and files in the store come first and are complete without this. What is logged here is a copy of them, so
whatever goes wrong with W&B (not installed, no network, a full disk) is said once and never ends a run.

`spec.tracking.wandb` of the run file chooses:

    auto      to the server when logged in (WANDB_API_KEY, or `wandb login`), else to files; WANDB_MODE overrules
    offline   to files
    off       nowhere

Files lie in `wandb/offline-run-*` below the store's folder, or below the working directory when the store is a bucket.
`wandb sync FOLDER/wandb/offline-run-*` sends them later. A stage that was interrupted and started again leaves a folder
for every start, all of one run: each says the run's id and that it goes on with it (W&B keeps that since 0.31), and
`wandb sync` sends them in the order of their starts, each behind what the server has.
"""

from __future__ import annotations

import logging
import netrc
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bricks_core.spec.run import BrickRun

log = logging.getLogger("bricks")

PUBLIC_HOST = "api.wandb.ai"
"""Where `wandb login` used to keep its keys for; W&B still takes them."""
HEAD_BYTES = 7
BLOCK_BYTES = 32768
"""Of a file of W&B's: its own head, and the blocks that its log is written in."""
INIT_TIMEOUT_S = 30.0
"""W&B itself would wait 90 s for a server that does not answer."""
WRITER_GONE_S = 10.0
"""So long a killed run's process of W&B is waited for at most."""


class Tracker:
    """A stage's line to W&B. Without one, every call does nothing. After the first failure too."""

    def __init__(self, exporter: Any = None):
        self._exporter = exporter

    @property
    def active(self) -> bool:
        """Whether what is logged arrives anywhere."""
        return self._exporter is not None

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers of a training step. A step may come again, after a resume, and in any order."""
        self._try(lambda exporter: exporter.log({"step": step, **numbers}))

    def image(self, step: int, name: str, path: Path, caption: str = "") -> None:
        """Log a JPEG or PNG. The file is copied, and may go afterwards."""
        self._try(
            lambda exporter: exporter.log({"step": step, name: _wandb().Image(str(path), caption=caption or None)})
        )

    def video(self, step: int, name: str, path: Path, caption: str = "") -> None:
        """Log an mp4. The file is copied, and may go afterwards."""
        self._try(
            lambda exporter: exporter.log(
                {"step": step, name: _wandb().Video(str(path), caption=caption or None, format="mp4")}
            )
        )

    def summary(self, numbers: dict[str, float]) -> None:
        """Numbers of the whole stage: W&B shows them in its table of runs."""
        self._try(lambda exporter: exporter.summary.update(numbers))

    def finish(self, exit_code: int = 0) -> None:
        """Close the line. Nothing is lost without it, but the last numbers may need a `wandb sync`."""
        self._try(lambda exporter: exporter.finish(exit_code=exit_code))
        self._exporter = None

    def _try(self, call: Callable[[Any], Any]) -> None:
        if self._exporter is None:
            return
        try:
            call(self._exporter)
        except Exception as error:  # whatever it is: an exporter must not end a run that has its own tables
            self._exporter = None
            _warn(error)


def open_tracker(run: BrickRun, stage: str, folder: Path, *, digest: str = "") -> Tracker:
    """A tracker as the run file wants it; one that does nothing when that is impossible.

    folder   `wandb/` is made in it (see tracking_folder)
    digest   the artifact's; with it, a resumed stage continues its W&B run instead of beginning one
    """
    tracking = run.spec.tracking
    if tracking.wandb == "off":
        return Tracker()
    mode = "offline"
    try:
        mode = mode if tracking.wandb == "offline" else _mode()
        if mode == "disabled":
            return Tracker()
        exporter = _begin(run, stage, folder, mode, digest)
    except ImportError:
        log.info("wandb is not installed: numbers go to the tables only. Set tracking.wandb to off to not be told.")
        return Tracker()
    except Exception as error:
        if mode == "offline":
            _warn(error)
            return Tracker()
        log.warning("W&B's server cannot be used (%s): its numbers go to files, for `wandb sync`.", _sentence(error))
        return _offline_instead(run, stage, folder, digest)
    if mode == "offline":
        log.info("wandb: offline, to %s; `wandb sync` sends it.", folder / "wandb")
    return Tracker(exporter)


def tracking_folder(store_uri: str) -> Path:
    """The folder in which `wandb/` is made: the store's own, or the working directory when the store is a bucket."""
    if "://" not in store_uri:
        return Path(store_uri)
    parts = urlsplit(store_uri)
    return Path(parts.path) if parts.scheme == "file" else Path.cwd()


def logged_in() -> bool:
    """Whether W&B finds a key: in the environment, or where `wandb login` leaves it. The key itself is not read out."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    own_server = os.environ.get("WANDB_BASE_URL")
    hosts = [own_server] if own_server else [_wandb().Settings().base_url, f"https://{PUBLIC_HOST}"]
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        keys = netrc.netrc(file)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(keys.authenticators(urlsplit(host).netloc) for host in hosts)


def _mode() -> str:
    """online, offline or disabled, for `auto`. WANDB_MODE is W&B's own setting, so it is honoured."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in {"online", "offline", "disabled"}:
        return asked
    return "online" if logged_in() else "offline"


def _begin(run: BrickRun, stage: str, folder: Path, mode: str, digest: str) -> Any:
    wandb = _wandb()
    folder.mkdir(parents=True, exist_ok=True)
    own_server = {"base_url": url} if (url := os.environ.get("WANDB_BASE_URL")) else {}
    continued = {"id": f"{stage}-{digest[:16]}", "resume": "allow"} if digest else {}
    if digest:
        _mend_killed(folder / "wandb", continued["id"])
    exporter = wandb.init(
        project=run.spec.tracking.wandb_project,
        name=f"{run.name}-{stage}",
        group=run.name,
        job_type=stage,
        config=run.model_dump(mode="json"),
        dir=str(folder),
        mode=mode,
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",  # our log lines are ours; W&B would wrap standard output to copy them
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=INIT_TIMEOUT_S,
            **own_server,
        ),
        **continued,
    )
    # Numbers are drawn over our own step, not over the count of calls, which would forbid going back after a resume.
    exporter.define_metric("step")
    exporter.define_metric("*", step_metric="step")
    return exporter


def _mend_killed(folder: Path, run_id: str) -> None:
    """Make what starts of this run that were killed left such that `wandb sync` takes it, and what came after.

    W&B writes 32 KiB at once, so such a file ends within a record, or has no record at all. There `wandb sync` stops.
    """
    for file in folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"):
        _wait_for_writers(file)
        if whole := _whole_bytes(file.read_bytes()):
            os.truncate(file, whole)
        else:
            shutil.rmtree(file.parent)


def _wait_for_writers(file: Path) -> None:
    """W&B's own process outlives the killed one by a moment, and may still write."""
    until_s = time.monotonic() + WRITER_GONE_S
    while time.monotonic() < until_s and _is_open(file):
        time.sleep(0.1)


def _is_open(file: Path) -> bool:
    """Whether a process of this machine has it open, as far as Linux tells."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.path.samefile(descriptor, file):
                return True
    return False


def _whole_bytes(data: bytes) -> int:
    """Up to where a file of W&B's holds whole records; 0 where it holds none.

    After 7 bytes it is LevelDB's log: blocks of 32 KiB, with pieces of records behind heads of 7 bytes (checksum, two
    bytes of length, kind: 1 whole, 2 first, 3 middle, 4 last).
    """
    position, whole = HEAD_BYTES, 0
    while position + 7 <= len(data):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < 7:
            position += left_in_block
            continue
        kind = data[position + 6]
        position += 7 + int.from_bytes(data[position + 4 : position + 6], "little")
        if kind in (1, 4) and position <= len(data):
            whole = position
    return whole


def _offline_instead(run: BrickRun, stage: str, folder: Path, digest: str) -> Tracker:
    try:
        return Tracker(_begin(run, stage, folder, "offline", digest))
    except Exception as error:
        _warn(error)
        return Tracker()


def _wandb() -> Any:
    import wandb  # a second to import, and most commands do not need it

    return wandb


def _warn(error: Exception) -> None:
    log.warning("W&B failed (%s): this stage goes on without it. Its tables have everything.", _sentence(error))


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
