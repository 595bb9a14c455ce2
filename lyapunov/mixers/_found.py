"""State-space blocks inside any torch module, known by their tensors."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from .._arguments import shown
from .._errors import ArgumentError, UsageError
from ..checkpoints.files._files import quote
from ._kind import MissingOptionError, MixerKind, NotOfKindError
from ._kinds import KINDS
from ._mixer import Mixer, Options, as_array, given_options, read_option
from ._of_transformers import described, with_multipliers


REGISTER = (
    "register a class of your own: lyapunov.watch(module, mixers={Class: describe}), "
    "where describe(block) returns lyapunov.mixer(kind, weights, **options)"
)

Describe = Callable[[Any], Mixer]
Mixers = Mapping[Any, Describe | None]


class FoundMixer(NamedTuple):
    """One block in a network."""

    name: str
    """Of the module, as `named_modules` has it."""
    module: Any
    kind: str
    describe: Callable[[], tuple[Mixer, ...]]
    """What the block may be, with its weights as they are now: several where neither
    tensors nor attributes say which, and its output has to tell."""


def find_mixers(
    module: Any,
    mixers: Mixers | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    needed: bool = True,
) -> list[FoundMixer]:
    """Find every state-space block of a torch module.

    **Arguments:**

    - `module`: any `torch.nn.Module`.
    - `mixers`: of a class, or of a module's name, what makes a `Mixer` of the module;
      these come first. None: the module is no block, whatever its tensors look like.
    - `options`: what neither tensors nor attributes say, for all blocks.
    - `needed`: whether there has to be one.

    **Raises:** `UsageError` for what is no such module, is compiled, quantised, spread
    or without values, and where there is no block: then it lists what comes nearest.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"watch was given {quote(type(module).__name__)}, no torch module",
            hint="a torch.nn.Module; arrays of another library: lyapunov.mixer",
        )
    if hasattr(module, "_orig_mod"):
        raise UsageError(
            "a compiled module runs past the hooks that look at its blocks",
            hint="give the module as it was before torch.compile (module._orig_mod)",
        )
    own = _registered(mixers or {})
    found: list[FoundMixer] = []
    inside: list[str] = []
    for name, one in module.named_modules():
        if any(name.startswith(f"{outer}.") or outer == "" for outer in inside):
            continue
        if any(_matches(key, name, one) for key, made in own.items() if made is None):
            continue
        mixer = (
            _as_registered(name, one, own)
            or _by_class(name, one)
            or _by_tensors(name, one, options or {})
        )
        if mixer is not None:
            found.append(mixer)
            inside.append(name)
    modules = list(module.named_modules())
    unused = [key for key in own if not any(_matches(key, *one) for one in modules)]
    if unused:
        raise UsageError(
            f"no module is {shown(getattr(unused[0], '__name__', unused[0]))}",
            hint="a class of the network, or a name of `module.named_modules()`",
        )
    if needed and not found:
        raise UsageError(
            f"{quote(type(module).__name__)} has no state-space block that is known; "
            f"{_nearest(module)}",
            hint=REGISTER,
        )
    return found


def _registered(mixers: Mixers) -> Mixers:
    for key, describe in mixers.items():
        sound = describe is None or callable(describe)
        if not isinstance(key, type | str) or not sound:
            raise ArgumentError(
                f"mixers has {shown(key)}: {shown(describe)}", hint=REGISTER
            )
    return mixers


def _matches(key: Any, name: str, module: Any) -> bool:
    return name == key if isinstance(key, str) else isinstance(module, key)


def _as_registered(name: str, module: Any, mixers: Mixers) -> FoundMixer | None:
    """The block as somebody describes it."""
    for key, describe in mixers.items():
        if describe is not None and _matches(key, name, module):
            made = describe(module)
            if not isinstance(made, Mixer):
                raise ArgumentError(
                    f"{shown(describe)} gave {shown(made)} for {quote(name)}",
                    hint=REGISTER,
                )
            again = functools.partial(_described, describe, module)
            return FoundMixer(name, module, made.kind, again)
    return None


def _described(describe: Describe, module: Any) -> tuple[Mixer, ...]:
    return (describe(module),)


def _by_class(name: str, module: Any) -> FoundMixer | None:
    """The block that a class of transformers is."""
    told = described(module)
    if told is None:
        return None
    sizes, parts = told
    used = {n for part in parts.values() for n in part.names}
    tensors = {n: t for n, t in module.state_dict().items() if n in used}
    _refuse_without_values(name, module, tensors)

    def describe() -> tuple[Mixer, ...]:
        state = module.state_dict()
        stored = lambda n: as_array(n, state[n])
        return (Mixer(sizes, {key: p.read(stored) for key, p in parts.items()}),)

    return FoundMixer(name, module, sizes.kind, describe)


