"""Scratch folders: gone with their context, and gone after a kill as soon as another process comes."""

import os
import signal
import subprocess
import sys

from bricks_core.storage.scratch import PREFIX, scratch

HOLD = """
import time
from bricks_core.storage.scratch import scratch
with scratch() as folder:
    (folder / "big").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


def start(place):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], env=os.environ | {"TMPDIR": str(place)}, stdout=subprocess.PIPE, encoding="utf-8"
    )


def test_a_folder_is_gone_when_its_context_ends():
    with scratch() as folder:
        (folder / "file").write_text("x", encoding="utf-8")
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    killed, alive = start(tmp_path), start(tmp_path)
    left, used = killed.stdout.readline().strip(), alive.stdout.readline().strip()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert os.path.exists(left)
    third = start(tmp_path)
    own = third.stdout.readline().strip()
    assert {str(folder) for folder in tmp_path.glob(f"{PREFIX}*")} == {used, own}
    for process in (alive, third):
        process.kill()
        process.wait()
