"""Small models as quantisers leave them: a folder in, a folder with codes out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .quantised import (
    BF16,
    Recipe,
    asymmetric_int8,
    awq,
    beside,
    bitsandbytes,
    bitsandbytes_int8,
    eight_bits,
    gptq,
    mxfp4,
    mxfp8,
    nvfp4,
    packed_integers,
    torchao,
)


_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(BF16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
}


def compressed(form: str, activations: dict | None = None, **weights: Any) -> dict:
    """A configuration of compressed-tensors."""
    scheme = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    if activations:
        scheme["input_activations"] = activations
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def modelopt(algorithm: str, **more) -> dict:
    """A `hf_quant_config.json`."""
    told = {"quant_algo": algorithm, "exclude_modules": ["lm_head"], **more}
    return {"producer": {"name": "modelopt"}, "quantization": told}


_FP8: dict[str, Any] = {"num_bits": 8, "type": "float"}
_INT8: dict[str, Any] = {"num_bits": 8, "type": "int"}
_BLOCKS_OF_16: dict[str, Any] = {
    **{"num_bits": 4, "type": "float"},
    **{"strategy": "tensor_group", "group_size": 16},
}
_TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
_INT_TOKEN = {**_TOKEN, "type": "int"}


def _integers(bits: int, group: int, asymmetric=False, shuffled=False) -> Recipe:
    strategy: dict[str, Any] = {"strategy": "group", "group_size": group}
    config = compressed(
        "pack-quantized",
        num_bits=bits,
        type="int",
        symmetric=not asymmetric,
        activations=None,
        **(strategy if group else {"strategy": "channel"}),
    )
    pack = packed_integers(bits, group, asymmetric, shuffled)
    words = " with zero points" if asymmetric else ""
    return Recipe(pack, config, f"int{bits}{words}")


def _gptq(bits: int, group: int, form: str | None, shuffled=False) -> Recipe:
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": shuffled,
        "sym": False,
    }
    if form:
        config["checkpoint_format"] = form
    pack = gptq(bits, group, 0 if form == "gptq_v2" else 1, shuffled)
    return Recipe(pack, config, f"int{bits}")


def _bnb(kind: str, double: bool) -> Recipe:
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "llm_int8_skip_modules": ["lm_head"],
    }
    return Recipe(bitsandbytes(kind, double), config, kind)


_LONE: dict[str, Any] = {"shaped": lambda shape: (1,)}
_SCALAR: dict[str, Any] = {"shaped": lambda shape: ()}
_FLAT: dict[str, Any] = {"shaped": lambda shape: (shape[0],)}
_FOUR_AXES: dict[str, Any] = {"shaped": lambda shape: (shape[0], 1, shape[1], 1)}

RECIPES: dict[str, Recipe] = {
    "ct-fp8-tensor": Recipe(
        eight_bits("fp8", 0, 0, **_LONE),
        compressed("float-quantized", _TOKEN, **_FP8, strategy="tensor"),
        "fp8_e4m3",
    ),
    "ct-fp8-channel": Recipe(
        eight_bits("fp8", 1, 0, BF16),
        compressed("float-quantized", _TOKEN, **_FP8, strategy="channel"),
        "fp8_e4m3",
    ),
    "ct-fp8-block": Recipe(
        eight_bits("fp8", 128, 128),
        compressed(
            "float-quantized",
            None,
            **_FP8,
            strategy="block",
            block_structure=[128, 128],
        ),
        "fp8_e4m3",
    ),
    "ct-int8": Recipe(
        eight_bits("int8", 1, 0, BF16),
        compressed("int-quantized", _INT_TOKEN, **_INT8, strategy="channel"),
        "int8",
    ),
    "ct-int8-asymmetric": Recipe(
        asymmetric_int8,
        compressed("int-quantized", None, **_INT8 | {"strategy": "channel"}),
        "int8 with zero points",
    ),
    **{
        f"ct-int{bits}-channel": _integers(bits, 0, bool(bits % 2))
        for bits in range(2, 9)
    },
    "ct-int4-group": _integers(4, 32),
    "ct-int4-group-asymmetric": _integers(4, 32, True),
    "ct-int4-group-order": _integers(4, 16, True, True),
    "ct-nvfp4": Recipe(
        nvfp4(True),
        compressed(
            "nvfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
        ),
        "nvfp4",
    ),
    "ct-fp8-static": Recipe(
        beside(eight_bits("fp8", 0, 0, **_LONE), ".input_scale", 0.01, 1),
        compressed(
            "float-quantized",
            {**_FP8, "strategy": "tensor", "dynamic": False},
            **_FP8,
            strategy="tensor",
        ),
        "fp8_e4m3",
    ),
    "ct-nvfp4-both": Recipe(
        beside(nvfp4(True), ".input_global_scale", 500.0, 1),
        compressed(
            "nvfp4-pack-quantized",
            {**_BLOCKS_OF_16, "dynamic": "local"},
            **_BLOCKS_OF_16,
        ),
        "nvfp4",
    ),
    "ct-mxfp4": Recipe(
        mxfp4,
        compressed(
            "mxfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="group",
            group_size=32,
        ),
        "mxfp4",
    ),
    "ct-mxfp8": Recipe(
        mxfp8,
        compressed("mxfp8-quantized", **_FP8, strategy="group", group_size=32),
        "fp8_e4m3",
    ),
    "fp8-blocks": Recipe(
        eight_bits("fp8", 128, 128, scale=".weight_scale_inv"),
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"],
        },
        "fp8_e4m3",
    ),
    "modelopt-fp8": Recipe(
        beside(eight_bits("fp8", 0, 0, **_SCALAR), ".input_scale", 0.01),
        modelopt("FP8"),
        "fp8_e4m3",
        "hf_quant_config.json",
    ),
    "modelopt-fp8-blocks": Recipe(
        eight_bits("fp8", 128, 128, **_FOUR_AXES),
        modelopt("FP8_PB_WO"),
        "fp8_e4m3",
        "hf_quant_config.json",
    ),
    "modelopt-fp8-channel": Recipe(
        eight_bits("fp8", 1, 0, **_FLAT),
        {
            "quant_method": "modelopt",
            "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
            "ignore": ["lm_head"],
        },
        "fp8_e4m3",
    ),
    "modelopt-nvfp4": Recipe(
        beside(nvfp4(False, ".weight", ".weight_scale_2"), ".input_scale", 0.002),
        modelopt("NVFP4", group_size=16),
        "nvfp4",
        "hf_quant_config.json",
    ),
    "gptq-int4": _gptq(4, 32, None),
    "gptq-int4-v2": _gptq(4, 32, "gptq_v2"),
    "gptq-int4-order": _gptq(4, 16, "gptq", True),
    "gptq-int3": _gptq(3, 32, "gptq"),
    "gptq-int8": _gptq(8, 32, "gptq"),
    "awq": Recipe(
        awq(32),
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "zero_point": True,
            "version": "gemm",
        },
        "int4",
    ),
    "bnb-nf4": _bnb("nf4", False),
    "bnb-nf4-double": _bnb("nf4", True),
    "bnb-fp4": _bnb("fp4", False),
    "bnb-fp4-double": _bnb("fp4", True),
    "bnb-int8": Recipe(
        bitsandbytes_int8,
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
        "int8",
    ),
    "torchao-int8": Recipe(torchao("int8"), {"quant_method": "torchao"}, "int8"),
    "torchao-fp8": Recipe(torchao("fp8"), {"quant_method": "torchao"}, "fp8_e4m3"),
}
RECIPES["ct-int8-asymmetric"].config["config_groups"]["group_0"]["weights"][
    "symmetric"
] = False


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """One file of these tensors, in the order that they are given in."""
    header, data = {}, b""
    for name, array in tensors.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def stored_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder with one safetensors file, as NumPy has it."""
    data = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    types = {name: dtype for dtype, name in _NAMES.items()}
    found = {}
    for name, entry in header.items():
        start, stop = (begin + at for at in entry["data_offsets"])
        array = np.frombuffer(data[start:stop], types[entry["dtype"]])
        found[name] = array.reshape(entry["shape"]).copy()
    return found


