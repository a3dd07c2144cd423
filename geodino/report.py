"""Tables and sheets of the models, for the terminal."""

from __future__ import annotations

import json

from geodino.models.catalog import row, rows
from geodino.models.hub import access
from geodino.models.loading import facts_of, is_at_hand


def models_table(*, as_json: bool) -> str:
    """Every model of the catalog: name, parameters, what it predicts, window, licence."""
    entries = [
        {
            "name": entry.name,
            "parameters": entry.parameters,
            "heads": list(entry.heads),
            "window_px": entry.tiling.size,
            "overlap_px": entry.tiling.overlap,
            "gated": entry.gated,
            "licence": entry.licence.name,
            "title": entry.title,
        }
        for entry in rows()
    ]
    if as_json:
        return json.dumps(entries, indent=2)
    header = ("name", "size", "predicts", "window", "access", "what it is")
    lines = [header] + [
        (
            entry.name,
            _millions(entry.parameters),
            ", ".join(entry.heads) or "features",
            f"{entry.tiling.size}/{entry.tiling.overlap} px",
            "licence to accept" if entry.gated else "embedded",
            entry.title,
        )
        for entry in rows()
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def model_sheet(name: str) -> str:
    """All facts of one model, a line each."""
    entry = row(name)
    facts = {
        "name": entry.name,
        "what it is": entry.title,
        "predicts": ", ".join(entry.heads) or "features; train a head on them",
        "parameters": _millions(entry.parameters),
        "trained at": f"{entry.gsd_m} m a pixel" if entry.gsd_m else "photographs, no ground size",
        "window": f"{entry.tiling.size} px, overlap {entry.tiling.overlap} px, margin {entry.tiling.margin} px",
        "mean": ", ".join(f"{value:g}" for value in entry.mean),
        "std": ", ".join(f"{value:g}" for value in entry.std),
        "hub": entry.hub_id or "none: inside the package",
        "official files": ", ".join(entry.official) or "none",
        "licence": f"{entry.licence.name}, {entry.licence.url}",
        "demonstration": "yes: its figures are not to be relied on" if entry.demonstration else "no",
        "citation": entry.citation,
    }
    width = max(len(key) for key in facts)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in facts.items())


def model_access(name: str) -> tuple[bool, str]:
    """Whether a model, by name, hub id or folder, can be had here, and a sentence with what to type next.

    Raises
    ------
    ModelError
        A hub id or folder that cannot be used, and why.
    """
    if name not in {known.name for known in rows()}:
        facts = facts_of(name)
        here = "its weights are on this machine" if is_at_hand(name) else "it may be downloaded"
        return True, f"{name}: {here}; {facts.title}"
    entry = access(row(name))
    return entry.usable, f"{name}: {entry.sentence}" + (f"\n{entry.command}" if entry.command else "")


def _millions(parameters: int) -> str:
    if not parameters:
        return "?"
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"
