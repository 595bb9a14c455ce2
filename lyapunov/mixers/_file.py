"""State-space blocks in a file of weights, told by names and shapes of its tensors."""

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._arguments import shown
from .._errors import (
    ArgumentError,
    CheckpointError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    UsageError,
)
from ..checkpoints.files._file_formats import check_kind
from ..checkpoints.files._files import human_bytes, listing, quote
from ..checkpoints.files._safetensors import read_header
from ..checkpoints.files._tensors import WEIGHT_DTYPES, StoredTensor, physical_memory
from ..checkpoints.files._torch_zip import SAVE_STATE, read_weight_sets
from ._found import branches, shape_of
from ._kind import MissingOptionError, MixerKind, NotOfKindError
from ._kinds import KINDS
from ._mixer import Mixer, Options, as_array, given_options


SIZES = ("d_model", "d_inner", "d_state", "heads", "groups", "d_conv", "dt_rank")
SIZES += ("rank", "angles")
"""What is told of a block's sizes, where its kind has them."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
OTHERS, UNUSED = "others", "unused"
OTHERS_MEANING = (
    "the block has tensors that its kind has not; unused: they do nothing in it"
)

Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """Hold where one block lies in a file, and what its tensors say of it.

    **Arguments:**

    - `weight_set`: the keys that lead to its dictionary, with dots between; empty for
      the outermost one, and in a safetensors file.
    - `name`: what stands before the names of its tensors; empty where nothing does.
    - `tensors`: by canonical name.
    - `others`: names of tensors beneath it that its kind has not.
    """

    path: Path
    weight_set: str
    name: str
    known: MixerKind = field(repr=False)
    tensors: Tensors = field(repr=False)
    others: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Name of its kind, such as `mamba1`."""
        return self.known.kind

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.name or "the file itself"

    @property
    def n_params(self) -> int:
        """Count its weights."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Types that its weights are stored in, the most frequent first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape_of(name, one) for name, one in self.tensors.items()}

    @functools.cached_property
    def _trials(self) -> tuple[list[Any], set[str], list[int]]:
        """Sizes under every number of groups that goes, what was asked for on the way,
        and those numbers."""
        heads = 1
        if "groups" in self.known.options:
            heads = max(1, *self._shapes["D"][:1], 1)
        sizes, asked, groups = [], set[str](), []
        wrong: NotOfKindError | None = None
        for number in range(1, heads + 1):
            if heads % number:
                continue
            try:
                one, names = _trial(self.known, self._shapes, number)
            except NotOfKindError as error:
                wrong = wrong or error
                continue
            sizes.append(one)
            asked |= names
            groups.append(number)
        if wrong is not None and not sizes:
            raise CorruptCheckpointError(
                f"{quote(self.title)} in {quote(self.path, 200)} has the tensors of a "
                f"{self.known.title} block, and is none: {wrong.message}",
                hint="a block of another kind is described in Python: lyapunov.mixer",
            ) from None
        return sizes, asked, groups

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes that follow from the shapes alone, by name.

        **Raises:** `CorruptCheckpointError` where the shapes do not fit each other.
        """
        trials = self._trials[0]
        found = {}
        for name in SIZES:
            values = {getattr(one, name, None) for one in trials}
            value = values.pop()
            told = name != "heads" or "groups" in self.known.options
            if not values and value is not None and told:
                found[name] = value
        return found

    @property
    def said(self) -> dict[str, Any]:
        """Options that the shapes say after all: groups, where one number goes."""
        _, asked, groups = self._trials
        return {"groups": groups[0]} if "groups" in asked and len(groups) == 1 else {}

    @property
    def open(self) -> dict[str, str]:
        """Options that its tensors leave open, by name, with what each means."""
        asked = self._trials[1] - set(self.said)
        found = {
            name: option.meaning
            for name, option in self.known.options.items()
            if name in asked
        }
        if "groups" in found:
            fitting = ", ".join(map(str, self._trials[2]))
            found["groups"] += f"; {fitting} fit the shapes"
        if self.others:
            found[OTHERS] = f"{OTHERS_MEANING} ({listing(self.others)})"
        return found

    def mixers(
        self, options: Mapping[str, Any], *, output_tells: bool = False
    ) -> tuple[Mixer, ...]:
        """Read the weights, and say what the block may be.

        **Arguments:**

        - `options`: what the tensors leave open, by name; those of other kinds are
          passed over.
        - `output_tells`: an output is there to be held against, which tells what a
          live module's would. Else somebody has to say everything.

        **Raises:** `MissingOptionError`; `ArgumentError` for a value out of range, and
        `CheckpointError` for weights that are quantised, not finite or too many.
        """
        mine = {name: v for name, v in options.items() if name in self.known.options}
        said = given_options(self.known, mine) | self.said
        if self.others and not output_tells and options.get(OTHERS) != UNUSED:
            raise MissingOptionError(
                f"{quote(self.title)} has tensors that no {self.known.title} block "
                f"has: {listing(self.others)}",
                names=(OTHERS,),
                hint=f"{OTHERS}={UNUSED} where they do nothing in it; else it is "
                "another function, which is not covered",
            )
        try:
            if output_tells:
                sizes = list(branches(self.known, self._shapes, said))
            else:
                sizes = [self.known.sizes(self._shapes, Options(self.known, said))]
        except NotOfKindError as error:
            raise ArgumentError(
                f"{quote(self.title)}: {error.message}",
                hint="another value of groups, or of norm_groups",
            ) from None
        arrays = self._arrays()
        return tuple(Mixer(one, arrays) for one in sizes)

    def _arrays(self) -> dict[str, Any]:
        """The weights by canonical name, in their own types."""
        for tensor in self.tensors.values():
            if tensor.dtype not in WEIGHT_DTYPES:
                raise UnsupportedCheckpointError(
                    f"{quote(self.title)} is stored as {tensor.dtype}: quantised "
                    "weights, whose scales are elsewhere",
                    hint="give the weights that they were quantised from",
                )
        if self.n_params * 8 > physical_memory():
            raise CheckpointError(
                f"the weights of {quote(self.title)} take "
                f"{human_bytes(self.n_params * 8)} in fp64, more than this machine has",
                hint="run it on a machine with more memory",
            )
        found = {}
        for name, tensor in self.tensors.items():
            try:
                found[name] = as_array(name, tensor.read())
            except ArgumentError:
                raise CorruptCheckpointError(
                    f"{name} of {quote(self.title)} in {quote(self.path, 200)} is not "
                    "finite",
                    hint="an earlier checkpoint of the run",
                ) from None
            found[name] = found[name].reshape(self._shapes[name])
        return found


