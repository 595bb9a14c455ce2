"""Ways to spoil what a quantised file holds."""

import json
import re

import numpy as np


P = "backbone.layers.0.mixer.in_proj"


def put(name, value):
    """A change that puts a value in the place of a tensor."""

    def change(tensors):
        tensors[name] = value(tensors[name].copy())

    return change


def at(index, value):
    def changed(array):
        array.reshape(-1)[index] = value
        return array

    return changed


def without(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def renamed(old, new):
    def change(tensors):
        for name in list(tensors):
            if old in name:
                tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def nan_code(array):
    array.view(np.uint8).reshape(-1)[3] = 0x7F
    return array


def as_json(**entries):
    """A change of the bytes that say what bitsandbytes stored."""

    def changed(array):
        told = json.loads(array.tobytes()) | entries
        return np.frombuffer(json.dumps(told).encode(), np.uint8)

    return changed


def as_bytes(old, new):
    return lambda array: np.frombuffer(re.sub(old, new, array.tobytes()), np.uint8)


STATE = f"{P}.weight.quant_state.bitsandbytes__nf4"
