"""transformers' own code for networks of any family, watched from outside.

The model is loaded from its checkpoint as transformers loads it and runs unchanged;
hooks on its modules, found by the stored names of their weights, copy what goes in and
out. A sublayer reads what its norm reads: the stream, with whatever the model added to
it before.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._errors import UsageError
from ...models import Model, Sublayer
from ...sublayers.config import plain_mamba1
from ...sublayers.residual import Stream
from .. import Execution
from .._implementation import RefusedError
from .._segment import Segment
from .._torch import copied, torch_dtype
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant
from ._backend import refuse_other_backend
from ._built import from_folder, from_weights, parts_of
from ._calls import called, compiled_by_torch, of_no_token
from ._watched import WATCHED
from .ways import planned
from .xlstm import refuse_chunks


_LAYER = re.compile(r"layers\.\d+\.")

# Norms without weights (OLMo), by a parameter of the module behind them.
WEIGHTLESS = {"q_proj": "input_layernorm", "down": "post_attention_layernorm"}

# Names in files, and in networks, as transformers' conversion_mapping.py has them.
RENAMED = (
    (r"^model\.language_model\.", "model."),
    (r"\.attention\.", ".self_attn."),
    (r"\.dense$", ".o_proj"),
    (r"\.block_sparse_moe\b", ".mlp"),
    (r"\.linear_attn\.out_norm$", ".linear_attn.norm"),
    (r"\.attention_layer_norm$", ".input_layernorm"),
    (r"\.feedforward_layer_norm$", ".post_attention_layernorm"),
)

# Ways in which blocks do not begin with the text, or later calls go token by token.
BLOCKS_MOVED = ("chunks", "padded_left")

# Where a sublayer has no norm in front, these read the stream.
FIRST = ("norm", "q_proj", "up", "in_proj", "block")


Calls = dict[tuple[str, str], list[Any]]
"""What each call showed: by the path of a module and the side of it, or by a kind and
a site within its kernels."""

Inside = Callable[[Execution, Calls], AbstractContextManager[None]]


def nothing_inside(execution: Execution, calls: Calls) -> AbstractContextManager[None]:
    """Copy nothing: modules are all that is seen."""
    del execution, calls
    return nullcontext()


class TransformersNetwork:
    """Run a network with transformers' classes: a checkpoint of its own layout as it
    loads it, one of nothing but plain Mamba-1 built of its weights.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights.
    - `device`: a torch device.
    - `inside`: copies what the kernels within a module store, while it is open.

    Attention and experts run in the code that is written out in the model ("eager"),
    since fused kernels differ from one machine to the next.
    """

    def __init__(
        self,
        execution: Execution,
        device: str = "cpu",
        inside: Inside = nothing_inside,
    ):
        self.execution = execution
        self._device = device
        self._inside = inside
        self._network: tuple[Any, Any] | None = None

    @traced_in_fp64
    def trace(
        self,
        model: Model,
        tokens,
        variant: Variant | None = None,
        segments: Sequence[Segment] = (),
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        Steps go through all layers at each token, so the records of a text come when it
        is through. The network is built for the first text and kept.

        **Arguments:** as for `Runner.trace`; ways with padding or a batch run the first
        sequence.

        **Raises:** `UsageError` for a checkpoint that transformers does not read, or a
        sublayer whose output no module puts out; `RefusedError` where the network
        itself raises.
        """
        execution = segments[0].execution if segments else self.execution
        variant = variant or execution.variant
        moved = variant.kind in BLOCKS_MOVED
        if moved and any(one.kind == "lightning" for one in model.sublayers):
            raise RefusedError(
                f"{variant}: lightning attention in transformers cuts its blocks "
                "otherwise than a whole text does, which nothing here declares",
                hint="--variants whole,steps",
            )
        torch, network = self.network(model)
        modules = dict(network.named_modules())
        calls: Calls = {}
        parts = parts_of(model)
        with ExitStack() as stack, torch.no_grad():
            fronts = [sizes.norm_front for sizes in model.config.sublayers]
            places = [_places(*one, modules) for one in zip(parts, fronts, strict=True)]
            _with_streams(places, modules)
            for path in sorted(_looked_at(model, places)):
                for handle in _watch(path, modules[path], calls):
                    stack.callback(handle.remove)
            stack.enter_context(self._inside(execution, calls))
            tokens = np.asarray(tokens)
            plan, cache = planned(tokens, variant), None
            refuse_chunks(model.config.sublayers, network, plan)
            if variant.kind == "steps":
                cache = of_no_token(torch, network, tokens)
            elif variant.kind == "compiled":
                network = compiled_by_torch(torch, network)
                # what a compiler says of the library's code is not the user's
                stack.enter_context(warnings.catch_warnings(action="ignore"))
            logits = called(torch, network, plan, calls, cache)
        seen = {key: iter(found) for key, found in calls.items()}
        stream: Stream | None = None
        taken: dict[tuple[str, str], np.ndarray] = {}
        for layer in model.sublayers:
            own = places[layer.layer]
            taken = _calls(own, seen, taken)
            of_layer = execution, model, layer, parts[layer.layer], own
            inside = {s: next(x) for (k, s), x in seen.items() if k == layer.kind}
            record, stream = _record(torch, *of_layer, taken, stream, inside)
            yield record
            if not layer.shares:
                taken = {}
        assert stream is not None
        yield HeadRecord(
            stream.residual,
            stream.hidden,
            lambda start, stop: jnp.asarray(copied(logits[..., start:stop])),
        )

    def network(self, model: Model) -> tuple[Any, Any]:
        """torch, and the network, which is built at the first call.

        **Raises:** as `built`.
        """
        if self._network is None:
            self._network = self.built(model)
        return self._network

    def built(self, model: Model) -> tuple[Any, Any]:
        """torch, and the network.

        **Raises:** `UsageError` for a checkpoint that transformers does not read.
        """
        make = from_folder if plain_mamba1(model.config) is None else from_weights
        torch, network = make(model, self.execution.precision, self._device)
        wanted = "fla" if self.execution.implementation == "fla" else "torch"
        refuse_other_backend(network, wanted)
        return torch, network


