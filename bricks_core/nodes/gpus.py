"""A node's GPUs: as many as were asked for, and none that its driver knows to be damaged."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from xml.etree import ElementTree

import torch

from bricks_core.nodes.checks import left_out
from bricks_core.nodes.report import ANOTHER_NODE, Check

ASK_TIMEOUT_S = 60


def gpus(wanted: int, *, seen: int | None = None, told: str | None = None) -> list[Check]:
    """Whether `wanted` GPUs are there and healthy. 0: none was asked for.

    `told` is what `nvidia-smi -q -x` says, asked for when it is not given.
    """
    if not wanted:
        return [left_out("GPUs", "No GPU is asked for.")]
    seen = torch.cuda.device_count() if seen is None else seen
    words = (
        f"{wanted} GPUs are asked for and {seen} can be seen: look at nvidia-smi on this node, and at the pod's limits."
    )
    number = Check(
        name="GPUs",
        state="passed" if seen >= wanted else "failed",
        measured=seen,
        wanted=wanted,
        sentence="" if seen >= wanted else words,
        exit_code=0 if seen >= wanted else ANOTHER_NODE,
    )
    told = _ask_driver() if told is None else told
    if not told:
        return [number, left_out("GPU health", "nvidia-smi is not there to ask.")]
    return [number, _health(told)]


def computes(index: int) -> Check:
    """A small product on one GPU comes out right: a GPU that fell off the bus is still listed."""
    name = f"GPU {index} computes"
    try:
        ones = torch.ones(1024, 1024, device=torch.device("cuda", index))
        wrong = int((ones @ ones != 1024).sum())
    except RuntimeError as error:
        words = f"GPU {index} does not work ({' '.join(str(error).split())[:160]}): drain this node."
        return Check(name=name, state="failed", sentence=words, exit_code=ANOTHER_NODE)
    if wrong:
        words = f"GPU {index} miscalculates: {wrong} of {1 << 20} numbers of a product are wrong. Drain this node."
        return Check(name=name, state="failed", sentence=words, exit_code=ANOTHER_NODE)
    return Check(name=name, state="passed")


def faults(told: str) -> Iterator[str]:
    """What the driver holds against GPUs, from its own report in XML.

    A row that waits to be remapped, or could not be, and uncorrectable errors since the driver was loaded.
    """
    for index, gpu in enumerate(ElementTree.fromstring(told).iter("gpu")):
        name = f"GPU {index} ({gpu.findtext('uuid', 'no uuid')})"
        rows = gpu.find("remapped_rows")
        for tag, words in (
            ("pending", "has memory rows that wait to be remapped"),
            ("failure", "could not remap a row"),
        ):
            if rows is not None and rows.findtext(f"remapped_row_{tag}", "").strip() == "Yes":
                yield f"{name} {words}"
        volatile = gpu.find("ecc_errors/volatile")
        for each in volatile if volatile is not None else ():
            count = (each.text or "").strip()
            if "uncorrectable" in each.tag and count.isdigit() and int(count):
                yield f"{name} had {count} uncorrectable memory errors ({each.tag})"


def _health(told: str) -> Check:
    try:
        found = list(faults(told))
    except ElementTree.ParseError as error:
        return left_out("GPU health", f"nvidia-smi's report cannot be read: {error}.")
    if not found:
        return Check(name="GPU health", state="passed")
    words = f"{'; '.join(found)}: drain this node and reset its GPUs."
    return Check(name="GPU health", state="failed", measured=len(found), sentence=words, exit_code=ANOTHER_NODE)


def _ask_driver() -> str:
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    try:
        asked = subprocess.run(
            [program, "-q", "-x"], capture_output=True, encoding="utf-8", timeout=ASK_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout
