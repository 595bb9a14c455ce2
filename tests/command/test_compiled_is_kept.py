"""What is compiled is kept where nobody else can write, and never a reason to fail."""

import json
import os
import subprocess
import sys
import warnings

import pytest

from lyapunov.command import _compile_cache
from lyapunov.command._compile_cache import Compiled, where_compiled_is_kept

from ..helpers import not_none


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder of the test's own, and none of the variables that decide."""
    for name in ("XDG_CACHE_HOME", _compile_cache.VARIABLE, _compile_cache.OF_JAX):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_it_lies_in_the_cache_folder_for_its_user_alone(home, monkeypatch):
    """Assert the place, with and without XDG's variable, and the modes."""
    folder = not_none(where_compiled_is_kept().folder)
    assert folder.parent == home / ".cache/lyapunov-check/compiled"
    for path in (folder, folder.parent, folder.parent.parent):
        assert not_none(path).stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert not_none(where_compiled_is_kept().folder).is_relative_to(home / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert where_compiled_is_kept().folder == folder


def test_another_processor_or_jax_has_a_folder_of_its_own(monkeypatch):
    """Assert that the folder's name depends on both."""
    names = {_compile_cache._machine()}
    monkeypatch.setattr(_compile_cache.platform, "processor", lambda: "another")
    names.add(_compile_cache._machine())
    monkeypatch.setattr(_compile_cache.metadata, "version", lambda name: "99.0")
    names.add(_compile_cache._machine())
    assert len(names) == 3


def no_home(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home / "nowhere"))
    return "no home"


def full_disk(home, monkeypatch):
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr(_compile_cache.shutil, "disk_usage", lambda _: usage)
    return "nearly full"


def read_only(home, monkeypatch):
    def refuse(self, **_):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(_compile_cache.Path, "touch", refuse)
    return "Read-only file system"


def others_write(home, monkeypatch):
    (not_none(where_compiled_is_kept().folder).parent).chmod(0o777)
    return "chmod 700"


def others_write_above(home, monkeypatch):
    home.chmod(0o777)
    return f"others may write to {home}"


def somebody_elses(home, monkeypatch):
    monkeypatch.setattr(_compile_cache.os, "geteuid", lambda: os.getuid() + 1)
    return "somebody else's"


def a_link(home, monkeypatch):
    folder = not_none(where_compiled_is_kept().folder)
    folder.rmdir()
    (home / "target").mkdir(mode=0o700)
    folder.symlink_to(home / "target")
    return "no folder"


def a_file(home, monkeypatch):
    (home / ".cache").mkdir()
    (home / ".cache/lyapunov-check").write_text("")
    return "File exists"


@pytest.mark.parametrize(
    "trouble",
    [
        no_home, full_disk, read_only, others_write, others_write_above,
        somebody_elses, a_link, a_file,
    ],
)  # fmt: skip
def test_where_it_cannot_be_kept_that_is_said(home, monkeypatch, trouble):
    """Assert no folder and the reason, and that `used` is then nothing."""
    word = trouble(home, monkeypatch)
    kept = where_compiled_is_kept()
    assert kept.folder is None
    assert word in kept.reason
    assert word in kept.told()
    with kept.used():
        pass


def test_the_user_decides(home, monkeypatch):
    """Assert that the option, the variable and JAX's own folder are obeyed."""
    assert where_compiled_is_kept(False) == Compiled()
    for word in ("0", "off", "NO"):
        monkeypatch.setenv(_compile_cache.VARIABLE, word)
        assert where_compiled_is_kept() == Compiled()
    monkeypatch.setenv(_compile_cache.VARIABLE, "1")
    assert where_compiled_is_kept().folder is not None
    monkeypatch.setenv(_compile_cache.OF_JAX, "/mine")
    kept = where_compiled_is_kept()
    assert kept.folder is None
    assert kept.reason is None
    assert "/mine" in kept.told()


