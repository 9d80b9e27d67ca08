"""podman with settings and images of its own, so that nothing of the machine's is touched."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "mmdebstrap": "mmdebstrap",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
}
"""What has to be there, and the Debian package that brings it."""

CONTAINERS_CONF = """\
[containers]
# Lower than the usual ones, which a machine without CAP_SYS_RESOURCE cannot set.
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{folder}/run/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run/containers"
"""


class NotHere(Exception):
    """Containers cannot be run on this machine; says why, and what to do."""


class Podman:
    """Builds and runs. `folder` holds settings and images, for one process at a time (else NotHere)."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "networks").mkdir(exist_ok=True)
        self._lock = (folder / "in-use").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NotHere(f"{folder} is in use by another run: wait for it, or name another --folder.") from None
        settings = {"CONTAINERS_CONF": CONTAINERS_CONF, "CONTAINERS_STORAGE_CONF": STORAGE_CONF}
        self._environment = {}
        for variable, text in settings.items():
            file = folder / f"{variable.lower()}.toml"
            file.write_text(text.format(folder=folder), encoding="utf-8")
            self._environment[variable] = str(file)

    def command(self, *arguments: str | Path) -> list[str]:
        return ["podman", *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | self._environment

    def __call__(
        self, *arguments: str | Path, code: int | None = 0, timeout_s: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run podman. `code` is what it has to end with; None: whatever it likes."""
        ended = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
        )
        if code is not None and ended.returncode != code:
            words = " ".join(map(str, arguments))
            raise AssertionError(f"podman {words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
        return ended

    def has(self, image: str) -> bool:
        return self("image", "exists", image, code=None).returncode == 0

    def inspect(self, image: str) -> dict[str, Any]:
        (found,) = json.loads(self("image", "inspect", image).stdout)
        return dict(found)

    def build(self, image: str, file: Path, context: Path, log: Path, target: str, args: Mapping[str, str]) -> None:
        """Build an image; what the build says goes to `log`.

        Raises AssertionError with the end of it.
        """
        flags = [flag for name, value in args.items() for flag in ("--build-arg", f"{name}={value}")]
        flags += ["--target", target] if target else []
        flags += [flag for mount in build_mounts(self.folder) for flag in ("--volume", mount)]
        command = self.command("build", "--pull=never", "--layers", "--file", file, "--tag", image, *flags, context)
        with log.open("w", encoding="utf-8") as out:
            ended = subprocess.run(command, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        if ended.returncode:
            raise AssertionError(
                f"{image} cannot be built:\n{log.read_text(encoding='utf-8')[-3000:]}\nAll of it: {log}"
            )

    def see_that_it_runs(self, image: str) -> None:
        """Start one container, on a network as builds have it. Raises NotHere: this machine cannot."""
        ended = self("run", "--rm", "--pull=never", "--memory=256m", image, "true", code=None)
        if ended.returncode:
            last = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
            raise NotHere(f"podman cannot start a container on this machine ({last[0]}).")

    def remove_everything(self) -> None:
        """Every container, image and network of this folder."""
        self("system", "reset", "--force", code=None)
        shutil.rmtree(self.folder, ignore_errors=True)


def make_ready() -> None:
    """See that there is what is needed; as root on Debian, install what is missing.

    Raises NotHere.
    """
    if os.geteuid() != 0:
        raise NotHere("Building and limiting containers needs root here: run it with sudo.")
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if not missing:
        return
    packages = " ".join(missing)
    if not shutil.which("apt-get"):
        raise NotHere(f"These programs are missing, install them first: {packages}.")
    print(f"installing {packages} (apt-get)", flush=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "catatonit", *missing],
    ):
        ended = subprocess.run(
            command,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            **quiet,
            check=False,  # type: ignore[call-overload]
        )
        if ended.returncode:
            last = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
            raise NotHere(f"apt-get cannot install {packages} ({last[0]}): install them by hand.")


def pip_settings() -> dict[str, str]:
    """How pip finds packages on this machine, as its configuration and environment say."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    found = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in {"cert", "extra-index-url", "find-links", "index-url", "no-index", "timeout", "trusted-host"}:
            found[key] = value.strip("'\"")
    return found


def build_mounts(folder: Path) -> list[str]:
    """What pip and apt need of this machine to find packages while an image is built: mounted, so that none of it is
    in the image: pip's configuration, the folders it names, and the machine's certificates."""
    settings = pip_settings()
    authorities = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    mounts = {}
    if authorities and Path(authorities).exists():
        mounts["/etc/ssl/certs/ca-certificates.crt"] = authorities
        settings.setdefault("cert", "/etc/ssl/certs/ca-certificates.crt")
    for path in _folders(settings.values()):
        mounts[str(path)] = str(path)
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")
    mounts["/etc/pip.conf"] = str(file)
    return [f"{source}:{place}:ro" for place, source in mounts.items()]


def _folders(values: Iterator[str] | Sequence[str] | Any) -> Iterator[Path]:
    for word in " ".join(values).split():
        parts = urlsplit(word)
        path = Path(parts.path)
        if parts.scheme not in ("", "file") or not path.is_absolute() or not path.exists():
            continue
        # An index's pages point to files that lie beside the index.
        yield path.parent if parts.scheme == "file" and path.is_dir() else path


def has_local_torch(flavour: str) -> bool:
    """Whether pip is told a folder that has this build of PyTorch, so that no index needs to be asked for it."""
    return any(list(folder.glob(f"torch-*+{flavour}-*.whl")) for folder in _folders(pip_settings().values()))
