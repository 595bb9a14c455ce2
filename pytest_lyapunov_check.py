"""pytest's plugin: the fixture `lyapunov_check`, which holds a checkpoint in a test.

It stands beside the library and not in it: to import the library sets flags of XLA,
which is for tests that ask for it and for no other one of the environment.
"""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def lyapunov_check() -> Callable[..., Any]:
    """Check a model and fail the test where something does not hold.

    `report = lyapunov_check("./model", fail_on="warning", effort="quick")` takes what
    `lyapunov.check` takes, and gives its report.
    """

    def held(model: Any = None, tokens: Any = None, **options: Any) -> Any:
        __tracebackhide__ = True
        import lyapunov

        report = lyapunov.check(model, tokens, **options)
        report.assert_held(options.get("fail_on", "error"))
        return report

    return held
