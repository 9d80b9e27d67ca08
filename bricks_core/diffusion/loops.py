"""Videos longer than the network makes at once: each clip goes on from the last frames of the one before.  [19]

Numbers in brackets are sections of the specification, docs/stdit2.md.
Letters: B samples, T frames of a clip, c of them given by the clip before, C latent channels, h, w size of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from bricks_core.diffusion.conditions import Condition, Reference, extension
from bricks_core.errors import UsageError
from bricks_core.video.read import Pixels

Sample = Callable[[int, Sequence[Sequence[Reference]], Sequence[Sequence[Condition]]], Tensor]
"""loop, and for each sample its references and conditions (those of all loops) -> latents (B, C, T, h, w)"""

Decode = Callable[[Tensor], Pixels]
"""(C, T, h, w) latents -> (T, H, W, 3) frames"""

Encode = Callable[[Pixels], Tensor]
"""(T, H, W, 3) frames -> (C, T, h, w) latents"""


def num_frames_in_loops(num_loops: int, num_frames: int, num_given: int) -> int:
    """Frames of a video of several clips of `num_frames`, each beginning with the last `num_given` of the one before.

    Raises:
        UsageError: no new frame would be left in a clip, or there is no clip.
    """
    if num_loops < 1:
        raise UsageError(f"{num_loops} loops make no video: ask for at least one.")
    if num_loops > 1 and num_frames == 1:
        raise UsageError("One frame is no clip that another could go on from: ask for more frames, or one loop.")
    if num_loops > 1 and not 1 <= num_given < num_frames:
        raise UsageError(
            f"A clip of {num_frames} frames cannot go on from {num_given} frames of the clip before: choose from 1 to "
            f"{num_frames - 1}."
        )
    return num_frames + (num_loops - 1) * (num_frames - num_given)


def in_loops(
    num_loops: int,
    num_given: int,
    sample: Sample,
    decode: Decode,
    encode: Encode,
    references: Sequence[Sequence[Reference]],
    conditions: Sequence[Sequence[Condition]],
) -> Iterator[list[Pixels]]:
    """Clip after clip, for each sample of a batch its new frames: T of the first clip, T - c of each later one.

    A clip is decoded, encoded again, and becomes one more reference of its sample, from whose last `num_given` (c)
    frames the next clip goes on.  references, conditions: for each sample its own to begin with; they are not changed.

    Nothing is held but the references: who takes the frames writes them away.
    """
    given, wanted = [list(each) for each in references], [list(each) for each in conditions]
    for loop in range(num_loops):
        clips = [decode(latents) for latents in sample(loop, given, wanted)]
        yield [clip[num_given if loop else 0 :] for clip in clips]
        if loop + 1 < num_loops:
            for one, (clip, known, asked) in enumerate(zip(clips, given, wanted, strict=True)):
                # The specification's group "loop, last reference, -c, 0, c".
                given[one] = [*known, encode(clip)]
                wanted[one] = [*asked, extension(num_given, reference=len(known), loop=loop + 1)]
