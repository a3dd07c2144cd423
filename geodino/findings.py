"""What a look at something found, line by line, each with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, or what to do about it in `advice`."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything looked at."""

    all: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is amiss."""
        return all(found.ok for found in self.all)

    def as_dict(self) -> dict[str, dict[str, object]]:
        return {found.name: {"value": found.value, "ok": found.ok, "advice": found.advice} for found in self.all}

    def as_text(self) -> str:
        width = max(len(found.name) for found in self.all)
        lines = []
        for found in self.all:
            lines.append(f"{'ok ' if found.ok else '-> '} {found.name:<{width}}  {found.value}")
            if found.advice:
                lines.append(f"    {'':<{width}}  {found.advice}")
        return "\n".join(lines)
