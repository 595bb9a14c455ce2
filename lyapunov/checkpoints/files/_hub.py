"""A model of the Hugging Face Hub: from the network, or from the local cache.

Only what is needed is fetched: configuration, one set of weights, tokenizer. Code is
never fetched, and weights are not when the configuration says that they are of no use.
"""

import os
from pathlib import Path
from typing import Any, NoReturn

from ..._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    LyapunovError,
    MissingExtraError,
)
from ..families._architectures import layout_of
from ..quantised._recognise import BESIDE, declared_settings
from ._files import MAX_CONFIG_BYTES, quote, read_json_object
from ._locate import CONFIG, TOKENIZER_FILES, choose_weights, read_weight_map


_TIMEOUT_SECONDS = 10


def fetch(name: str, revision: str | None) -> tuple[Path, str]:
    """Bring a model of the Hub to the local cache.

    **Arguments:**

    - `name`: org/name.
    - `revision`: branch, tag or commit; `None` for the main branch.

    **Returns:** its folder in the cache, and the commit.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants
    except ImportError as e:
        raise MissingExtraError(
            f"no such file or folder: {name}; as a model of the Hugging Face Hub it"
            " needs huggingface_hub, which is not installed",
            hint="pip install 'lyapunov-check[hub]'",
        ) from e
    if constants.HF_HUB_OFFLINE or _truthy("HF_HUB_OFFLINE"):
        return _cached(hub, name, revision, "HF_HUB_OFFLINE is set", "unset it")
    try:
        return _download(hub, name, revision)
    except LyapunovError:
        raise
    except Exception as e:  # httpx or requests, by version; each has errors of its own
        _explain(hub, e, name, revision)
        status = getattr(getattr(e, "response", None), "status_code", None)
        why = f"the Hub answered {status}" if status else "the Hub cannot be reached"
        return _cached(hub, name, revision, why, "connect to the network")


def _truthy(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def _cached(
    hub: Any, name: str, revision: str | None, why: str, remedy: str
) -> tuple[Path, str]:
    which = f"{name}@{quote(revision)}" if revision else name
    try:
        found = hub.try_to_load_from_cache(name, CONFIG, revision=revision)
    except (OSError, ValueError):  # HFValidationError is a ValueError
        found = None
    if not isinstance(found, str):
        command = f"hf download {name}"
        if revision:
            command += f" --revision {quote(revision)}"
        raise CheckpointNotFoundError(
            f"no such path, and no {which} in the Hub's cache: {why}",
            hint=f"{remedy}, or fetch it where there is a network: {command}",
        )
    folder = Path(found).parent
    return folder, folder.name


def _download(hub: Any, name: str, revision: str | None) -> tuple[Path, str]:
    info = hub.HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if CONFIG not in names:
        raise CheckpointNotFoundError(
            f"no {CONFIG} in {name} of the Hub",
            hint="give a model in transformers' or mamba_ssm's layout",
        )

    def get(filename: str) -> Path:
        return Path(hub.hf_hub_download(name, filename, revision=info.sha))

    config = get(CONFIG)
    told = read_json_object(config, MAX_CONFIG_BYTES)
    layout_of(told, name)
    declared_settings(told, {})  # which refuses what is not covered
    weights = choose_weights(names, f"{name} of the Hub")
    path = get(weights)
    if path.suffix == ".json":
        for shard in sorted(set(read_weight_map(path).values())):
            if shard not in names:
                raise CheckpointNotFoundError(
                    f"the index of {name} names {quote(shard)}, which is not there"
                )
            get(shard)
    for filename in (*BESIDE, *TOKENIZER_FILES):
        if filename in names:
            get(filename)
    return config.parent, info.sha


def _explain(hub: Any, e: Exception, name: str, revision: str | None) -> None:
    """Raise what the Hub refused in words; return where it was not reached."""
    errors = hub.errors
    if isinstance(e, errors.GatedRepoError):
        raise CheckpointError(
            f"{name} is gated: its owner grants access on request",
            hint=f"ask at https://huggingface.co/{name}, then: hf auth login",
        ) from e
    if isinstance(e, errors.RevisionNotFoundError):
        raise CheckpointNotFoundError(
            f"no revision {quote(revision)} of {name} on the Hub",
            hint=f"the list stands at https://huggingface.co/{name}/tree/main",
        ) from e
    if isinstance(e, errors.RepositoryNotFoundError):
        _unknown(name, e)
    if isinstance(e, errors.HFValidationError):
        raise CheckpointNotFoundError(
            f"no such path, and not a Hub id: {quote(name)}", hint="give org/name"
        ) from e
    if isinstance(e, errors.LocalEntryNotFoundError | errors.HfHubHTTPError):
        return
    if isinstance(e, OSError) and e.errno is not None and e.filename is not None:
        raise CheckpointError(
            f"cannot write to the Hub's cache: {quote(os.strerror(e.errno))}"
            f" ({quote(e.filename, 200)})",
            hint="free some space there, or set HF_HOME to another folder",
        ) from e


def _unknown(name: str, e: Exception) -> NoReturn:
    raise CheckpointNotFoundError(
        f"no such path, and no model {name} on the Hub that you may read",
        hint="check the spelling; for a private one: hf auth login",
    ) from e
