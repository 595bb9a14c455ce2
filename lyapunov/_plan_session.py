"""The command's side of a plan: from options to what would be run."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ._plan import Plan, plan
from ._request import chosen_executions, chosen_layers, device_named
from .models import Model


def planned(model: Model, ids: np.ndarray, options: Mapping[str, Any]) -> Plan:
    """The plan of the check that the same options would start.

    **Raises:** `UsageError` for what the check would refuse as well.
    """
    layers = chosen_layers(model, options["layers"])
    with jax.default_device(device_named(options["device"])):
        executions = chosen_executions(
            model,
            options["precision"],
            options["state_precision"],
            options["mode"],
            options["measure"],
            options["constants"],
        )
        return plan(
            model,
            ids,
            executions,
            layers=layers,
            changes=len(options["round_weights"]) + (options["against"] is not None),
        )
