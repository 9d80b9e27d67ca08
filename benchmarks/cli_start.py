"""How long the command line takes to say its help, against a Python that does nothing, in the same run.

python -m benchmarks.cli_start [--save] [--repeats 15]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.record import flags, keep

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "bricks --help": ["-m", "jobs.bricks", "--help"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    """Take turns, so that a busy machine is busy for all."""
    parser = flags(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    nothing = medians["python -c pass"]
    found = {}
    for name, median in medians.items():
        ratio = round(median / nothing, 2)
        found[name] = {"median_s": round(median, 4), "best_s": round(min(seconds[name]), 4), "x_nothing": ratio}
    keep("cli_start", {"repeats": arguments.repeats, "results": found}, save=arguments.save)


if __name__ == "__main__":
    main()
