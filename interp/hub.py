"""What the hub says to a name, in one line, before a library asks it over and over.

    refusal("org/name")         # None: it is there, or in the cache; else why not, and what to do
    asked_in_vain("org/name", error)    # the same, of an error that some library met

A name is asked for once per process, with one request. Where the hub cannot be reached, what the
cache has is used, and nothing later waits for the hub again. Torch-free.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PATIENCE = 5.0
"""Seconds that the hub has to answer."""

_UNREACHED = "the hub cannot be reached"
_OFFLINE = "HF_HUB_OFFLINE is set"
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@cache
def refusal(name: str, revision: str | None = None) -> str | None:
    """Why a model or adapter of this name cannot be had from the hub; None where it can."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            url = hub.hf_hub_url(name, "config.json", revision=revision)
            hub.get_hf_file_metadata(url, timeout=PATIENCE)
    except Exception as error:  # of the hub's client, of its transport
        said = asked_in_vain(name, error, revision)
        if said is None or not said.startswith(_UNREACHED):
            return said
        constants.HF_HUB_OFFLINE = offline = True  # nothing later waits for it again
        if _cached(name):
            logging.getLogger("interp").warning(
                "%s: %s is taken as the cache has it", _UNREACHED, name
            )
    if offline and not _cached(name):
        why = _OFFLINE if any(map(os.environ.get, _SWITCHES)) else _UNREACHED
        return f"{why}, and {name} is neither a folder nor in the cache"
    return None


def hub_fault() -> str | None:
    """Why the hub cannot be asked; None where it answers."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=PATIENCE)
    except httpx.HTTPError as error:
        return f"{_UNREACHED}: {constants.ENDPOINT} ({type(error).__name__})"
    return None


def asked_in_vain(name: str, error: BaseException, revision: str | None = None) -> str | None:
    """What an error of the hub's client, or one that it caused, says of a name; None where the
    repository is there."""
    from huggingface_hub import errors

    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            return f"{name} is gated: ask for access on its page, then log in with `hf auth login`"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"the hub has no {name}: check the spelling, or log in with `hf auth login` if it "
                "is private"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{name} has no revision {revision!r}"
        if isinstance(cause, errors.HFValidationError):
            return f"{name!r} is neither a folder nor a name that the hub can have"
        if isinstance(cause, errors.LocalEntryNotFoundError):
            which = f"revision {revision!r}" if revision else "what is needed"
            return f"the cache does not have {which} of {name}, and the hub is not asked (offline)"
        if isinstance(cause, errors.EntryNotFoundError):
            return None
        if isinstance(cause, errors.HfHubHTTPError):
            return f"the hub answered {cause.response.status_code} to {name}: try again later"
    return f"{_UNREACHED} ({type(error).__name__})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _cached(name: str) -> bool:
    """Whether the cache has anything of a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="model")
    return any((Path(constants.HF_HUB_CACHE) / folder / "snapshots").glob("*/*"))
