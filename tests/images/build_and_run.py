"""Build the images from their Dockerfiles and run the path of a tiny run in them, as Kubernetes would:

    make images-test                                    all of them
    make images-test IMAGES=quick                       controller, clip and train: what CI runs
    make images-test IMAGES="clip,score --keep"         what is named, and what it stands on

Each stage's pods are started as they are rendered for a cluster: as 65532, with a read-only root, no capability,
bounded memory and processes, sharing nothing but a store in S3 (moto's, on this machine) over a network that leads
nowhere else. What is not built runs as a process here, with the same store.

Needs root on Linux and about 8 GB of disk; what is missing of podman is installed from Debian. Everything lies in one
folder, which goes at the end unless --keep.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.images import image_checks, stand_in_base
from tests.images.controlled import follow
from tests.images.definitions import ROOT, Target, images, read_bake
from tests.images.path import SECRETS, TinyPath, tiny_path
from tests.images.podman import NotHere, Podman, has_local_torch, make_ready
from tests.images.pods import Node
from tests.journey.tiny_run import STAGES
from tests.s3_server import S3Server

QUICK = ["controller", "clip", "train"]
TAG = "test"
FLAVOUR = "cpu"
# Not the real one: podman 4 takes a label of a cached layer for the same when only an argument in it has changed.
REVISION = "c0ffee" * 6 + "c0de"
NETWORK = "bricks-test"
_began_s = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _began_s:4.0f} s] {text}", flush=True)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "which",
        nargs="?",
        default="all",
        help=f"all; quick, which is {', '.join(QUICK)}; or names, with commas between",
    )
    flags.add_argument("--base", help="a base from a registry, instead of the one made of Debian's packages")
    flags.add_argument("--if-possible", action="store_true", help="end with 0 where containers cannot be run")
    flags.add_argument("--keep", action="store_true", help="leave images and caches for the next time")
    flags.add_argument("--folder", type=Path, default=_folder(), help="where everything is kept: %(default)s")
    given = flags.parse_args()
    wanted = {"all": images(), "quick": QUICK}.get(given.which) or given.which.split(",")
    if unknown := set(wanted) - set(images()):
        flags.error(f"there is no image {', '.join(sorted(unknown))}; there are {', '.join(images())}")
    podman: Podman | None = None
    try:
        make_ready()
        podman = Podman(given.folder.absolute())
        base = given_base(podman, given.base)
    except NotHere as why:
        print(f"Images are not tested: {why}", flush=True)
        if podman and not given.keep:
            podman.remove_everything()
        return 0 if given.if_possible else 69
    try:
        build(podman, wanted, base)
        with tempfile.TemporaryDirectory(prefix="bricks-images-") as folder, a_store(podman) as server:
            path = tiny_path(Node(podman, NETWORK, Path(folder), SECRETS), server, Path(folder), TAG, wanted, say)
            walk(path)
            if set(wanted) == set(images()):
                follow(podman, NETWORK, path, Path(folder), say)
    except AssertionError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    finally:
        if not given.keep:
            podman.remove_everything()
    say("all of it holds")
    return 0


def given_base(podman: Podman, base: str | None) -> str:
    """The image that all stand on, here and able to run. Raises NotHere."""
    if base:
        podman("pull", base)
    else:
        say("base: Debian's packages in the place of the registry's image")
        stand_in_base.make(podman)
    podman.see_that_it_runs(base or stand_in_base.NAME)
    return base or stand_in_base.NAME


def build(podman: Podman, wanted: list[str], base: str) -> None:
    """Build what is wanted and what it stands on, in order, as the Bake file says; look at each image."""
    arguments = {
        "REVISION": REVISION,
        "VERSION": TAG,
        "BASE": base,
        "TORCH_FLAVOUR": FLAVOUR,
        "TORCH_INDEX": "" if has_local_torch(FLAVOUR) else None,
    }
    variables, targets, _ = read_bake()
    values = variables | {name: value for name, value in arguments.items() if value is not None}
    done: set[str] = set()
    for name in wanted:
        for target in _in_order(targets, name):
            if target.name not in done:
                _build_one(podman, target, values)
                done.add(target.name)
        facts = image_checks.check(podman, name, _tag(name), REVISION)
        say(f"{name}: {facts['Size'] / 1e6:.0f} MB; imports as 65532 and as a stranger, may write /scratch alone")


def _build_one(podman: Podman, target: Target, values: dict[str, str]) -> None:
    began_s = time.monotonic()
    args = {name: values.get(variable, variable) for name, variable in target.args.items()}
    # What Bake calls a context, podman is told by the argument of the same name.
    args |= {context.upper().replace("-", "_"): _tag(of) for context, of in target.contexts.items()}
    log = podman.folder / f"build-{target.name}.log"
    podman.build(_tag(target.name), target.dockerfile, ROOT, log, target.stage, args)
    say(f"{target.name}: built in {time.monotonic() - began_s:.0f} s")


def _in_order(targets: dict[str, Target], name: str) -> Iterator[Target]:
    for below in targets[name].contexts.values():
        yield from _in_order(targets, below)
    yield targets[name]


def _tag(name: str) -> str:
    return f"localhost/bricks-{name}:{TAG}"


@contextmanager
def a_store(podman: Podman) -> Iterator[S3Server]:
    """S3 on a network of its own, which reaches this machine and nothing beyond."""
    podman("network", "rm", "--force", NETWORK, code=None)
    podman("network", "create", "--internal", NETWORK)
    gateway = podman("network", "inspect", NETWORK, "--format", "{{(index .Subnets 0).Gateway}}").stdout.strip()
    # The address is there as long as a container is on the network.
    holder = ["run", "--detach", "--rm", "--pull=never", "--name", f"{NETWORK}-holder", "--network", NETWORK]
    podman("rm", "--force", f"{NETWORK}-holder", code=None)
    podman(*holder, "--stop-timeout=0", _tag("base"), "sleep", "infinity")
    _keep_address(podman("network", "inspect", NETWORK, "--format", "{{.NetworkInterface}}").stdout.strip())
    server = S3Server(gateway)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        podman("rm", "--force", f"{NETWORK}-holder", code=None)
        podman("network", "rm", "--force", NETWORK, code=None)


def _keep_address(bridge: str) -> None:
    """Give the bridge the hardware address that it has, for good.

    Else it is always the lowest of its ports': it changes as containers come and go, and whoever remembers the old one
    reaches nobody for some seconds.
    """
    get, put, ethernet = 0x8927, 0x8924, 1  # SIOCGIFHWADDR, SIOCSIFHWADDR, ARPHRD_ETHER
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = fcntl.ioctl(any_socket, get, struct.pack("16sH14x", bridge.encode(), ethernet))
        fcntl.ioctl(any_socket, put, found)
    kind = Path("/sys/class/net", bridge, "addr_assign_type").read_text(encoding="utf-8").strip()
    assert kind == "3", f"{bridge}'s hardware address is not kept ({kind})"  # NET_ADDR_SET


def walk(path: TinyPath) -> None:
    """The whole path, with what goes wrong on the way."""
    for stage in STAGES:
        if stage not in path.contained:
            if set(STAGES[STAGES.index(stage) :]) & set(path.contained):
                path.bring(stage)
            continue
        if stage in ("clip", "train"):
            path.refuse(stage)
        if stage == "clip":
            path.starve_clip()
            path.stop_clip()
        elif stage == "train":
            path.stop_train()
        else:
            path.bring(stage)


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bricks/images"


if __name__ == "__main__":
    sys.exit(main())
