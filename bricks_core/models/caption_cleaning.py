"""Prompts cleaned as Open-Sora 1.1's inference scripts clean them. docs/stdit2.md section 10, in eighteen steps.

Prompts only: captions are trained on as they are. The steps are kept as they are, oddities included, because published
weights were shown to people through them: they were made for texts found on web pages, and do harm here and there (what
is written in Chinese characters goes, "10.5x20.5" becomes "10 5"). `generate --no-clean` leaves a prompt alone.

Python's own classes are meant throughout: \\w and \\d know all scripts, [a-z] only Latin letters.
"""

from __future__ import annotations

import contextlib
import html
import re
import urllib.parse
import warnings
from collections.abc import Callable

NUM_PASSES = 2
"""Open-Sora's scripts clean twice: what the first pass uncovers (an escaped tag, say) the second one removes."""


def clean_caption(text: str, num_passes: int = NUM_PASSES) -> str:
    """A prompt as the network should read it; may come out empty. Any text can be cleaned."""
    for _ in range(num_passes):
        for step in STEPS:
            text = step(text)
    return text


def as_lower_case(text: str) -> str:
    """1. An address's percent signs and pluses are decoded; lower case; <person> loses its brackets."""
    return urllib.parse.unquote_plus(text).strip().lower().replace("<person>", "person")


_DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_HTTP = re.compile(rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})")
_WWW = re.compile(rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})")


def without_addresses(text: str) -> str:
    """2. Addresses go, twice: a domain that shows only when another one is gone is found by the second search."""
    return _WWW.sub("", _HTTP.sub("", text))


def without_markup(text: str) -> str:
    """3. HTML keeps only its text; @names go."""
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
    from bs4.exceptions import ParserRejectedMarkup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a prompt that looks like a file's name
        with contextlib.suppress(ParserRejectedMarkup):  # such as "<![x": no HTML after all
            text = BeautifulSoup(text, features="html.parser").text
    return re.sub(r"@\w+\b", "", text)


_CHINESE = re.compile(
    "[\u31c0-\u31ef"  # strokes
    "\u31f0-\u31ff"  # small katakana
    "\u3200-\u32ff\u3300-\u33ff"  # enclosed letters and months, units
    "\u3400-\u4dbf"  # extension A
    "\u4dc0-\u4dff"  # hexagrams
    "\u4e00-\u9fff]"  # the unified ideographs
)


def without_chinese_characters(text: str) -> str:
    """4. Chinese characters and their relatives go."""
    return _CHINESE.sub("", text)


_DASHES = re.compile(
    "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
    "\ufe63\uff0d]+"
)
_DOUBLE, _SINGLE = "\u0060\u00b4\u00ab\u00bb\u201c\u201d\u00a8", "\u2018\u2019"
_QUOTES = str.maketrans(_DOUBLE + _SINGLE, '"' * len(_DOUBLE) + "'" * len(_SINGLE))


def with_plain_dashes_and_quotes(text: str) -> str:
    """5. Any dashes in a row are one hyphen; double and single quotes of all kinds are the two of a typewriter."""
    return _DASHES.sub("-", text).translate(_QUOTES)


def without_escapes(text: str) -> str:
    """6. What HTML has for a quote and for "and" goes."""
    return re.sub(r"&quot;?", "", text).replace("&amp", "")


def without_web_numbers(text: str) -> str:
    """7. Network addresses are a space; a time at the end goes, if space follows it; \\n as two letters is a space."""
    text = re.sub(r"\d{1,3}(?:\.\d{1,3}){3}", " ", text)
    text = re.sub(r"\d:\d\d\s+$", "", text)
    return text.replace("\\n", " ")


def without_long_numbers(text: str) -> str:
    """8. "#" with one to three digits or with five or more go, and numbers of six digits or more."""
    text = re.sub(r"#\d{1,3}\b", "", text)
    text = re.sub(r"#\d{5,}\b", "", text)
    return re.sub(r"\b\d{6,}\b", "", text)


_EXTENSIONS = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"


def without_file_names(text: str) -> str:
    """9. File names go, by their extension."""
    return re.sub(rf"\S+\.{_EXTENSIONS}", "", text)


def without_piled_punctuation(text: str) -> str:
    """10. Quotes in a row are one; dots in a row, signs that are no punctuation, and a lone dot are a space."""
    text = re.sub(r"[\"']{2,}", '"', text)
    text = re.sub(r"\.{2,}", " ", text)
    text = re.sub(r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " ", text)
    return re.sub(r"\s+\.\s+", " ", text)


def without_joined_words(text: str) -> str:
    """11. this-is-a-name: where hyphens and underscores are more than three, each is a space."""
    return re.sub("[-_]", " ", text) if text.count("-") + text.count("_") > 3 else text


def with_right_letters(text: str) -> str:
    """12. Letters that were decoded wrongly are mended; what HTML escapes is read, twice."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def without_article_numbers(text: str) -> str:
    """13. abc123, ab1cd and 12ab34 go."""
    text = re.sub(r"\b[a-zA-Z]{1,3}\d{3,15}\b", "", text)
    text = re.sub(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", "", text)
    return re.sub(r"\b\d+[a-zA-Z]+\d+\b", "", text)


def without_shop_words(text: str) -> str:
    """14. "free shipping", "download", "click on it", "jpg images" and "page 3" go."""
    text = re.sub(r"(?:worldwide\s+)?(?:free\s+)?shipping", "", text)
    text = re.sub(r"(?:free\s)?download(?:\sfree)?", "", text)
    text = re.sub(r"\bclick\s(?:for|on)\s\w+", "", text)
    text = re.sub(rf"\b{_EXTENSIONS}(?:\simages?)?", "", text)
    return re.sub(r"\bpage\s+\d+\b", "", text)


def without_mixed_numbers(text: str) -> str:
    """15. Longer mixtures of letters and digits, such as j2d1a2a, are a space."""
    return re.sub(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " ", text)


def without_sizes(text: str) -> str:
    """16. 1920x1080 goes; the x may be Latin, Cyrillic or a multiplication sign."""
    return re.sub(r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", "", text)


def with_even_spaces(text: str) -> str:
    """17. A colon leans on the word before it, a word never on the comma, dot or slash before it; spaces are single."""
    text = re.sub(r"\b\s+:\s+", ": ", text)
    text = re.sub(r"(\D[,./])\b", r"\1 ", text)
    return re.sub(r"\s+", " ", text)


def without_wrapping(text: str) -> str:
    """18. Quotes around the whole go, then one mark at either end; a text that is only a dot and a word goes."""
    if len(text) > 2 and text[0] in "\"'" and text[-1] in "\"'":
        text = text[1:-1]
    text = text[1:] if text[:1] in ("'", "_", ",", "-", ":", ";") else text
    text = text[:-1] if text[-1:] in ("'", "_", ",", "-", ":", "+") else text
    return re.sub(r"^\.\S+$", "", text).strip()


STEPS: tuple[Callable[[str], str], ...] = (
    as_lower_case,
    without_addresses,
    without_markup,
    without_chinese_characters,
    with_plain_dashes_and_quotes,
    without_escapes,
    without_web_numbers,
    without_long_numbers,
    without_file_names,
    without_piled_punctuation,
    without_joined_words,
    with_right_letters,
    without_article_numbers,
    without_shop_words,
    without_mixed_numbers,
    without_sizes,
    with_even_spaces,
    without_wrapping,
)
"""The eighteen steps in their order."""
