"""Quantised tensors that are not what they say: one clear line, before any harm."""

import ml_dtypes
import numpy as np
import pytest

from lyapunov._errors import CorruptCheckpointError

from .spoiling import (
    STATE,
    P,
    as_bytes,
    as_json,
    at,
    nan_code,
    put,
    renamed,
    without,
)


E4M3 = ml_dtypes.float8_e4m3fn


TENSORS = {
    "a scale of 0": (
        "ct-fp8-channel",
        put(f"{P}.weight_scale", at(5, 0)),
        "1 scales of 0, of 552",
    ),
    "a scale that is NaN": (
        "ct-int8",
        put(f"{P}.weight_scale", at(5, np.nan)),
        "1 scales that are NaN or infinite",
    ),
    "NaN among blocks of NVFP4": (
        "modelopt-nvfp4",
        put(f"{P}.weight_scale", nan_code),
        "1 scales that are NaN",
    ),
    "NaN among powers of two": (
        "ct-mxfp4",
        put(f"{P}.weight_scale", at(3, 255)),
        "1 scales that are NaN",
    ),
    "a code that is NaN": (
        "fp8-blocks",
        put(f"{P}.weight", nan_code),
        "1 codes of float8_e4m3fn that are no number",
    ),
    "no scale": ("ct-fp8-channel", without(f"{P}.weight_scale"), "without scales"),
    "no zero points": ("gptq-int4", without(f"{P}.qzeros"), "no tensor"),
    "scales of another matrix": (
        "ct-fp8-channel",
        put(f"{P}.weight_scale", lambda a: a[:-1]),
        "(551, 1) beside a matrix of (552, 128)",
    ),
    "blocks of another size": (
        "fp8-blocks",
        put(f"{P}.weight_scale_inv", lambda a: a[:-1]),
        "it should be (5, 1) for blocks of 128 x 128",
    ),
    "groups that do not divide": (
        "ct-int4-group",
        put(f"{P}.weight_scale", lambda a: np.concatenate([a, a[:, :1]], 1)),
        "the groups divide 128 columns",
    ),
    "groups of another size than told": (
        "ct-int4-group",
        put(f"{P}.weight_scale", lambda a: a[:, :2]),
        "groups of 64; config.json has int4, groups of 32",
    ),
    "weight_shape of other rows": (
        "ct-int4-group",
        put(f"{P}.weight_shape", at(0, 2**40)),
        "the codes beside it are",
    ),
    "weight_shape of other columns": (
        "ct-int4-group",
        put(f"{P}.weight_shape", at(1, 129)),
        "words a row for 129 codes",
    ),
    "weight_shape below 0": (
        "ct-int4-group",
        put(f"{P}.weight_shape", at(1, -128)),
        "the codes beside it are",
    ),
    "weight_shape of three": (
        "ct-int4-group",
        put(f"{P}.weight_shape", lambda a: np.append(a, 1)),
        "a matrix has 2 sizes",
    ),
    "zero points of other rows": (
        "ct-int4-group-asymmetric",
        put(f"{P}.weight_zero_point", lambda a: a[:-1]),
        "it should be (69, 4)",
    ),
    "g_idx beyond the groups": (
        "gptq-int4-order",
        put(f"{P}.g_idx", at(7, 8)),
        "names group 8 of 8",
    ),
    "g_idx below 0": (
        "gptq-int4-order",
        put(f"{P}.g_idx", at(7, -1)),
        "names group -1 of 8",
    ),
    "g_idx of compressed-tensors": (
        "ct-int4-group-order",
        put(f"{P}.weight_g_idx", at(7, 99)),
        "names group 99 of 8",
    ),
    "g_idx of fewer inputs": (
        "gptq-int4",
        put(f"{P}.g_idx", lambda a: a[:-8]),
        "codes of 4 bits take",
    ),
    "qzeros of other groups": (
        "gptq-int4",
        put(f"{P}.qzeros", lambda a: a[:-1]),
        "codes of 4 bits take",
    ),
    "AWQ's zero points of other groups": (
        "awq",
        put(f"{P}.qzeros", lambda a: a[:-1]),
        "do not fit",
    ),
    "NVFP4 by the other convention (divided)": (
        "ct-nvfp4",
        put(f"{P}.weight_global_scale", lambda a: 1 / a),
        "In the other convention (its reciprocal)",
    ),
    "NVFP4 by the other convention (multiplied)": (
        "modelopt-nvfp4",
        put(f"{P}.weight_scale_2", lambda a: 1 / a),
        "In the other convention (its reciprocal)",
    ),
    "NVFP4 under a scale of 0": (
        "ct-nvfp4",
        put(f"{P}.weight_global_scale", lambda a: 0 * a),
        "scales of 0",
    ),
    "NVFP4 under several scales": (
        "ct-nvfp4",
        put(f"{P}.weight_global_scale", lambda a: np.append(a, a)),
        "a matrix has one such scale",
    ),
    "an absmax too few": (
        "bnb-nf4",
        put(f"{P}.weight.absmax", lambda a: a[:-1]),
        "1103 scales for 1104 blocks",
    ),
    "scales of scales too few": (
        "bnb-nf4-double",
        put(f"{P}.weight.nested_absmax", lambda a: a[:-1]),
        "do not fit 1104 scales in blocks of 256",
    ),
    "a shape that the bytes do not hold": (
        "bnb-nf4",
        put(STATE, as_json(shape=[2**24, 2**24])),
        "quant_state says a shape of",
    ),
    "a shape with a negative side": (
        "bnb-nf4",
        put(STATE, as_json(shape=[-552, -128])),
        "axis of length -552",
    ),
    "a shape that is no list": (
        "bnb-nf4",
        put(STATE, as_json(shape="552x128")),
        "no plausible shape",
    ),
    "blocks of 0": ("bnb-nf4", put(STATE, as_json(blocksize=0)), "blocksize of 0"),
    "blocks of half": (
        "bnb-nf4",
        put(STATE, as_json(blocksize=0.5)),
        "blocksize is 0.5",
    ),
    "an offset that is no number": (
        "bnb-nf4-double",
        put(STATE, as_json(nested_offset="1e400")),
        "nested_offset of 1e400",
    ),
    "an offset beyond every number": (
        "bnb-nf4-double",
        put(STATE, as_bytes(rb'("nested_offset": )[^,}]+', rb"\g<1>1e999")),
        "nested_offset of inf",
    ),
    "an offset of more digits than a number has": (
        "bnb-nf4-double",
        put(STATE, as_bytes(rb'("nested_offset": )[^,}]+', rb"\g<1>" + b"9" * 400)),
        "nested_offset of 999",
    ),
    "a state that is no JSON": (
        "bnb-nf4",
        put(STATE, lambda a: a[:-1]),
        "is not valid JSON",
    ),
    "a state too long": (
        "bnb-nf4",
        put(STATE, lambda a: np.full(2**17, 32, np.uint8)),
        "at most 65536 are plausible",
    ),
    "nf4 by the name of fp4": (
        "bnb-nf4",
        renamed("bitsandbytes__nf4", "bitsandbytes__fp4"),
        "quant_type",
    ),
    "a table of another type": (
        "bnb-nf4",
        put(f"{P}.weight.quant_map", at(3, 0.5)),
        "is not the table of nf4",
    ),
    "SCB of other rows": (
        "bnb-int8",
        put(f"{P}.SCB", lambda a: a[:-1]),
        "(551,) beside 552 rows",
    ),
    "codes of another type": (
        "ct-int8",
        put(f"{P}.weight", lambda a: a.astype(np.int32)),
        "is stored as int32",
    ),
    "weights plain and as codes": (
        "gptq-int4",
        lambda t: t.__setitem__(f"{P}.weight", np.zeros((552, 128), np.float32)),
        "is stored twice",
    ),
    "scales beside plain weights": (
        "ct-fp8-channel",
        put(f"{P}.weight", lambda a: a.astype(np.float32)),
        "prepared and never compressed",
    ),
    "GPTQ's names, AWQ's codes": (
        "gptq-int4",
        put(f"{P}.qweight", lambda a: np.zeros((128, 69), np.int32)),
        "as AWQ stores them",
    ),
    "AWQ's names, GPTQ's codes": (
        "awq",
        put(f"{P}.qweight", lambda a: np.zeros((16, 552), np.int32)),
        "as GPTQ stores them",
    ),
    "AWQ's codes with g_idx": (
        "awq",
        lambda t: t.__setitem__(f"{P}.g_idx", np.zeros(128, np.int32)),
        "as GPTQ stores them",
    ),
    "a stray scale": (
        "ct-fp8-channel",
        lambda t: t.__setitem__("lm_head.weight_scale_inv", np.ones(1, np.float32)),
        "belong to no matrix",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(refused, spoilt, case):
    recipe, change, words = TENSORS[case]
    folder = spoilt(recipe, change)
    refused(folder, CorruptCheckpointError, words, read=True)
