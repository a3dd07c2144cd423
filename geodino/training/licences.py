"""Under which licences a model's start and data stand: listed, never weighed; the card's one line hides none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from geodino.models.catalog import CC_BY, DINOV3_LICENCE, Licence

NOT_STATED = "not stated"
_AS = ("as its start and data: ", "as its data: ")
# Licences that ask for attribution or a notice at most, so that what was stated of the data can stand for them; splits
# may say in brackets what a licence is of.
_ATTRIBUTION = re.compile(
    r"cc0([ -]1\.0)?|public domain|pddl([ -]1\.0)?|odc[ -]by([ -]1\.0)?|cc[ -]by([ -]\d\.\d)?|"
    r"(licence ouverte|etalab|open licence)([ -]\d\.\d)?|mit",
    re.IGNORECASE,
)


def data_terms(data: Mapping[str, Any]) -> list[str]:
    """The licences of a training's data, from `data` of its record: what was stated first, then those of its chips."""
    stated, of_chips = data.get("licence") or NOT_STATED, data.get("licences") or {}
    return _once([stated, *(part for name in of_chips if name != NOT_STATED for part in name.split(", "))])


def licence_of(start: Licence | None, data: Iterable[Mapping[str, Any]]) -> Licence:
    """The weights' licence: what was stated of the data where all else asks for attribution at most, else all.

    Parameters
    ----------
    start
        Of what the training started from; None for random weights.
    data
        `data` of the records: of this training and of those that it rehearsed.
    """
    of_start = [] if start is None else start.name.removeprefix(_AS[0]).removeprefix(_AS[1]).split(", ")
    of_data = [term for one in data for term in data_terms(one)]
    terms = _once([*of_start, *of_data])
    strict = [term for term in terms if not _ATTRIBUTION.fullmatch(re.sub(r"\s*\(.*?\)", "", term))]
    if len(terms) == 1 or not strict:
        name = terms[0] if len(terms) == 1 else of_data[0]
        return Licence(name, _url(name))
    # The gravest first.
    names = sorted(terms, key=lambda term: (term not in strict, term == NOT_STATED))
    return Licence(_AS[0 if of_start else 1] + ", ".join(names), _url(names[0]))


def derives_from_dinov3(licence: Licence) -> bool:
    """Whether the licence of weights has DINOv3's in it, or cannot tell."""
    return DINOV3_LICENCE.name in licence.name


def _url(name: str) -> str:
    """Where a licence is to be read, as far as that is known."""
    return DINOV3_LICENCE.url if DINOV3_LICENCE.name in name else CC_BY.url if name == CC_BY.name else ""


def _once(terms: Iterable[str]) -> list[str]:
    """Each licence in its first spelling: `CC BY 4.0` is `CC-BY-4.0`."""
    found: dict[str, str] = {}
    for term in terms:
        found.setdefault(term.casefold().replace("-", " "), term)
    return list(found.values())
