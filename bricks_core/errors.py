"""The ways to fail, each with its exit code.

One table for every program of ours: the command line, the stage images, and the controller that reads a Job's exit
code (docs/exit-codes.md explains each to a user). The numbers are BSD's sysexits where one fits.

    0    done
    1    a verdict: an evaluation does not reach its gates (asked for by `bricks ci report --exit-code`, or --gate)
    64   usage: a flag or a command is wrong
    65   this data is bad (a damaged artifact, nothing left to work on)
    69   a service is away (the store's endpoint, the caption server)
    70   our bug
    75   try later (disk full, rate limit, parts still missing)
    77   this node failed its preflight: another node, please
    78   configuration: the run file or the store's permissions are wrong
    130  stopped by SIGINT, 143 by SIGTERM; what was finished is kept
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

WRONG_FOR_ALL = (64, 78)
"""Codes that say: another try, or another shard, would fail alike. A Job is ended by the first pod that leaves one."""
WRONG_DATA = (65,)
"""Codes that say: what this shard was given cannot be used, and will not be the next time either."""
OUR_BUG = (70,)
OTHER_NODE = (77,)
"""Codes that say: not on this node."""
STOPPED = (130, 143)
"""Codes of a process that was asked to stop, by SIGINT or SIGTERM, and left things in order."""


class BricksError(Exception):
    """Something a user can mend. Its text is one sentence or two: what, where, and how to mend it."""

    exit_code = 70


class UsageError(BricksError):
    """A flag, an argument or a command that cannot be meant."""

    exit_code = 64


class DataError(BricksError):
    """What was given can be read as asked for, but not used."""

    exit_code = 65


class AlteredObject(DataError):
    """An object of an artifact is missing, or is not what its manifest says."""

    def __init__(self, key: str, what: str):
        self.key = key
        super().__init__(f"{key} {what}")


class CorruptManifest(DataError):
    """A manifest or a part that cannot be read."""


class GateFailed(BricksError):
    """An evaluation does not reach what its run asks of it. Nothing went wrong: this is its answer."""

    exit_code = 1


class StoreUnavailable(BricksError):
    """The store's service does not answer."""

    exit_code = 69


class ServiceUnavailable(BricksError):
    """Another service a stage calls does not answer, or refuses us."""

    exit_code = 69


class ClusterUnavailable(BricksError):
    """No cluster answers, or none is configured."""

    exit_code = 69


class ClusterDenied(BricksError):
    """The cluster refuses us: no rights, or it does not know the kind that is asked for."""

    exit_code = 78


class PreflightFailed(BricksError):
    """This node is not fit to train: another node, please."""

    exit_code = 77


class TryLater(BricksError):
    """Nothing is wrong that time, space or another process will not mend."""

    exit_code = 75


class CapReached(TryLater):
    """A limit on cost that the run file sets. The same command goes on, within the same limit."""


class SpecError(BricksError):
    """The run file asks for what cannot be."""

    exit_code = 78


class StoreDenied(BricksError):
    """The store refuses us: permissions, keys, or a bucket that is not there."""

    exit_code = 78


class NoSuchObject(BricksError):
    """A key that holds nothing."""

    exit_code = 65

    def __init__(self, key: str):
        self.key = key
        super().__init__(f"{key} is not in the store.")


class Stopped(BaseException):
    """SIGINT or SIGTERM asked us to stop; what was finished is kept.

    No `Exception`, as KeyboardInterrupt is none: it may come at any line, and whoever takes a failure to try again, to
    log it or to say it in other words (boto3 does all three) must not take this one.
    """

    def __init__(self, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__("Stopped. What was finished is kept: the same command continues.")


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean "x"?)' for the nearest of `words`, or nothing when none is near."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""