def _trial(
    known: MixerKind, shapes: Mapping[str, tuple[int, ...]], groups: int
) -> tuple[Any, set[str]]:
    """Sizes with stand-ins for what is asked for, and the names of that.

    The stand-ins only lead on to the next question; nothing is computed with them.
    """
    said: dict[str, Any] = {}
    while True:
        try:
            return known.sizes(shapes, Options(known, said)), set(said)
        except MissingOptionError as error:
            (name,) = error.names
            said[name] = groups if name == "groups" else _stand_in(known, name)


def _stand_in(known: MixerKind, name: str) -> Any:
    option = known.options[name]
    for value in (*option.tried, 1, 0.5):
        try:
            return option.read(value)
        except (TypeError, ValueError):
            continue
    raise AssertionError(f"no stand-in for {name}")


def blocks_of_file(path: str | os.PathLike) -> list[StoredBlock]:
    """Find every state-space block in a file of weights, without a configuration.

    Headers alone are read, and nothing in the file is run: names and shapes tell what a
    block is (`KINDS`). Dictionaries in the file (`state_dict`, `model`, `ema`) are
    looked through, and each is a weight set of its own.

    **Arguments:**

    - `path`: a `.safetensors`, or what `torch.save` wrote (1.6 on), whatever its name.

    **Returns:** the blocks, set by set, in the order of the file.

    **Raises:** `CheckpointError` for a file that cannot be read or would run code,
    `UsageError` where it has no block: then it lists what comes nearest.
    """
    path = Path(path).expanduser()
    sets = _weight_sets(path)
    found = [
        one for name, tensors in sets.items() for one in _blocks(path, name, tensors)
    ]
    if not found:
        raise UsageError(
            f"{quote(path, 200)} has no state-space block that is known; "
            f"{_nearest(sets)}",
            hint="blocks of other classes are described in Python: lyapunov.mixer, "
            "lyapunov.watch",
        )
    return found


