"""Which files a model in GGUF is made of."""

import re
from pathlib import Path

from ..._errors import CheckpointNotFoundError
from ..files._files import listing, quote


_SHARD = re.compile(r"(?P<stem>.+)-(?P<at>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)


def shards_of(path: Path, names: list[str]) -> tuple[Path, ...]:
    """List the files of the model that one file is of, in order.

    **Arguments:**

    - `names`: what lies in its folder.

    **Raises:** `CheckpointNotFoundError` where some are not there.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    wanted = [
        f"{match['stem']}-{i + 1:05}-of-{match['count']}.gguf"
        for i in range(min(count, 100_000))
    ]
    missing = sorted(set(wanted) - set(names))
    if missing or not 1 <= int(match["at"]) <= count:
        raise CheckpointNotFoundError(
            f"{quote(path, 200)} is one of {count} files, of which"
            f" {len(missing)} are not beside it: {listing(missing)}",
            hint="download all of them into one folder",
        )
    return tuple(path.parent / name for name in wanted)


def models_among(names: list[str]) -> list[str]:
    """List the models among the files of a folder, each by its first file."""
    found = []
    for name in names:
        if name.endswith(".gguf"):
            match = _SHARD.fullmatch(name)
            if match is None or int(match["at"]) == 1:
                found.append(name)
    return found
