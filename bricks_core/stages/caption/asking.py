"""Asking a model about clips and images: every question once, by whichever process comes to it first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from bricks_core.errors import CapReached
from bricks_core.judge.pictures import STILL, Pixels, read_picture, see, see_moving, shows_nothing, to_jpeg
from bricks_core.spec.caption import CaptionSpec
from bricks_core.spec.items import ItemKey, Recipe
from bricks_core.stages.caption.sources import Answer, CaptionTask, Question, Recipes, Sight
from bricks_core.stages.caption.vision_model import VisionModel
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.items import seconds_since
from bricks_core.storage.work import Work
from bricks_core.video.read import read_rgb


def ask_about(pending: Sequence[CaptionTask], spec: CaptionSpec, work: Work, *, proven: bool) -> None:
    """Look at the clips and ask, `spec.concurrency` at once. What others are asking is left to them, and waited for.

    `proven`: the model has answered one of these questions before.

    Raises:
        CapReached: caption.max_calls is reached. TryLater: the server's rate limit.
        SpecError, ServiceUnavailable: see `VisionModel`.
    """
    with VisionModel(spec, proven=proven) as model:
        asking = _Asking(spec, work, model)
        shared = work.claims.each(pending, asking.recipes.stretches, asking.are_done)

        def ask(task: CaptionTask) -> None:
            with shared.doing(task):
                asking.ask(task)

        with shared.coming() as coming:
            for task in coming:  # one alone first: a wrong key then costs one call, not as many as run at once
                asking.may_begin(0)
                ask(task)
                if model.num_calls:
                    break
            in_threads(ask, coming, spec.concurrency, may_begin=asking.may_begin)
        asking.end()


class _Asking:
    """Does one clip or image at a time, from as many threads as there are."""

    def __init__(self, spec: CaptionSpec, work: Work, model: VisionModel):
        self.recipes = Recipes.of(spec)
        self._spec, self._work, self._model = spec, work, model
        self._missing: set[ItemKey] = set()
        """What was not there when it was last looked for."""
        self._asked: set[ItemKey] = set()
        self._is_stopped = False
        """Whether something was left for want of calls."""
        self._lock = threading.Lock()

    def are_done(self, tasks: list[CaptionTask]) -> list[bool]:
        """Which tasks others have done since."""
        sights = [self.recipes.sight(task).key for task in tasks]
        there = self._look_for(sights)
        keys = [
            [question.recipe.key for question in self._questions(task, sight)] if sight in there else None
            for task, sight in zip(tasks, sights, strict=True)
        ]
        there = self._look_for(key for each in keys for key in each or ())
        done = [each is not None and there.issuperset(each) for each in keys]
        if any(done):
            self._work.progress.advance(sum(done))
        return done

    def may_begin(self, num_begun: int) -> bool:
        """Whether another call is allowed.

        Raises:
            TryLater: it is not, and none is under way.
        """
        if not self._is_spent():
            return True
        if num_begun:
            return False
        raise self._too_many()

    def end(self) -> None:
        """Raises TryLater: something was left for want of calls."""
        if self._is_stopped:
            raise self._too_many()

    def ask(self, task: CaptionTask) -> None:
        """Look at it, if nobody has, and ask what is not answered."""
        note = ""
        with ExitStack() as opened:
            shown = _Shown(task, self._work, opened)
            sight = self.recipes.sight(task)
            if not self._is_there(sight.key):
                if self._is_spent():
                    self._is_stopped = True
                    return
                self._look(task, sight, shown)
            for question in self._questions(task, sight.key):
                if self._is_there(question.recipe.key):
                    continue
                if not self._may_call(question.recipe.key):
                    self._is_stopped = True
                    return
                jpegs = [to_jpeg(picture, self._spec.max_side_px) for picture in shown.pictures(question)]
                answer = self._model.ask(question.prompt, jpegs)
                note = note or answer.text[:60] or answer.refused[:60]
                self._put(question, answer)
        self._work.progress.advance(note=note)

    def _look(self, task: CaptionTask, made: Recipe, shown: _Shown) -> None:
        """Choose the frames that stand for a clip, and tell what can be told without a model."""
        began_s = time.monotonic()
        sight = Sight()
        if task.kind == "video":
            sight = shown.look(self._spec.frame_shares)
        if task.image_id:
            sight.image_is_plain = shows_nothing(shown.image)
        self._work.items.put(made, sight, cost=seconds_since(began_s))

    def _put(self, question: Question, answer: Answer) -> None:
        cost = {"calls": 1, "prompt_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
        self._work.items.put(question.recipe, answer, by=answer.model, cost=cost)

    def _questions(self, task: CaptionTask, sight: ItemKey) -> list[Question]:
        return list(self.recipes.questions(task, self._work.items.answer(sight, Sight)))

    def _look_for(self, keys: Iterable[ItemKey]) -> set[ItemKey]:
        wanted = list(keys)
        there = self._work.items.load(wanted)
        self._missing.difference_update(there)
        self._missing.update(key for key in wanted if key not in there)
        return there

    def _is_there(self, key: ItemKey) -> bool:
        return key not in self._missing and self._work.items.get(key) is not None

    def _is_spent(self) -> bool:
        return self._spec.max_calls is not None and len(self._asked) >= self._spec.max_calls

    def _may_call(self, key: ItemKey) -> bool:
        with self._lock:
            if self._is_spent():
                return False
            self._asked.add(key)
            return True

    def _too_many(self) -> CapReached:
        progress = self._work.progress
        return CapReached(
            f"caption.max_calls, {self._spec.max_calls}, is reached with {progress.total - progress.done} clips left "
            "to caption. What is done is kept: the same command goes on with the next."
        )


class _Shown:
    """The pictures of one task, each file read and decoded as seldom as can be. For one thread."""

    def __init__(self, task: CaptionTask, work: Work, opened: ExitStack):
        self._task, self._work, self._opened = task, work, opened
        self._frames: dict[int, Pixels] = {}
        """By their place in the clip, RGB: those that were found when it was looked at."""

    def look(self, shares: list[float]) -> Sight:
        """Which frames stand for the clip; counted in its source."""
        task = self._task
        # Its motion was measured from the same pictures, and rounded: near the edge it is measured again.
        found = see_moving(self._clip, task.num_frames, shares) if task.motion > STILL + 0.001 else None
        if found is not None:
            chosen, self._frames = found
            return Sight(frames=[task.first_frame + frame for frame in chosen])
        seen = see(self._clip, task.num_frames, task.fps, shares)
        chosen = [task.first_frame + frame for frame in seen.chosen]
        return Sight(frames=chosen, status=seen.status, reason=seen.reason)

    def pictures(self, question: Question) -> Iterable[Pixels]:
        """What a question shows, RGB."""
        if question.kind == "image":
            return [self.image[..., ::-1]]
        places = [frame - self._task.first_frame for frame in question.frames]
        if self._frames.keys() >= set(places):
            return [self._frames[place] for place in places]
        return read_rgb(self._clip, places)

    @cached_property
    def image(self) -> Pixels:
        """(height, width, 3) BGR."""
        with self._work.local("clip", self._task.image_key, sha256=self._task.image_sha256) as path:
            return read_picture(path)

    @cached_property
    def _clip(self) -> Path:
        return self._opened.enter_context(self._work.local("clip", self._task.key, sha256=self._task.sha256))
