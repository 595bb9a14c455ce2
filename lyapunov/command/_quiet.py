"""Lines of other libraries on stderr: ours are the ones that a user acts on."""

import logging
import os
import sys
import warnings


VARIABLES = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Read by XLA and transformers as they are loaded; what a user has set stays."""


def hush() -> None:
    """Silence XLA, JAX and transformers, and warnings unless Python's -W says else.

    To be called before they are imported. What ends a process (a fatal check of XLA)
    is said still.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    # of JAX not the whole: from a level of its own it makes that of XLA as well
    for name in ("jax._src.xla_bridge", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
