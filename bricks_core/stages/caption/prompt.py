"""What the vision model is asked. Built from the spec, so that the numbers it says are the numbers that are done."""

from __future__ import annotations

from bricks_core.spec.caption import CaptionSpec

_EXAMPLES = (
    "An elderly woman in a mustard raincoat walks towards us through a crowded night market after rain. "
    "Paper lanterns in red and gold hang in rows above her and shine again in the puddles at her feet, "
    "while steam from the food stalls drifts across the lane from left to right. The view backs away "
    "slowly in front of her at the height of her shoulders.",
    "Three shaggy brown yaks climb a snowy ridge one behind the other, their breath white in the low "
    "morning sun. Powder is blown off the crest to the right and glitters against a deep blue sky. Behind "
    "them lies a valley under fog, and the view circles them from left to right, far away and high up.",
    "Green waves roll against black cliffs and burst into white foam that runs back over the rocks. A "
    "narrow road with one small red car winds along the top, between yellow grass and a stone lighthouse. "
    "Seen from high above, the coast passes slowly from the top to the bottom, in the warm light of late "
    "afternoon.",
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def video_prompt(spec: CaptionSpec) -> str:
    """The task for a clip, shown as frames at `spec.frame_shares`."""
    shares = [f"{share:.0%}" for share in spec.frame_shares]
    return "\n\n".join(
        [
            f"You are shown {_number(len(shares))} frames of one short shot, in the order of time: those at about "
            f"{_listed(shares)} of its length. Work out what goes on between them, and describe the shot as one event.",
            "Before you describe anything, check three things. If the frames do not tell enough to understand the "
            "shot, answer exactly: Not enough information. If all of them look the same, answer exactly: Single image. "
            "If there is hardly any movement between them, answer exactly: No movement. In these cases write nothing "
            "else.",
            "Otherwise write one paragraph from which somebody who has not seen the shot could stage it again: every "
            "person and object, with colour, material, size and place; the ground and what is behind; the light; what "
            "moves, in which direction and how fast; and how the view itself moves.",
            _rules(spec, "Tell the shot as a whole: do not go through the frames one after the other."),
            _examples(),
        ]
    )


def image_prompt(spec: CaptionSpec) -> str:
    """The task for the middle frame of a clip, shown alone."""
    return "\n\n".join(
        [
            "You are shown one picture. If it does not show enough to be described, answer exactly: Not enough "
            "information. In that case write nothing else.",
            "Otherwise write one paragraph from which somebody who has not seen it could set it up again: every person "
            "and object, with colour, material, size, pose and place; the ground and what is behind; the light; and "
            "from where it is seen. Describe what is there now, and invent nothing that happens before or after.",
            _rules(spec, "Do not speak of movement that cannot be seen."),
            _examples(),
        ]
    )


def _rules(spec: CaptionSpec, particular: str) -> str:
    words = ", ".join(spec.forbidden_words)
    rules = [f"Write at most {_number(spec.max_sentences)} sentences of plain English."]
    if words:
        rules.append(f"Never use these words, nor their plurals: {words}.")
    if spec.style_words:
        rules.append(
            "Everything you will see is made in one and the same style. Take it for granted and never name it: not by "
            f"words such as {', '.join(spec.style_words)}, and not by others. A figure is a person, a model car a car."
        )
    rules += [particular, "Only say what can be seen. No opening phrase, no title, no list."]
    return "Rules:\n" + "\n".join(f"- {rule}" for rule in rules)


def _examples() -> str:
    return "The tone to write in, by three examples of other things:\n" + "\n".join(f"- {each}" for each in _EXAMPLES)


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
