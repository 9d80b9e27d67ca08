"""What licences ask, as far as cards tell: a small table, no legal advice (docs/lineage.md#licences shows it).

A licence that is not in the table is told as such, and one that nobody has named is unknown; neither is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNKNOWN = "unknown"
HUB_LICENCES = frozenset(
    {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0"}
    | {"cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"}
    | {"cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"}
    | {"cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "gfdl", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit"}
    | {"mpl-2.0", "odbl", "odc-by", "openrail", "openrail++", "creativeml-openrail-m", "pddl", "unlicense", "wtfpl"}
    | {UNKNOWN}
)
"""Names the hub knows: SPDX's in lower case."""


@dataclass(frozen=True)
class Terms:
    """What a licence asks of whoever passes on what was made from a work."""

    credit: bool = False
    """To name whose it is, or to keep its notice."""
    same_licence: bool = False
    """Only under the same licence."""
    not_commercial: bool = False
    no_derivatives: bool = False
    """Nothing that is made from it may be passed on."""
    use_limits: bool = False
    """Uses that it forbids, which go along with whatever is made from it."""


_CREDIT, _SAME, _FREE = Terms(credit=True), Terms(credit=True, same_licence=True), Terms()
TABLE: Mapping[str, Terms] = {
    **dict.fromkeys(("cc0-1.0", "pddl", "unlicense", "wtfpl"), _FREE),
    **dict.fromkeys(("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "odc-by"), _CREDIT),
    **dict.fromkeys(("cdla-permissive-1.0", "cdla-permissive-2.0"), _CREDIT),
    **dict.fromkeys(("gpl-2.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "odbl", "gfdl", "cdla-sharing-1.0"), _SAME),
    **dict.fromkeys(("openrail", "openrail++", "creativeml-openrail-m"), Terms(credit=True, use_limits=True)),
}
"""By name in lower case. Creative Commons' licences say what they ask in their names, which `terms_of` reads."""
_CREATIVE_COMMONS = re.compile(r"cc-by(?P<nc>-nc)?(?P<last>-sa|-nd)?-\d\.\d(-[a-z-]+)?")


def terms_of(licence: str) -> Terms | None:
    """What a licence asks; None: it is unknown, or not in the table."""
    name = licence.strip().lower()
    if match := _CREATIVE_COMMONS.fullmatch(name):
        last = match["last"]
        return Terms(True, last == "-sa", match["nc"] is not None, last == "-nd")
    return TABLE.get(name)


def is_unknown(licence: str) -> bool:
    return licence.strip().lower() in ("", UNKNOWN)


def hub_licence(licences: Iterable[str]) -> dict[str, str]:
    """The hub's licence field: the one licence that all have, or the word that they differ. Never a guess."""
    found = sorted(set(licences))
    if len(found) > 1:
        return {"license": "other", "license_name": "several", "license_link": "README.md"}
    licence = found[0] if found else UNKNOWN
    if licence.lower() in HUB_LICENCES:
        return {"license": licence.lower()}
    return {"license": "other", "license_name": licence, "license_link": "README.md"}


def findings(data: Mapping[str, int], base: str | None, model: str = "") -> list[str]:
    """What there is to say of the licences of a model's data, of its base and of itself, a sentence each.

    `data`: films by licence. `base`: the base's licence; None: it began with random weights. `model`: what its maker
    passes it on under; empty: not said.
    """
    told = [
        sentence
        for licence, num in sorted(data.items())
        for sentence in _of_data(licence, f"{num:,} film{'s' if num != 1 else ''}", base, model)
    ]
    same = sorted(licence for licence in data if (terms := terms_of(licence)) and terms.same_licence)
    if len(same) > 1:
        told.append(f"{_and(same)} each ask for themselves alone: what is made from all of them can follow only one.")
    if base is not None and is_unknown(base):
        told.append("The licence of the base is **not known**: whether this model may be passed on, nobody has said.")
    elif base is not None and (terms := terms_of(base)) is None:
        told.append(f"The licence of the base, {base}, is not in our table: read what it asks.")
    elif base is not None and terms is not None:
        told += _of_base(base, terms, model)
    return told


def _of_data(licence: str, films: str, base: str | None, model: str) -> list[str]:
    if is_unknown(licence):
        return [f"The licence of {films} is **not known**: nobody has said that a model may be trained on them."]
    terms = terms_of(licence)
    if terms is None:
        return [f"{licence}, of {films}, is not in our table: read what it asks."]
    told = []
    if terms.no_derivatives:
        told.append(
            f"{licence}, of {films}, **forbids passing on what is made from them**: ask before you pass this on."
        )
    for whose, other in (("the base is", base), ("this model is said to be", model)):
        theirs = terms_of(other) if other else None
        if other is None or theirs is None:
            continue
        if terms.not_commercial and not theirs.not_commercial:
            told.append(
                f"{licence}, of {films}, **forbids commercial use**, and {whose} {other}, which allows it: the "
                "stricter one holds for what was learnt from these films."
            )
        if terms.same_licence and other.lower() != licence.lower():
            told.append(
                f"{licence}, of {films}, asks that what is made from them has the same licence, and {whose} {other}."
            )
    if terms.not_commercial and not told:
        told.append(f"{licence}, of {films}, **forbids commercial use**.")
    if terms.same_licence and not told:
        told.append(f"{licence}, of {films}, asks that what is made from them has the same licence.")
    return told


def _of_base(base: str, terms: Terms, model: str) -> list[str]:
    told = []
    if terms.no_derivatives:
        told.append(f"The base is {base}, which **forbids passing on what is made from it**.")
    if terms.not_commercial:
        told.append(f"The base is {base}, which **forbids commercial use**; so it does of this model.")
    if terms.use_limits:
        told.append(f"The base is {base}: the uses that it forbids are forbidden of this model, too.")
    if terms.same_licence and model and model.lower() != base.lower():
        told.append(f"The base is {base}, which asks that what is made from it has the same licence, and not {model}.")
    return told


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
