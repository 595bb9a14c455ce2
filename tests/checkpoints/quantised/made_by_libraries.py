"""Small matrices as the libraries that own the layouts store and read them.

They are kept in `tests/data/quantised_by_libraries.json`, since the libraries are not
installed where the tests run; made where they are (compressed-tensors 0.20.0,
bitsandbytes 0.50.2, torchao 0.18.0 and torch 2.13, on a CPU) by

    python -m tests.checkpoints.quantised.made_by_libraries
"""

import base64
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np


KEPT = Path(__file__).parents[2] / "data" / "quantised_by_libraries.json"
MODULE = "m"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
}


def told(tensor) -> dict[str, Any]:
    """A torch tensor as JSON: type, shape and bytes."""
    import torch

    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "bytes": base64.b64encode(plain.numpy().tobytes()).decode(),
    }


def array(entry: dict[str, Any]) -> np.ndarray:
    """The other way, as NumPy has it."""
    data = base64.b64decode(entry["bytes"])
    return np.frombuffer(data, DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _case(config: dict, stored: dict, read) -> dict[str, Any]:
    return {
        "config": config,
        "stored": {name: told(tensor) for name, tensor in stored.items()},
        "read": told(read),
    }


def _weights():
    import torch

    return torch.randn(12, 96, generator=torch.Generator().manual_seed(7)).to(
        torch.bfloat16
    )


def compressed_tensors_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every format of compressed-tensors, packed and read by its own compressors."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    w = _weights()
    amax = lambda x, *axis: x.abs().amax(*axis, keepdim=True).float()
    columns = lambda size: w.reshape(12, 96 // size, size)

    def case(form: str, scale, zero=None, over=None, **args: Any) -> dict[str, Any]:
        weights = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        library = BaseCompressor.get_value_from_registry(form)
        state = {"weight": w, "weight_scale": scale}
        state |= {} if zero is None else {"weight_zero_point": zero}
        state |= {} if over is None else {"weight_global_scale": over}
        stored = dict(library.compress(state, scheme))
        read = library.decompress(dict(stored), scheme)["weight"]
        config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        }
        named = {f"{MODULE}.{k}": v for k, v in stored.items()}
        return _case(config, named, read) | {"given": told(w)}

    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    kinds = {"": torch.float32, "-bf16": torch.bfloat16}
    for name, dtype in kinds.items():
        yield (
            f"fp8-tensor{name}",
            case(
                "float-quantized",
                (amax(w).reshape(1) / 448).to(dtype),
                strategy="tensor",
                **fp8,
            ),
        )
        yield (
            f"fp8-channel{name}",
            case(
                "float-quantized",
                (amax(w, 1) / 448).to(dtype),
                strategy="channel",
                **fp8,
            ),
        )
        blocks = torch.stack(
            [
                torch.stack(
                    [amax(w[i : i + 5, j : j + 40]).reshape(()) for j in (0, 40, 80)]
                )
                for i in (0, 5, 10)
            ]
        )
        yield (
            f"fp8-block{name}",
            case(
                "float-quantized",
                (blocks / 448).to(dtype),
                strategy="block",
                block_structure=[5, 40],
                **fp8,
            ),
        )
    yield (
        "int8",
        case(
            "int-quantized",
            amax(w, 1) / 127,
            num_bits=8,
            type="int",
            strategy="channel",
            symmetric=True,
        ),
    )
    for bits in range(2, 9):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        integers = {"num_bits": bits, "type": "int"}
        yield (
            f"int{bits}-channel",
            case(
                "pack-quantized",
                (amax(w, 1) * 2 / (high - low)).to(torch.bfloat16),
                strategy="channel",
                symmetric=True,
                **integers,
            ),
        )
        parts = columns(32).float()
        scale = (parts.amax(2) - parts.amin(2)) / (high - low)
        zero = torch.clamp(torch.round(low - parts.amin(2) / scale), low, high)
        yield (
            f"int{bits}-group-asymmetric",
            case(
                "pack-quantized",
                scale,
                zero.to(torch.int8),
                strategy="group",
                group_size=32,
                symmetric=False,
                **integers,
            ),
        )
    low = w.amin(1, keepdim=True).float()
    scale = (w.amax(1, keepdim=True).float() - low) / 255
    yield (
        "int8-asymmetric",
        case(
            "int-quantized",
            scale,
            torch.round(-128 - low / scale).to(torch.int8),
            num_bits=8,
            type="int",
            strategy="channel",
            symmetric=False,
        ),
    )
    over = (2688 / amax(w)).reshape(1)
    scale = (columns(16).abs().amax(2).float() / 6 * over).to(torch.float8_e4m3fn)
    yield (
        "nvfp4",
        case(
            "nvfp4-pack-quantized",
            scale.float(),
            over=over,
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
            symmetric=True,
        ),
    )
    power = torch.floor(torch.log2(columns(32).abs().amax(2).float()))
    for form, bits, less in (
        ("mxfp4-pack-quantized", 4, 2),
        ("mxfp8-quantized", 8, 8),
    ):
        yield (
            form.partition("-")[0],
            case(
                form,
                2.0 ** (power - less),
                num_bits=bits,
                type="float",
                strategy="group",
                group_size=32,
                symmetric=True,
            ),
        )


def bitsandbytes_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """4 bits, with scales quantised or not, and rows of 8."""
    import bitsandbytes.functional as library
    import torch

    for kind in ("nf4", "fp4"):
        for double in (False, True):
            # of one so many that scales of scales have more than one block of their own
            shape = (50, 330) if (kind, double) == ("nf4", True) else (11, 30)
            w = torch.randn(*shape, generator=torch.Generator().manual_seed(8))
            codes, state = library.quantize_4bit(
                w, blocksize=64, quant_type=kind, compress_statistics=double
            )
            more = state.as_dict(packed=True)
            stored = {f"{MODULE}.weight": codes}
            stored |= {f"{MODULE}.weight.{name}": v for name, v in more.items()}
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
            name = f"{kind}{'-double' if double else ''}"
            case = _case(config, stored, library.dequantize_4bit(codes, state))
            yield name, case | ({} if double else {"given": told(w)})
    small = _weights().half()
    codes, largest, _ = library.int8_vectorwise_quant(small)
    stored = {f"{MODULE}.weight": codes, f"{MODULE}.SCB": largest}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    read = library.int8_vectorwise_dequant(codes, largest)
    yield "bnb-int8", _case(config, stored, read)


def torchao_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Tensors of 8 bits, taken apart as transformers saves them."""
    import torch
    from torchao.prototype.safetensors.safetensors_support import (
        flatten_tensor_state_dict,
    )
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    for name, how in (
        ("torchao-int8", Int8WeightOnlyConfig()),
        ("torchao-fp8", Float8WeightOnlyConfig()),
    ):
        network = torch.nn.Sequential()
        network.add_module(MODULE, torch.nn.Linear(96, 12, bias=False))
        network[0].weight = torch.nn.Parameter(_weights().float())
        quantize_(network, how)
        stored, _ = flatten_tensor_state_dict(network.state_dict())
        read = network[0].weight.dequantize()
        yield name, _case({"quant_method": "torchao"}, stored, read)


LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]] = {
    "compressed_tensors": compressed_tensors_cases,
    "bitsandbytes": bitsandbytes_cases,
    "torchao": torchao_cases,
}


@functools.cache
def kept() -> dict[str, dict[str, Any]]:
    """Cases by library and name, as they were made."""
    return json.loads(KEPT.read_text())


if __name__ == "__main__":
    found = {library: dict(cases()) for library, cases in LIBRARIES.items()}
    KEPT.write_text(json.dumps(found, indent=0) + "\n")
