"""Run a command beside a real S3 server: Ceph's gateway, from Debian packages, in a folder of its own.

    python tests/storage/ceph_gateway.py pytest tests/storage

Nothing is installed on the machine: the packages (600 MB with what they need) are unpacked once, into
`$XDG_CACHE_HOME/bricks/ceph` (or --folder), and run in a root directory of their own, with all data in memory.
The command finds the gateway by the AWS_* variables. It needs apt (for the mirror that is configured), unshare, and
to be root or to be allowed user namespaces. Only the standard library is used here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "trixie"
PACKAGES = ["radosgw", "ceph-mon", "ceph-osd", "ceph-common", "bash", "coreutils", "libc-bin", "mount", "base-files"]
START_PATIENCE_S = 180

# One monitor, one object store in memory, one gateway; no authentication between the three, they only know loopback.
CONF = """\
[global]
fsid = 11111111-2222-3333-4444-555555555555
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
mon_host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]
public_network = 127.0.0.0/8
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
run_dir = /c/run
admin_socket =
log_to_stderr = true
log_file =
mon_data = /c/mon.a
mon_data_avail_crit = 1
osd_data = /c/osd.0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_data = /c/rgw
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_enable_apis = s3
# The gateway's own default is an encrypted connection, which it cannot agree on without authentication.
ms_mon_client_mode = crc
"""

START = """\
set -e
rm -rf /c; mkdir -p /c/mon.a /c/osd.0 /c/run /c/rgw
id=$(cat /proc/sys/kernel/random/uuid)
monmaptool --create --fsid 11111111-2222-3333-4444-555555555555 \
    --addv a '[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]' /c/monmap
ceph-mon --mkfs -i a --monmap /c/monmap --keyring /dev/null
ceph-mon -f -i a &
timeout 60 ceph osd new $id 0
ceph-osd --mkfs -i 0 --osd-uuid $id
ceph-osd -f -i 0 &
timeout 100 radosgw-admin -n client.rgw user create --uid=bricks --display-name=bricks \
    --access-key={access_key} --secret-key={secret_key}
exec radosgw -f -n client.rgw
"""

ENTER = 'mount --rbind /proc "$1/proc"; mount --rbind /dev "$1/dev"; exec chroot "$1" /bin/bash /start.sh'


def install(folder: Path) -> Path:
    """Unpack the packages, once; -> the root directory they make."""
    tree = folder / "tree"
    if (folder / "unpacked").exists():
        return tree
    for tool in ("apt-get", "dpkg-deb", "unshare", "chroot"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not here: Ceph's gateway comes as Debian packages, so this needs Debian.")
    print(f"Unpacking Ceph's gateway into {folder} ...", file=sys.stderr, flush=True)
    for half_made in (folder / "apt", tree):
        shutil.rmtree(half_made, ignore_errors=True)
    (folder / "apt" / "lists" / "partial").mkdir(parents=True)
    (folder / "apt" / "archives" / "partial").mkdir(parents=True)
    (folder / "apt" / "status").touch()
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        check=True, capture_output=True, encoding="utf-8",
    ).stdout.split()[0]  # fmt: skip
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "apt" / "sources.list").write_text(f"deb [signed-by={keys}] {mirror} {SUITE} main\n", encoding="utf-8")
    options = {
        "Dir::State": folder / "apt",
        "Dir::State::status": folder / "apt" / "status",
        "Dir::Cache": folder / "apt",
        "Dir::Etc::sourcelist": folder / "apt" / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Check-Valid-Until": "false",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "--yes", "--download-only", "install", *PACKAGES], check=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for package in sorted((folder / "apt" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(tree)], check=True)
        package.unlink()
    for name in ("proc", "dev", "tmp", "etc/ceph"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n", encoding="utf-8")
    (tree / "etc" / "group").write_text("root:x:0:\n", encoding="utf-8")
    (folder / "unpacked").touch()
    return tree


@contextmanager
def running(tree: Path, log: Path) -> Iterator[dict[str, str]]:
    """Start the gateway; -> the variables a client needs. It is gone, data and all, at the end."""
    words = {"access_key": "bricks", "secret_key": "bricks-on-loopback"}
    ports = dict(zip(("mon", "mon_v1", "gateway"), free_ports(3), strict=True))
    (tree / "etc" / "ceph" / "ceph.conf").write_text(CONF.format(**ports), encoding="utf-8")
    (tree / "start.sh").write_text(START.format(**ports, **words), encoding="utf-8")
    # In a process space of its own, everything dies with its first process.
    enter = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        enter += ["--user", "--map-root-user"]
    environment = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/", "LANG": "C.UTF-8"}
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [*enter, "sh", "-ec", ENTER, "sh", str(tree)], stdout=output, stderr=output, env=environment
        )
    try:
        endpoint = f"http://127.0.0.1:{ports['gateway']}"
        wait_for(endpoint, gateway, log)
        yield {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": words["access_key"],
            "AWS_SECRET_ACCESS_KEY": words["secret_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "BRICKS_TEST_S3": endpoint,
        }
    finally:
        gateway.kill()
        gateway.wait()


def wait_for(endpoint: str, gateway: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    while gateway.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    tail = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-20:])
    sys.exit(f"Ceph's gateway did not start; {log} ends with:\n{tail}")


def free_ports(num_ports: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(num_ports)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=cache / "bricks" / "ceph", help="where Ceph is unpacked")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = asked.folder.absolute()
    started_s = time.monotonic()
    tree = install(folder)
    unpacked_s = time.monotonic()
    with running(tree, folder / "gateway.log") as variables:
        ready_s = time.monotonic()
        print(
            f"Ceph's gateway: unpacked in {unpacked_s - started_s:.0f} s, up in {ready_s - unpacked_s:.0f} s,"
            f" at {variables['AWS_ENDPOINT_URL_S3']}",
            file=sys.stderr,
            flush=True,
        )
        return subprocess.run(asked.command, env=os.environ | variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
