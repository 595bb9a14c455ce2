import pytest


@pytest.fixture(scope="session")
def held():
    """A report without errors."""
    from .example import example_report

    return example_report()


@pytest.fixture(scope="session")
def troubled():
    """A report in which every kind of finding fires."""
    from .example import troubled_report

    return troubled_report()
