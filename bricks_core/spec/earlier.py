"""Run files of earlier versions: what a field was called, and what it meant.

Fields with a default may be added freely, and files without them mean what they meant. Whoever renames or removes a
field, or lets its numbers mean something else, writes here what to write instead: the file is then refused with that
sentence, and never understood as something else. What the field held goes into controller/crd.py, or a cluster would
take it out of the runs that it has stored. A file that BrickRun can take as it was meant is read by the field's own
validator (`train.model` without a family, `tracking.wandb: off`).
"""

from __future__ import annotations

GONE = {
    "spec.clip.content_threshold": (
        "spec.clip.content_threshold is clip.cut_threshold now, and its numbers mean something else: the change of a "
        "picture that its motion does not explain (12 by default) and no longer all of its change (27). Leave it out, "
        "or choose a cut_threshold by looking at the clips."
    ),
}
"""By the field's place in the run file, without numbers of lists: what to write instead."""


def gone(place: tuple[int | str, ...]) -> str | None:
    """What to write instead of a field that an earlier version knew; None: none has known it."""
    return GONE.get(".".join(part for part in place if isinstance(part, str)))