def test_the_oldest_go_first(home, monkeypatch):
    """Assert that the folder ends under its limit, with what was used last."""
    monkeypatch.setattr(_compile_cache, "LIMIT", 250)
    for age in range(5):
        path = home / f"jit_f{age}-abc-cache"
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    _compile_cache._tidy(home, set())
    assert sorted(p.name for p in home.iterdir()) == [
        "jit_f0-abc-cache",
        "jit_f1-abc-cache",
    ]


def test_another_run_may_take_entries_away_meanwhile(home, monkeypatch):
    """Assert that a file that is gone when it is looked at is none."""
    (home / "jit_f-abc-cache").write_bytes(b"x" * 2**20)
    there = list(home.iterdir())
    monkeypatch.setattr(
        _compile_cache.Path, "iterdir", lambda self: [*there, self / "jit_g-def-cache"]
    )
    assert Compiled(home).told().startswith("1 compiled programs, 1 MiB")
    _compile_cache._tidy(home, {"jit_g"})
    assert there[0].exists()


def test_what_jax_could_not_read_is_taken_out(home, monkeypatch):
    """Assert it of the program that the warning names, and that others are shown."""
    for name in ("jit_f-abc-cache", "jit_f_more-abc-cache"):
        (home / name).write_bytes(b"x")
    told = "Error reading persistent compilation cache entry for 'jit_f': error: Error"
    failed, others = set(), []
    monkeypatch.setattr(warnings, "showwarning", lambda *said: others.append(said[0]))
    warnings.simplefilter("always")
    with _compile_cache._heard(failed):
        for text in (told, "another"):
            warnings.warn(text, stacklevel=1)
    assert [str(one) for one in others] == ["another"]
    assert failed == {"jit_f"}
    assert "1 compiled programs" in Compiled(home, failed=failed).told_of_failures()
    _compile_cache._tidy(home, failed)
    assert [p.name for p in home.iterdir()] == ["jit_f_more-abc-cache"]


PROGRAM = """
import sys
from lyapunov.command._compile_cache import where_compiled_is_kept
import lyapunov

kept = where_compiled_is_kept()
with kept.used():
    import jax, jax.numpy as jnp
    print(float(jax.jit(lambda x: jnp.sum(jnp.sin(x) ** 2))(jnp.arange(9.0))))
print(len(list(kept.folder.iterdir())), sorted(kept.failed))
"""


def run(home, **variables):
    environment = {**os.environ, "HOME": str(home), "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.splitlines()


def test_a_spoiled_entry_is_compiled_again_and_flags_are_in_the_key(home):
    """Assert the same number cold, warm, beside a cut entry and one that lies; that
    the entry is whole again afterwards; and that other flags find none."""
    value, state = run(home)
    count, failed = state.split(maxsplit=1)
    assert int(count) > 1
    assert failed == "[]"
    assert run(home) == [value, state]
    folder = next((home / ".cache/lyapunov-check/compiled").iterdir())
    cut, *lying = sorted(folder.iterdir())
    cut.write_bytes(cut.read_bytes()[:-9])
    for path in lying:
        path.write_bytes(b"\0" * 99)
    told, after = run(home)
    assert told == value
    assert after.startswith("0 ['jit")  # taken out, to be kept again by the next run
    assert run(home) == [value, state]
    flagged = run(home, XLA_FLAGS="--xla_cpu_enable_fast_math=false")
    assert flagged == [value, f"{2 * int(count)} []"]


@pytest.mark.slow
def test_a_warm_report_is_the_cold_one(home, tmp_path):
    """Assert every figure, bit for bit, and that a warm run keeps nothing new: all is
    found, in whatever order sets are walked through."""
    reports, there = [], []
    for seed in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "lyapunov", "--length", "16", "--json", "-v"],
            capture_output=True, text=True, check=False,
            env={**os.environ, "HOME": str(home), "PYTHONHASHSEED": str(seed)},
        )  # fmt: skip
        report = json.loads(done.stdout)
        report["summary"].pop("seconds")
        report["environment"].pop("date")
        reports.append(report)
        assert "are kept in" in done.stderr
        there.append({path.name for path in home.rglob("*-program")})
    assert reports[0] == reports[1]
    assert there[0] == there[1]
    assert len(there[0]) > 9