def _record(
    torch,
    execution: Execution,
    model: Model,
    layer: Sublayer,
    parts,
    places: dict[str, str],
    taken: dict[tuple[str, str], np.ndarray],
    stream: Stream | None,
    inside: dict[str, np.ndarray],
) -> tuple[SublayerRecord, Stream]:
    """What one sublayer did, and the stream for the next.

    What it read is held to the sum of what was put out before it, so that what
    joins the residual is seen as well.
    """

    def at(key: str, side: str) -> np.ndarray | None:
        array = taken.get((places.get(key, ""), side))
        take = parts[key].take if key in parts else None
        if array is None or take is None or side == "in":
            return array
        rows = take(array.reshape(-1, array.shape[-1]).T)
        return rows.T.reshape(*array.shape[:-1], -1)

    stored, sizes = dict(inside), model.config.sublayers[layer.layer]
    if layer.kind == "gated_delta":
        # transformers repeats keys for the heads that share them
        for site in {"q_unit", "k_unit"} & set(stored):
            repeated = stored[site].shape[2] // sizes.key_heads
            stored[site] = stored[site][:, :, ::repeated]
    for one in WATCHED[layer.kind]:
        array = at(one.key, one.side)
        if array is not None:
            stored[one.site] = array
    y, value_dim = stored.get("scan_output"), getattr(sizes, "value_dim", None)
    if y is not None and value_dim is not None:
        stored["scan_output"] = y.reshape(*y.shape[:2], -1, value_dim)
    if layer.kind == "mlp" and "gate" not in parts:
        stored["activated"] = stored.pop("hidden")
    if layer.kind == "attention" and "g_proj" in parts:
        stored["read_gated"] = stored.pop("read")
    first = next(key for key in FIRST if key in places)
    read = at(first, "in")
    # of halvings, which are exact: what fp16 could round is refused
    scale = 2.0**sizes.halvings
    read = None if read is None else read * scale
    stored |= {site: stored[site] * scale for site in {"out", "down"} & set(stored)}
    if layer.kind == "experts":
        _add_shared(torch, execution.precision, stored, places)
    output = stored.get("norm_behind", stored.get("out"))
    if output is None or read is None:
        raise UsageError(
            f"transformers shows no output of layer {layer.layer} ({layer.kind})",
            hint="--measure emulated",
        )
    output, more = _finished(torch, execution.precision, model, layer, output)
    stored |= more | {"norm_input": read}
    own = read[..., : model.config.d_model]
    if stream is None:
        stream = Stream.start(jnp.asarray(own), model.sublayers)
    incoming = stream.incoming(layer)
    if layer.embedded:
        beside = jnp.asarray(read[..., model.config.d_model :])
        incoming = incoming._replace(embedded=beside)
    sites = execution.at(layer).sites
    kept = sites["residual"].name
    residual = _added(torch, kept, incoming.residual, incoming.hidden)
    if incoming.aside is not None:
        stored["residual_aside"] = own
    elif kept == sites["norm_input"].name:
        stored["residual"] = residual = own
    elif (wide := at("stream", "in")) is not None:
        stored["residual"] = residual = wide
    precision = execution.precision
    together = lambda one, other: jnp.asarray(_added(torch, precision, one, other))
    if (keeps := sizes.keeps) != 1.0:
        kept = torch.tensor(residual).to(torch_dtype(torch, precision))
        residual = copied(kept * keeps)
    after = stream.after(layer, jnp.asarray(residual), jnp.asarray(output), together)
    stored = {k: jnp.asarray(x) for k, x in stored.items() if k in sites}
    record = SublayerRecord.of(layer, incoming, jnp.asarray(output), stored, {})
    return record, after


