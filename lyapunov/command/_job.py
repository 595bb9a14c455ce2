"""Checkpoints shared among the processes of a job, of one host or several, and one
report of all.

JAX's own service says who is there and carries what was found. Everybody computes on
devices of its own, and no array goes from one process to another.
"""

import dataclasses
import importlib
import io
import pickle
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lyapunov._errors import UsageError


AUTO = "auto"
FORM = re.compile(r"(?P<address>.+:\d+),(?P<process>\d+)/(?P<processes>\d+)")
FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds; a process that ends without a word ends all others long before."""

FOUND, REPORTED = "lyapunov-check/found/{}", "lyapunov-check/reported"


class Job(NamedTuple):
    """The processes that share what was asked for; alone unless told otherwise."""

    process: int = 0
    processes: int = 1

    @property
    def reports(self) -> bool:
        """Whether this is the process that says what all of them found."""
        return self.process == 0

    def share(self, sources: Sequence[Any]) -> list[Any]:
        """Choose what this process does: every `processes`-th from its own on."""
        return list(sources[self.process :: self.processes])

    def gathered(self, sources: Sequence[str], found: list[Any]) -> list[Any]:
        """Give what all found, in the order of `sources`, to the process that reports;
        nothing to any other, which waits here until it has.

        **Arguments:**

        - `found`: of the own share, data classes of this package with `source`.

        **Raises:** `UsageError` where another process was given other sources.
        """
        if self.processes == 1:
            return found
        from jax._src.distributed import global_state

        service: Any = global_state.client
        if not self.reports:
            service.key_value_set_bytes(FOUND.format(self.process), pickle.dumps(found))
            return self._leave(service)
        everything: list[Any] = [None] * len(sources)
        strangers = []
        for process in range(self.processes):
            if process:
                key = FOUND.format(process)
                told = service.blocking_key_value_get_bytes(key, FOREVER)
                found = _Found(io.BytesIO(told)).load()
            if [one.source for one in found] == sources[process :: self.processes]:
                everything[process :: self.processes] = found
            else:
                strangers.append(process)
        self._leave(service)
        if strangers:
            raise UsageError(
                f"process {strangers[0]} was given other checkpoints than process 0",
                hint="give all processes the same, in the same order",
            )
        return everything

    def _leave(self, service: Any) -> list[Any]:
        import jax

        service.wait_at_barrier(REPORTED, FOREVER)
        jax.distributed.shutdown()
        return []


def joined(where: str | None) -> Job:
    """Join the job before anything is computed.

    **Arguments:**

    - `where`: None alone; `auto` what Slurm or Open MPI say; else
      `HOST:PORT,PROCESS/PROCESSES`, with the address of process 0.

    **Raises:** `UsageError` for any other form, and where the others are not found.
    """
    if where is None:
        return Job()
    given = {} if where == AUTO else parsed(where)
    import jax

    try:
        jax.distributed.initialize(**given)
        # all say at once which devices they have
        jax.local_devices()
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--distributed {where}: the other processes are not found: {reason}",
            hint="start all of them within five minutes, under srun or mpirun, or each "
            "with --distributed HOST:PORT,PROCESS/PROCESSES",
        ) from error
    return Job(jax.process_index(), jax.process_count())


def parsed(where: str) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`.

    **Raises:** `UsageError` for what is not `HOST:PORT,PROCESS/PROCESSES`.
    """
    form = FORM.fullmatch(where)
    if form is None or not int(form["process"]) < int(form["processes"]):
        raise UsageError(
            f"--distributed takes auto or HOST:PORT,PROCESS/PROCESSES, not {where!r}",
            hint="of two processes: --distributed node0:4321,0/2 and ...,1/2",
        )
    return {
        "coordinator_address": form["address"],
        "process_id": int(form["process"]),
        "num_processes": int(form["processes"]),
    }


class _Found(pickle.Unpickler):
    """Makes data classes of this package, and numbers, and nothing else: whoever
    reaches the port could have sent it."""

    def find_class(self, module: str, name: str) -> Any:
        """**Raises:** `UnpicklingError` for any other."""
        if module.split(".")[0] == "lyapunov" and "." not in name:
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no result")
