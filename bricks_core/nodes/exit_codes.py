"""Many processes end, and one code is told: which of them counts, and which ends are not tried again here.

torchrun itself ends with 1 whatever happened, so that nobody outside could tell a wrong run file from a lost node.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bricks_core.errors import BricksError, TryLater

STOPS = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM})
NOT_TRIED_AGAIN = frozenset({64, 65, 77, 78}) | STOPS
"""Ends that the same processes on the same nodes would come to again, or that somebody asked for."""
OF_ALL_NODES = NOT_TRIED_AGAIN - {77}
"""Of those, what is as true of every node as of the one that ended with it."""
OUR_BUG = BricksError.exit_code
"""What nobody foresaw: a GPU's fault as well as a mistake of ours, so it is tried once more, and not three times."""
LOST_ANOTHER = TryLater.exit_code
"""What a process ends with that can't go on because another one has ended: never the reason why all of them did."""

_DECISIVE = (frozenset({64, 65, 78}), frozenset({77}))


@dataclass(frozen=True)
class End:
    """How a process or a node ended."""

    code: int
    """0, one of bricks_core/errors.py, or 128 + signal."""
    sentence: str = ""
    """What happened and how to mend it, as far as it is known."""
    node_rank: int = 0

    def to_json(self) -> str:
        """For the others, through the store where they meet."""
        return json.dumps([self.code, self.sentence, self.node_rank])

    @classmethod
    def from_json(cls, text: str) -> End:
        code, sentence, node_rank = json.loads(text)
        return cls(code, sentence, node_rank)


class NodeEnded(BricksError):
    """What this node's processes came to."""

    def __init__(self, end: End):
        self.end = end
        self.exit_code = end.code
        super().__init__(end.sentence)


def exit_code(returned: int) -> int:
    """A process's end as a shell tells it: what it returned, or 128 + the signal that killed it."""
    return 128 - returned if returned < 0 else returned


def weight(code: int) -> int:
    """How much an end explains: wrong input most, then an unfit node, a fault, a stop, and least a lost neighbour."""
    for place, codes in enumerate(_DECISIVE):
        if code in codes:
            return 5 - place
    if code in STOPS:
        return 2
    return 1 if code == LOST_ANOTHER else 0 if code == 0 else 3


def decisive(ends: Iterable[End]) -> End:
    """Of ends in the order in which they came, the first of those that explain most."""
    return max(ends, key=lambda end: weight(end.code), default=End(0))


def for_this_node(other: End, node_rank: int) -> End:
    """What another node's end means here: the same where it is as true here, else that this one may try again."""
    if other.node_rank == node_rank or other.code in OF_ALL_NODES:
        return other
    why = f": {other.sentence}" if other.sentence else "."
    return End(LOST_ANOTHER, f"Node {other.node_rank} ended with {other.code}{why}", node_rank)


def described(returned: int, told: dict[str, Any] | None) -> str:
    """A sentence for a process's end: its own where it left one (torchrun's error file), else what is known."""
    message = (told or {}).get("message")
    if isinstance(message, dict):
        return str(message.get("message", ""))
    if returned < 0:
        name = signal.Signals(-returned).name if -returned in set(signal.Signals) else str(-returned)
        hint = " (out of memory, or somebody's kill)" if returned == -signal.SIGKILL else ""
        return f"It was killed by {name}{hint}."
    return f"It ended with {returned}; its own lines above say more."


def leave_word(error: BaseException) -> bool:
    """Leave an error's sentence where the agent that started this process reads it. False: no agent did."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return False
    extra = {"py_callstack": str(error), "timestamp": str(int(time.time()))}
    Path(file).write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}), encoding="utf-8")
    return True
