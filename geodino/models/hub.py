"""Weights from the Hugging Face Hub: what lies in its cache, what may be downloaded, and if not, why and what to type.

Every question goes through the file it is about: a gated repository refuses config.json exactly as it refuses the
weights. The cache is asked first, so a machine without network waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from geodino.errors import ModelError
from geodino.models.catalog import ModelRow, row
from geodino.models.files import weight_files
from geodino.shipped import nano_folder

Status = Literal[
    "here",
    "downloadable",
    "no token",
    "licence not accepted",
    "no network",
    "offline",
    "not found",
    "refused",
    "missing",
]

# How long the Hub may take to answer a question about a file of a kilobyte.
ANSWER_TIMEOUT_S = 4.0

# A Hub repository may also hold the same weights as pickles; they are never downloaded.
WANTED = ("*.json", "*.safetensors")

# What says everything about a model but its weights, in a few kilobytes.
DESCRIPTIONS = ("config.json", "preprocessor_config.json")

# No connection and no answer in time come as bare errors of the HTTP library, which was requests, then httpx, then
# httpx2. The Hub's own errors derive from the same base in each, so we take it from there.
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, _TRANSPORT_ERROR)


@dataclass(frozen=True)
class Access:
    """Whether a model can be run on this machine.

    Attributes
    ----------
    sentence
        The status in words, with the reason.
    command
        What to type to get the weights; empty where nothing is needed.
    """

    status: Status
    sentence: str
    command: str = ""

    @property
    def usable(self) -> bool:
        """Whether the weights are here or can be downloaded now."""
        return self.status in ("here", "downloadable")


def is_whole(folder: Path) -> bool:
    """Whether a folder has its config.json and all its weights."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except ModelError:
        return False


def weights_at_hand(known: ModelRow) -> bool:
    """Whether all weights of the model lie on this machine; asks no network."""
    folder = nano_folder() if known.hub_id is None else cached(known.hub_id)
    return folder is not None and is_whole(folder)


def access(known: ModelRow) -> Access:
    """Whether the model can be had, and if not, why; asks the Hub for one small file, for a few seconds at most."""
    if weights_at_hand(known):
        return Access("here", f"the weights of {known.name} are on this machine")
    if known.hub_id is None:
        return Access(
            "missing",
            f"the weights of {known.name} are not in this installation",
            "pip install --force-reinstall geodino",
        )
    return hub_access(known.hub_id)


def auto_model() -> tuple[str, str]:
    """The name of the model that `auto` stands for, and a sentence that says why and how to get the other."""
    chmv2 = row("chmv2")
    found = access(chmv2)
    if found.status == "here":
        return "chmv2", "model chmv2: its weights are on this machine"
    if found.usable:
        return "chmv2", f"model chmv2: its weights will be downloaded from {chmv2.hub_id}"
    why = f"model nano, a small demonstration model not to be relied on, because {found.sentence}"
    return "nano", f"{why}. For chmv2: {found.command}. To choose nano without asking: --model nano"


def hub_access(hub_id: str) -> Access:
    """Whether a repository of the Hub may be downloaded now."""
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), token=get_token(), timeout=ANSWER_TIMEOUT_S)
    except _HUB_ERRORS as error:
        return explain(hub_id, error)
    return Access("downloadable", f"{hub_id} may be downloaded")


def cached(hub_id: str) -> Path | None:
    """The repository's folder in the local cache of the Hub, whole or not; None where there is none."""
    try:
        return Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=list(WANTED)))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{hub_id} is not a name on the Hugging Face Hub: {error}") from error


def fetch(hub_id: str, wanted: tuple[str, ...] = WANTED) -> Path:
    """The repository's folder, whole from the cache or with the wanted files downloaded.

    Raises
    ------
    ModelError
        With the reason and the next command, if it is not in the cache and may not be downloaded.
    """
    folder = cached(hub_id)
    if folder is not None and is_whole(folder):
        return folder
    found = hub_access(hub_id)
    if not found.usable:
        raise refusal(found)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(wanted)))
    except _HUB_ERRORS as error:
        raise refusal(explain(hub_id, error)) from error


def refusal(found: Access) -> ModelError:
    """The error that says what `access` found."""
    return ModelError(f"{found.sentence}; {found.command}" if found.command else found.sentence)


def explain(hub_id: str, error: Exception) -> Access:
    """What an error of huggingface_hub means for whoever wants the weights."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    match error:
        case GatedRepoError() if get_token() is None:
            return Access(
                "no token",
                f"{hub_id} is gated and no Hugging Face token was found",
                f"accept the licence at {page}, then run: hf auth login",
            )
        case GatedRepoError():
            return Access(
                "licence not accepted",
                f"{hub_id} is gated and your Hugging Face account has no access to it",
                f"accept the licence at {page} and wait until access is granted, then check: hf auth whoami",
            )
        case RepositoryNotFoundError():
            return Access(
                "not found",
                f"{hub_id} is not on the Hugging Face Hub, or is private, or your token is not valid",
                "check the name, then: hf auth whoami",
            )
        case OfflineModeIsEnabled():
            return Access(
                "offline",
                f"{hub_id} is not in the local cache and HF_HUB_OFFLINE forbids to download it",
                f"where there is a network, run: hf download {hub_id}",
            )
        case HfHubHTTPError() | HFValidationError():
            return Access(
                "refused", f"the Hugging Face Hub refused {hub_id}: {str(error).splitlines()[0]}", "hf auth whoami"
            )
        case _:
            return Access(
                "no network",
                f"{hub_id} is not in the local cache and {constants.ENDPOINT} cannot be reached",
                f"check the network and HTTPS_PROXY; or where there is one, run: hf download {hub_id}",
            )
