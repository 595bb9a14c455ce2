"""What the libraries that own the layouts store, read as they read it, bit for bit.

They multiply in the format of the scale, we in fp64: rounded once to theirs, ours is
theirs, unless they round on the way, for which the roundings are counted.
"""

import numpy as np
import pytest

from lyapunov.checkpoints.files._file_formats import read_tensors
from lyapunov.checkpoints.quantised._recognise import dequantised_tensors
from oracles.checkpoints.quantised_models import write_safetensors

from .made_by_libraries import LIBRARIES, MODULE, array, kept


U32 = 2.0**-24
CASES = [(library, name) for library, cases in kept().items() for name in cases]
ROUNDINGS = {
    # scale over global, times the code; then to bf16
    "nvfp4": 2,
    # the map times a scale, plus the offset, times the code; and nothing near 0
    "nf4-double": 3,
    "fp4-double": 3,
    # SCB times 1/127 in fp32, which is rounded itself
    "bnb-int8": 3,
}


def read(case, folder) -> np.ndarray:
    path = folder / "model.safetensors"
    write_safetensors(path, {k: array(v) for k, v in case["stored"].items()})
    config = {"quantization_config": case["config"]}
    made, told = dequantised_tensors(config, {}, read_tensors(path))
    assert told is not None
    assert list(made) == [f"{MODULE}.weight"]
    return made[f"{MODULE}.weight"].read()


@pytest.mark.parametrize(("library", "name"), CASES)
def test_the_librarys_own_reading(tmp_path, library, name):
    case = kept()[library][name]
    found, theirs = read(case, tmp_path), array(case["read"])
    assert found.shape == theirs.shape
    if name not in ROUNDINGS:
        rounded = found.astype(np.float32).astype(theirs.dtype)
        np.testing.assert_array_equal(rounded, theirs)
        return
    # rounding is monotone: between those of what the roundings before may have made
    size, moved = np.abs(found), (1 + U32) ** ROUNDINGS[name] - 1
    low, high = (
        (size * (1 + sign * moved)).astype(np.float32).astype(theirs.dtype)
        for sign in (-1, 1)
    )
    assert np.all(np.abs(theirs) >= low)
    assert np.all(np.abs(theirs) <= high)
    np.testing.assert_array_equal(np.sign(found), np.sign(theirs.astype(np.float64)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_kept_is_what_the_library_makes(library):
    pytest.importorskip(library)
    assert dict(LIBRARIES[library]()) == kept()[library]


def test_every_library_is_kept():
    assert set(kept()) == set(LIBRARIES)
    assert {len(cases) > 1 for cases in kept().values()} == {True}
