"""The rules every caption must keep, whoever wrote it. A text that breaks one is rejected, with the reason."""

from __future__ import annotations

import re
from functools import cache

from bricks_core.spec.caption import CaptionSpec, CaptionStatus

ANSWERS: dict[str, CaptionStatus] = {
    "not enough information": "not_enough_information",
    "single image": "single_image",
    "no movement": "no_movement",
}
"""What the prompt lets the model say instead of a description, and the status that it means."""

MIN_WORDS = 4
MAX_WORDS = 250
_REFUSALS = (
    r"\bi(?:'m| am)? (?:really |very |so )?sorry\b",
    r"\bi (?:can(?:'t|not| not)|could(?:n't| not)|am (?:not able|unable)|won't|will not) "
    r"(?:help|assist|describe|view|see|provide|identify|analy[sz]e|comply|fulfil|process|access|do|determine|generate)",
    r"\bi(?:'m| am) (?:not able|unable) to\b",
    r"\bunable to (?:assist|help|describe|view|see|provide|process|analy[sz]e)",
    r"\bas an? (?:ai|artificial|language model|assistant)\b",
    r"\bplease (?:provide|upload|share|attach|send)\b",
    r"\b(?:no|without any) (?:pictures?|photos?|attachments?) (?:was|were|provided|attached)\b",
)
_LEFTOVERS = (
    r"\bcaption(?:ing)? (?:failed|error|unavailable|not available)\b",
    r"\b(?:internal server|rate limit|connection|request|api) (?:error|exceeded|failed)\b",
    r"\bhere(?:'s| is| are) (?:a|an|the|your|my) (?:\w+ )?(?:caption|description)\b",
    r"^(?:sure|certainly|of course)\b[,!.]",
    r"^(?:caption|description|answer|output)\s*:",
    r"<\|?\w+\|?>",
    r"```",
    r"^\s*(?:none|null|n/a|undefined|todo)\s*\.?\s*$",
    r"lorem ipsum",
)
_ONE_BY_ONE = (
    r"\b(?:in|on) the (?:first|second|third|last|final|next|opening|closing) (?:one|picture|photo|shot|still|scene|"
    r"view|snapshot|screenshot|panel|moment in the sequence)\b",
    r"\b(?:first|second|third) (?:picture|photo|still|snapshot|screenshot|panel)\b",
    r"\b(?:pictures?|photos?|stills?|snapshots?|screenshots?|panels?) (?:1|2|3|one|two|three)\b",
    r"\bacross (?:all|the) (?:\w+ )?(?:pictures|photos|stills|snapshots|screenshots|panels)\b",
    r"^\s*(?:1[.)]|\(1\)|[-*•]) ",
)
_NO_WORD = r"(?<!\w)"
_ENDS = ".!?…"
_END = re.compile(rf"[{_ENDS}]+[\"'”’)]*(?:\s+|$)")
_NO_END = re.compile(r"\b(?:[A-Za-z]|mr|mrs|ms|dr|st|vs|e\.g|i\.e|approx|no)\.(?=\s)", re.IGNORECASE)
_IN_WORD = re.compile(r"\w")


def judge(text: str, spec: CaptionSpec) -> tuple[CaptionStatus, str]:
    """A caption's status and, unless it is ok, the reason: (status, reason)."""
    plain = tidied(text).replace("’", "'")
    if not plain:
        return "failed", "the answer is empty"
    if status := ANSWERS.get(re.sub(r"[^\w\s]", "", plain).strip().lower()):
        return status, f'the model answered "{plain}"'
    return next(((status, reason) for status, reason in _broken(plain, spec)), ("ok", ""))


def tidied(text: str) -> str:
    """White space made single, and quotation marks around the whole taken off."""
    plain = " ".join(text.split())
    if len(plain) > 1 and plain[0] in "\"“'" and plain[-1] in "\"”'" and plain[0] not in plain[1:-1]:
        plain = plain[1:-1].strip()
    return plain


def num_sentences(text: str) -> int:
    """Ends of sentences, and what follows the last; initials, decimals and abbreviations do not end one."""
    parts = _END.split(_NO_END.sub("", text))
    return sum(1 for part in parts if _IN_WORD.search(part))


def num_words(text: str) -> int:
    return len(text.split())


def _broken(text: str, spec: CaptionSpec) -> list[tuple[CaptionStatus, str]]:
    """The rules a text breaks, the weightiest first."""
    broken: list[tuple[CaptionStatus, str]] = []

    def rule(patterns: tuple[str, ...], reason: str) -> None:
        found = min(filter(None, (each.search(text) for each in _any(patterns))), key=re.Match.start, default=None)
        if found:
            broken.append(("rejected", f'{reason}: "{found[0].strip()}"'))

    rule(_REFUSALS, "the model refused")
    rule(_LEFTOVERS, "it is not a description")
    rule(tuple(map(_word, spec.forbidden_words)), "it has a forbidden word")
    rule(_ONE_BY_ONE, "it goes through the pictures one by one")
    # A text has one sentence more than it has ends, at most: most need no counting.
    if sum(map(text.count, _ENDS)) >= spec.max_sentences and (count := num_sentences(text)) > spec.max_sentences:
        broken.append(("rejected", f"it has {count} sentences, {spec.max_sentences} are allowed"))
    if (count := num_words(text)) < MIN_WORDS:
        broken.append(("rejected", f"it has {count} words, too few to describe anything"))
    elif count > MAX_WORDS:
        broken.append(("rejected", f"it has {count} words, {MAX_WORDS} are allowed"))
    return broken


@cache
def _any(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Those that begin alike as one: its beginning fails at most places, and what follows is not tried there."""
    rests: dict[str, list[str]] = {}
    for each in patterns:
        beginning = next(start for start in (_NO_WORD, r"\b", "^", "") if each.startswith(start))
        rests.setdefault(beginning, []).append(each.removeprefix(beginning))
    return [re.compile(rf"{start}(?:{'|'.join(some)})", re.IGNORECASE) for start, some in rests.items()]


@cache
def _word(forbidden: str) -> str:
    """A forbidden word or phrase as whole words, with plural and possessive, its parts joined by any space or dash."""
    parts = [re.escape(part) for part in re.split(r"[\s-]+", forbidden.strip()) if part]
    if not parts:
        return r"(?!)"
    last = parts[-1]
    endings = rf"{last[:-1]}(?:y(?:s|es)?|ies)" if last.endswith("y") else rf"{last}(?:s|es)?"
    return _NO_WORD + r"[\s-]*".join([*parts[:-1], endings]) + r"(?:'s)?(?!\w)"