def _by_tensors(
    name: str, module: Any, options: Mapping[str, Any]
) -> FoundMixer | None:
    """The block that a module's tensors are those of; None: none."""
    for known in KINDS.values():
        tensors = dict(_tensors(module, known))
        if all(one in tensors for one in known.needed):
            _refuse_without_values(name, module, tensors)
            where = f"{quote(name or type(module).__name__)}"
            try:
                sizes = tuple(
                    with_multipliers(one, module)
                    for one in _sizes(module, known, tensors, options)
                )
            except NotOfKindError as error:
                raise UsageError(
                    f"{where} has the tensors of a {known.title} block, and is none: "
                    f"{error.message}",
                    hint=REGISTER,
                ) from None
            except MissingOptionError as error:
                raise UsageError(
                    f"{where}: {error.message}",
                    hint=f"lyapunov.watch(module, options={{{error.names[0]!r}: ...}})",
                ) from None

            def describe(known=known, sizes=sizes) -> tuple[Mixer, ...]:
                now = dict(_tensors(module, known))
                arrays = {one: _canonical(one, t) for one, t in now.items()}
                return tuple(Mixer(size, arrays) for size in sizes)

            return FoundMixer(name, module, known.kind, describe)
    return None


def _tensors(module: Any, known: MixerKind) -> Iterator[tuple[str, Any]]:
    """The module's tensors by canonical name."""
    for canonical, names in known.stored.items():
        for stored in names:
            tensor = _attribute(module, stored)
            if _transient(module, stored):
                continue
            if hasattr(tensor, "dtype") and hasattr(tensor, "shape"):
                yield canonical, tensor
                break


def _transient(module: Any, path: str) -> bool:
    """Whether a buffer is no part of the module's state, as the ones of a norm without
    weights are not."""
    parent, _, leaf = path.rpartition(".")
    owner = _attribute(module, parent) if parent else module
    return leaf in getattr(owner, "_non_persistent_buffers_set", ())


def _attribute(module: Any, path: str) -> Any:
    """What lies under a dotted path; None for nothing."""
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def shape_of(canonical: str, tensor: Any) -> tuple[int, ...]:
    """A tensor's shape, without the axis of length 1 that torch's convolutions have."""
    shape = tuple(tensor.shape)
    middle = canonical == "conv_weight" and len(shape) == 3 and shape[1] == 1
    return (shape[0], shape[2]) if middle else shape


def _canonical(canonical: str, tensor: Any) -> Any:
    array = as_array(canonical, tensor)
    return array.reshape(shape_of(canonical, tensor))


def _sizes(
    module: Any,
    known: MixerKind,
    tensors: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[Any]:
    """Every sizes that the tensors, the attributes and the options leave."""
    shapes = {name: shape_of(name, tensor) for name, tensor in tensors.items()}
    said = _said(module, known)
    mine = {name: value for name, value in options.items() if name in known.options}
    strangers = [n for n in options if not any(n in k.options for k in KINDS.values())]
    if strangers:
        given_options(known, dict.fromkeys(strangers))  # which says so
    said |= given_options(known, mine)
    if (group := _attribute(module, "norm.group_size")) and "norm_groups" not in said:
        said["norm_groups"] = max(1, tensors["out_proj"].shape[1] // int(group))
    yield from branches(known, shapes, said)


def branches(
    known: MixerKind, shapes: Mapping[str, tuple[int, ...]], said: dict[str, Any]
) -> Iterator[Any]:
    """Every sizes that are left where an output tells what nobody said."""
    try:
        sizes = known.sizes(shapes, Options(known, said))
    except MissingOptionError as error:
        (name,) = error.names
        tried = known.options[name].tried
        if not tried:
            raise
        values = [said.get(v, v) if isinstance(v, str) else v for v in tried]
        for value in dict.fromkeys(values):
            yield from branches(known, shapes, said | {name: value})
        return
    yield sizes


def _said(module: Any, known: MixerKind) -> dict[str, Any]:
    """Options that the module's attributes say."""
    found = {}
    for name, option in known.options.items():
        for path in option.attributes:
            value = _attribute(module, path)
            if value is not None:
                found[name] = read_option(known, name, value)
                break
    return found


def _refuse_without_values(name: str, module: Any, tensors: Mapping[str, Any]) -> None:
    """Refuse weights that are not there as they are."""
    where = quote(name or type(module).__name__)
    for canonical, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UsageError(
                f"{canonical} of {where} is of {tensor.dtype}: a quantised module",
                hint="watch the module that it was quantised from, or --quantise-"
                "activations and --round-weights of a checkpoint",
            )
        if tensor.device.type == "meta":
            raise UsageError(
                f"{canonical} of {where} has no values (meta device)",
                hint="load the weights onto a device first, without offloading",
            )
        if hasattr(tensor, "full_tensor") or (
            tensor.numel() == 0 and hasattr(tensor, "ds_shape")
        ):
            raise UsageError(
                f"{canonical} of {where} is spread over processes",
                hint="gather its parameters first, or watch the module before it is "
                "wrapped",
            )


def _nearest(module: Any) -> str:
    """The modules that have most of what some kind needs, in words."""
    found: list[tuple[float, str]] = []
    for (name, one), known in itertools.product(
        list(module.named_modules()), KINDS.values()
    ):
        tensors = dict(_tensors(one, known))
        missing = [need for need in known.needed if need not in tensors]
        share = 1 - len(missing) / len(known.needed)
        if share >= 0.25:
            told = f"{type(one).__name__} ({name or 'the module itself'}) "
            told += f"comes near {known.title} and lacks {', '.join(missing)}"
            found.append((share, told))
    found.sort(key=lambda pair: -pair[0])
    if not found:
        return "no module of it has any tensor of one"
    return "; ".join(told for _, told in found[:3])