def _add_shared(torch, precision: str, stored, places: dict[str, str]) -> None:
    """The output of experts: their module's, and that of an MLP beside it."""
    apart = places.get("shared_down", "")
    if not apart or apart.startswith(f"{places['block']}."):
        # the module has added what is shared, or there is none
        stored["out"] = stored.pop("routed")
        return
    stored["out"] = _added(torch, precision, stored["routed"], stored["shared"])


def _finished(torch, precision: str, model: Model, layer: Sublayer, output: np.ndarray):
    """The output times the model's multipliers: torch's products, repeated."""
    sizes, more = model.config.sublayers[layer.layer], {}
    dtype = torch_dtype(torch, precision)
    for name, site in (("down_multiplier", ""), ("out_multiplier", "out_scaled")):
        multiplier = getattr(sizes, name, 1.0)
        if multiplier != 1.0:
            output = copied(torch.tensor(output).to(dtype) * multiplier)
            more[site or "out"] = output
    return output, more


def _calls(places: dict[str, str], seen, taken) -> dict[tuple[str, str], np.ndarray]:
    """What was copied at a sublayer's modules: one call of each.

    **Arguments:**

    - `taken`: of the sublayers before that stand beside it; norms are theirs together.
    """
    return taken | {
        (path, side): next(seen[path, side])
        for path in sorted(set(places.values()))
        for side in ("in", "out")
        if (path, side) in seen and (path, side) not in taken
    }


def _added(torch, precision: str, one, other) -> np.ndarray:
    """One torch addition, repeated."""
    dtype = torch_dtype(torch, precision)
    one, other = (torch.tensor(np.asarray(x)).to(dtype) for x in (one, other))
    return copied(one + other)


def _looked_at(model: Model, places: list[dict[str, str]]) -> set[str]:
    """The modules that records are made of.

    Others need not have a row for each token of each text: a router has the tokens of
    all texts one after another.
    """
    return {
        path
        for layer, found in zip(model.sublayers, places, strict=True)
        for key, path in found.items()
        if key in (*FIRST, "stream", *(one.key for one in WATCHED[layer.kind]))
    }


def _watch(path: str, module, calls) -> Iterator[Any]:
    """Copy what goes in and out of a module at each call."""

    def before(_, given, named):
        first = next(
            (x for x in (*given, *named.values()) if hasattr(x, "dtype")), None
        )
        if first is not None:
            calls.setdefault((path, "in"), []).append(first.clone())

    def after(_, given, result):
        result = result[0] if isinstance(result, tuple) else result
        calls.setdefault((path, "out"), []).append(result.clone())

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after)


def _places(parts, front: bool, modules) -> dict[str, str]:
    """The module of each parameter, and of a norm in front that has no weights."""
    found = {
        key: path
        for key, part in parts.items()
        if (path := _path(part.names[0], modules)) is not None
    }
    if "linear" in found:
        # a shared block's weights lie with one layer, its modules with each
        own = _LAYER.search(found["linear"])
        for key, path in found.items():
            place = path if own is None else _LAYER.sub(own[0], path, count=1)
            found[key] = place if place in modules else path
    if "kv_down" in found:
        # a step makes keys and values of all tokens anew
        found = {k: path for k, path in found.items() if k not in ("k_proj", "v_proj")}
    for key in ("router", "r_proj"):
        if key in found:
            found["block"] = found[key].rpartition(".")[0]
    for key, norm in WEIGHTLESS.items():
        if front and key in found and not {"norm", "norm_behind"} & set(found):
            path = f"{found[key].rpartition('.')[0].rpartition('.')[0]}.{norm}"
            if path in modules:
                found["norm"] = path
    return found


def _with_streams(places: list[dict[str, str]], modules) -> None:
    """The module of a block that is one sublayer, which is given the stream itself."""
    blocks = [found.get("norm", "").rpartition(".")[0] for found in places]
    for found, block in zip(places, blocks, strict=True):
        if block in modules and blocks.count(block) == 1:
            found["stream"] = block


def _path(stored: str, modules) -> str | None:
    """The module that a stored weight belongs to; names in files differ on some."""
    own, _, what = stored.rpartition(".")
    if what not in ("weight", "bias"):
        return None
    for path in (
        own,
        own.replace("backbone.", "model.", 1),
        f"model.{own}",
        own.removesuffix(".layer"),
        functools.reduce(lambda path, one: re.sub(*one, path), RENAMED, own),
    ):
        if path in modules:
            return path
    return None
