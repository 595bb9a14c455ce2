"""What the runners on torch share: weights under their names, hooks, copies."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from .._errors import MissingExtraError
from ..formats._precision import Precision
from ..models import Model


# canonical name of a layer's parameter -> its name in both libraries
NAMES = {
    "norm": "norm.weight",
    "in_proj": "mixer.in_proj.weight",
    "in_proj_bias": "mixer.in_proj.bias",
    "conv_weight": "mixer.conv1d.weight",
    "conv_bias": "mixer.conv1d.bias",
    "x_proj": "mixer.x_proj.weight",
    "dt_proj": "mixer.dt_proj.weight",
    "dt_bias": "mixer.dt_proj.bias",
    "A_log": "mixer.A_log",
    "D": "mixer.D",
    "out_proj": "mixer.out_proj.weight",
    "out_proj_bias": "mixer.out_proj.bias",
    "norm_bias": "norm.bias",
    "gate_norm": "mixer.norm.weight",
}

# names that a Mamba-2 mixer has otherwise
NAMES_2 = NAMES | {"dt_bias": "mixer.dt_bias"}

# and those of Mamba-3
NAMES_3 = NAMES_2 | {
    name: f"mixer.{name}" for name in ("B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o")
}
NAMES_3 |= {"B_norm": "mixer.B_norm.weight", "C_norm": "mixer.C_norm.weight"}

NAMES_BY_KIND = {"mamba1": NAMES, "mamba2": NAMES_2, "mamba3": NAMES_3}


def import_torch():
    """torch, or an error that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"measuring needs torch ({error})",
            hint="pip install 'lyapunov-check[torch]'",
        ) from None
    return torch


def torch_dtype(torch, precision: str):
    """The torch dtype of a precision such as `bf16` or `bf16-cast`."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return kinds[Precision.named(precision).format]


def exact_sums(torch) -> None:
    """Turn off roundings that no execution declares: TF32 and sums in 16 bit."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


# Numbers of a stream below which a second thread costs torch more than it saves.
LITTLE = 2**16


@contextmanager
def threads_worth(torch, numbers: int) -> Iterator[None]:
    """Have torch use one thread for little work, which threads wait for longer than
    they compute: a step of four layers takes 2 ms with one on two cores, 25 with two.

    **Arguments:**

    - `numbers`: of the stream, tokens x width.
    """
    before = torch.get_num_threads()
    if numbers < LITTLE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def state_dict(model: Model, embedding: str) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's weights in fp32, under the names of a torch module.

    **Arguments:**

    - `embedding`: the name of the embedding, in which the libraries differ.
    """
    rows = model.config.padded_vocab_size
    yield embedding, _fp32(model.layout.embedding(np.arange(rows)))
    for name, array in (
        ("weight", model.layout.final_norm()),
        ("bias", model.layout.final_norm_bias()),
    ):
        if array is not None:
            yield f"backbone.norm_f.{name}", _fp32(array)
    yield "lm_head.weight", _fp32(model.layout.head(0, rows))
    for layer, sizes in enumerate(model.config.sublayers):
        names = NAMES_BY_KIND[sizes.kind]
        for name, array in model.layout.layer(layer).items():
            value = array[:, None, :] if name == "conv_weight" else array
            yield f"backbone.layers.{layer}.{names[name]}", _fp32(value)


def _fp32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def copied(tensor) -> np.ndarray:
    """The values as fp64 on the host."""
    return tensor.detach().to("cpu").double().numpy()


@contextmanager
def watched(block, seen: dict[str, np.ndarray]):
    """Copy what goes in and out of a block's modules, changing nothing.

    `seen` gets the mixer's output as `mixer` and the tensors of the sites that are
    some module's input or output.
    """

    def output(name):
        return lambda module, inputs, result: seen.__setitem__(name, copied(result))

    def input_of(name):
        return lambda module, inputs: seen.__setitem__(name, copied(inputs[0]))

    mixer = block.mixer
    handles = [
        mixer.register_forward_pre_hook(input_of("norm")),
        mixer.register_forward_hook(output("mixer")),
        mixer.in_proj.register_forward_hook(output("xz")),
        mixer.out_proj.register_forward_pre_hook(input_of("gated")),
    ]
    if hasattr(mixer, "x_proj"):
        handles += [
            mixer.x_proj.register_forward_pre_hook(input_of("conv")),
            mixer.x_proj.register_forward_hook(output("x_proj")),
        ]
    if hasattr(mixer, "B_norm"):
        # Mamba-3's
        handles += [
            mixer.B_norm.register_forward_hook(output("B_norm")),
            mixer.C_norm.register_forward_hook(output("C_norm")),
        ]
    if getattr(mixer, "rmsnorm", False) or getattr(mixer, "is_outproj_norm", False):
        # a gated norm reads what the scan put out
        handles.append(mixer.norm.register_forward_pre_hook(input_of("scan_output")))
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
