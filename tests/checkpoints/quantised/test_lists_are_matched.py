"""Lists of what was to be left alone: names, wildcards, expressions, hostile ones."""

import time

import pytest

from lyapunov.checkpoints.quantised._patterns import Kept, matcher


NAME = "model.layers.3.mixer.conv1d"


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        (NAME, True),
        ("conv1d", True),
        ("mixer.conv1d", True),
        ("model.layers.3", True),
        ("conv1", False),
        ("layers.3.mixer.conv", False),
        ("*mixer.conv1d*", True),
        ("*conv1d", True),
        ("conv1d*", False),
        ("model.layers.?.mixer*", True),
        ("model[layers]*", False),
        ("re:.*conv1d$", True),
        ("re:model\\.layers\\.[0-5]\\..*", True),
        ("re:model\\.layers\\.(0|1|2)\\..*", False),
        ("re:conv1d", False),
        ("re:.*\\.\\d+\\.mixer", True),
    ],
)
def test_what_an_entry_means(entry, meant):
    kept = Kept([entry])
    assert kept.whole
    assert kept.means(NAME) is meant
    assert kept.idle([NAME]) == ([] if meant else [entry])


@pytest.mark.parametrize(
    "entry",
    [
        "re:(a+)+$",
        "re:(a|aa)*b",
        "re:(?:.*.*)*x",
        "re:.*a.*a.*a.*a.*a.*b",
        "re:(.)\\1*x",
        "re:a{1000}{1000}",
        "re:(",
        "re:[",
        "re:(?=a)b",
        "*a*a*a*a*a*b",
        f"re:{'x' * 300}",
    ],
)
def test_what_could_take_for_ever_is_not_tried(entry):
    assert matcher(entry) is None
    kept = Kept([entry])
    assert not kept.whole
    assert not kept.means("a" * 200)
    assert kept.idle(["a" * 200]) == []


def test_hostile_entries_that_are_tried_are_soon_done():
    """The worst that is let through: three loops over the longest names."""
    began = time.process_time()
    kept = Kept(["re:.*a.*a.*b", "*a*a*b", "re:a+a+a+b"])
    assert len(kept.idle(["a" * 200] * 100)) == 3
    assert time.process_time() - began < 30


def test_long_lists_beside_many_modules_take_no_minute():
    names = [
        f"model.layers.{i}.mlp.experts.{j}.up" for i in range(40) for j in range(200)
    ]
    began = time.process_time()
    kept = Kept([*names, *(f"{name}_proj" for name in names[:99])])
    assert len(kept.idle(names)) == 99
    assert all(map(kept.means, names))
    assert time.process_time() - began < 20