def quantise_folder(
    source: Path,
    target: Path,
    recipe: Recipe,
    chosen: Callable[[str], bool],
    shards: int = 1,
) -> dict[str, np.ndarray]:
    """A model's folder with the chosen matrices stored as a recipe has them.

    **Returns:** what each of them means, in fp64, by the name of its parameter.
    """
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    tensors, meant = {}, {}
    for name, array in stored_arrays(source).items():
        if not (chosen(name) and array.ndim == 2):
            tensors[name] = array
            continue
        module = name.removesuffix(".weight")
        packed = recipe.pack(array.astype(np.float32))
        tensors |= {f"{module}{suffix}": a for suffix, a in packed.tensors.items()}
        meant[name] = packed.meant
    path = target / "config.json"
    config = json.loads(path.read_text())
    if recipe.beside is None:
        config["quantization_config"] = recipe.config
    else:
        (target / recipe.beside).write_text(json.dumps(recipe.config))
    path.write_text(json.dumps(config))
    names = list(tensors)
    if shards == 1:
        write_safetensors(target / "model.safetensors", tensors)
        return meant
    # codes and their scales may lie in different files
    index = {}
    for i in range(shards):
        part = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        own = names[i::shards]
        write_safetensors(target / part, {name: tensors[name] for name in own})
        index |= dict.fromkeys(own, part)
    whole = {"metadata": {}, "weight_map": index}
    (target / "model.safetensors.index.json").write_text(json.dumps(whole))
    return meant
