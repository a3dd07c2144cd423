"""Hooks that sign an href just before it is opened, by the name that a source config gives them."""

from __future__ import annotations

from collections.abc import Callable

from geodino.errors import ConfigError, ReadError
from geodino.redaction import without_secrets
from geodino.shipped import nearest


def _planetary_computer(href: str, again: bool) -> str:
    # Late, because the package reads settings files when imported and only this source needs it.
    import planetary_computer
    from planetary_computer.sas import TOKEN_CACHE

    # Tokens last under an hour; the package keeps them and fetches a new one in time, by this machine's clock.
    if again:
        TOKEN_CACHE.clear()
    signed_href: str = planetary_computer.sign_url(href)
    return signed_href


# Each takes an href and whether a signature of a moment ago was refused.
SIGNERS: dict[str, Callable[[str, bool], str]] = {"planetary-computer": _planetary_computer}


def signed(href: str, sign: str | None, *, again: bool = False) -> str:
    """The href to open: as it is where `sign` is None, else through the hook of that name.

    Parameters
    ----------
    again
        The server refused what was signed before, so nothing kept may be used.

    Raises
    ------
    ConfigError
        No hook of that name.
    ReadError
        The signing service cannot be reached or refuses.
    """
    if sign is None:
        return href
    if sign not in SIGNERS:
        raise ConfigError(f"no signing hook named {sign}" + nearest(sign, sorted(SIGNERS)))
    try:
        return SIGNERS[sign](href, again)
    except (OSError, KeyError, TypeError, ValueError) as error:
        # What requests raises is an OSError, and what pydantic raises for an answer that is no token a ValueError.
        said = " ".join(str(error).split())
        raise ReadError(without_secrets(f"{href} cannot be signed by {sign}: {said}")) from error
