"""The command's side of a plan: from options to what would be run."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..findings._change_findings import coverage_findings
from ..findings._semantics import semantic_findings
from ..findings._verdict import select_findings
from ..models import Model
from ..questions._plan import Plan, plan
from ..questions._request import chosen_executions, chosen_layers, device_named
from ..questions._weight_sets import chosen_changes
from ..results._check import Finding


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
            findings=known_before(model, ids, options),
        )


def known_before(
    model: Model, ids: np.ndarray, options: Mapping[str, Any]
) -> list[Finding]:
    """The findings that configuration, adapter and the tokens' number tell alone.

    Where an implementation's paths are other functions (LYA011 to LYA014), and for
    what an adapter leaves out (LYA019), no token is needed; whether limits of dt move
    anything on these tokens, only a check says.

    **Raises:** `LyapunovError` for an adapter or checkpoint that cannot be held
    against the model, as the check would.
    """
    changed = chosen_changes(model, options["against"], options["round_weights"])
    found = semantic_findings(
        model,
        ids.shape[1],
        ids.shape[0],
        adapter_targets=[name for one in changed for name in one.adapted],
    )
    for one in changed:
        if one.coverage is not None:
            found += coverage_findings(one.name, one.coverage)
    return select_findings(found, options["select"], options["ignore"])