def _weight_sets(path: Path) -> dict[str, dict[str, StoredTensor]]:
    if check_kind(path) == "safetensors":
        return {"": read_header(path)[0]}
    try:
        return read_weight_sets(path)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            error.message,
            hint=f"a pickled module or settings; where it was made, {SAVE_STATE}",
        ) from None


def _blocks(path: Path, weight_set: str, tensors: Tensors) -> list[StoredBlock]:
    """The blocks of one dictionary, in order of their first tensors."""
    wraps = lambda w: all(name.startswith(w) for name in tensors)
    wrapped = next((w for w in WRAPPERS if wraps(w)), "")
    if wrapped and tensors:
        bare = {name.removeprefix(wrapped): one for name, one in tensors.items()}
        return _blocks(path, weight_set, bare)
    found: dict[str, StoredBlock] = {}
    for prefix, known, own in _candidates(tensors):
        if any(name not in own for name in known.needed):
            continue
        if (before := found.get(prefix)) is not None:
            raise UsageError(
                f"{quote(prefix or 'the file itself')} has the tensors of a "
                f"{before.known.title} block and of a {known.title} block",
                hint="describe it in Python: lyapunov.mixer",
            )
        used = {id(tensor) for tensor in own.values()}
        others = tuple(
            name.removeprefix(prefix)
            for name, one in tensors.items()
            if name.startswith(prefix) and id(one) not in used
        )
        found[prefix] = StoredBlock(
            path, weight_set, prefix.removesuffix("."), known, own, others
        )
    if "" in found and len(found) > 1:  # a network is no block of its blocks
        found.pop("")
    place = {id(tensor): i for i, tensor in enumerate(tensors.values())}
    first = lambda one: min(place[id(tensor)] for tensor in one.tensors.values())
    return sorted(found.values(), key=first)


def _candidates(tensors: Tensors) -> Iterator[tuple[str, MixerKind, Tensors]]:
    """Every prefix with the tensors behind it that a kind knows, by canonical name."""
    for known in KINDS.values():
        by_prefix: dict[str, dict[str, StoredTensor]] = {}
        for canonical, names in known.stored.items():
            for stored in names:
                for name, tensor in tensors.items():
                    if name == stored or name.endswith(f".{stored}"):
                        prefix = name.removesuffix(stored)
                        by_prefix.setdefault(prefix, {}).setdefault(canonical, tensor)
        for prefix, own in by_prefix.items():
            yield prefix, known, own


def _nearest(sets: Mapping[str, Tensors]) -> str:
    """What has most of what some kind needs, in words."""
    found: list[tuple[float, str]] = []
    for tensors in sets.values():
        for prefix, known, own in _candidates(tensors):
            missing = [need for need in known.needed if need not in own]
            share = 1 - len(missing) / len(known.needed)
            if share >= 0.25:
                told = f"{quote(prefix.removesuffix('.') or 'the file itself')} comes "
                told += f"near {known.title} and lacks {', '.join(missing)}"
                found.append((share, told))
    found.sort(key=lambda pair: -pair[0])
    if not found:
        names = [name for tensors in sets.values() for name in tensors]
        return f"none of its {len(names)} tensors is one's ({listing(names)})"
    return "; ".join(told for _, told in found[:3])


def chosen_set(blocks: list[StoredBlock], weight_set: str | None) -> list[StoredBlock]:
    """The blocks of one set of weights.

    **Raises:** `UsageError` where there are several and none was named, or another.
    """
    names = list(dict.fromkeys(one.weight_set for one in blocks))
    if weight_set is None and len(names) == 1:
        return blocks
    told = ", ".join(name or "''" for name in names)
    if weight_set is None:
        raise UsageError(
            f"{quote(blocks[0].path, 200)} has blocks in {len(names)} sets of weights: "
            f"{told}",
            hint=f"choose one: --weight-set {names[0] or repr('')} "
            f"(weight_set={names[0]!r})",
        )
    if weight_set not in names:
        raise UsageError(
            f"no set of weights with blocks is {shown(weight_set)}",
            hint=f"one of {told}",
        )
    return [one for one in blocks if one.weight_set == weight_set]
