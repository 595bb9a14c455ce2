"""What comes behind the last sublayer, compiled while the first ones are at work.

A network without sublayers has the same head, and its programs are those of the whole
network's: whoever has cores to spare need not wait for them at the end.
"""

import copy
import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial

import numpy as np

from .._devices import as_here, chosen_device, has_gpu
from ..implementations import Execution
from ..implementations._registry import measuring
from ..models import Model
from ._request import Request


# Of fewer, the first sublayer's bounds have a use for all.
CORES = 8


def rehearsed(
    run: Callable,
    model: Model,
    ids: np.ndarray,
    executions: list[Execution],
    request: Request,
    workers: Executor,
) -> Future | None:
    """Run the head alone, in a worker, where that comes to be sooner; else nothing.

    What becomes of it nobody asks: the run itself comes to the same, and says so.

    **Arguments:**

    - `run`: `run_layers`.
    """
    if not has_gpu() and (os.cpu_count() or 1) < CORES:
        return None
    measured = measuring(request.measure)
    # what cannot leave out a head runs a whole network, which takes as long again
    if measured is None or not measured.runs_without_head or not model.has_head:
        return None
    head = copy.copy(model)
    head.config = dataclasses.replace(model.config, sublayers=())
    effort = dataclasses.replace(request.effort, ball=False, readouts=0, growth=False)
    alone = dataclasses.replace(request, effort=effort)
    work = partial(run, head, ids, executions, (), alone)
    return workers.submit(as_here, chosen_device(), lambda: work() and None)
