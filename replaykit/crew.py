"""Work that is cut into jobs and done on a cluster, with the results in the order of the jobs.

    crew = RayCrew()                  # all machines of a Ray cluster
    for counts in crew.map(count, chunks): ...
    crew.close()

A job and its result are pickled. Whoever does a job, and however many there are, the results are the same.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from typing import Any, Protocol, TypeVar

from replaykit.errors import EngineError, MissingExtra

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_PER_CPU = 4  # of a cluster, in one round of Ray Data


class Mapper(Protocol):
    """What does jobs."""

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """The results in the order of the jobs. ``function`` can be pickled, and so can its jobs and results."""
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


class RayCrew:
    """All machines of a Ray cluster, by Ray Data: the one that RAY_ADDRESS names or that runs here, else this machine alone.

    Jobs go out in rounds of a few for each CPU of the cluster. What a job reads and writes by its path must be on storage
    that all machines see, and each needs replaykit. Raises MissingExtra without ray.
    """

    def __init__(self) -> None:
        if find_spec("ray") is None:
            raise MissingExtra("ray", "ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError) as error:
                raise EngineError(f"no Ray cluster could be had: {error}; `ray start --head` starts one") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.DataContext.get_current().execution_options.preserve_order = True

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        import ray

        def do(row: dict[str, Any]) -> dict[str, Any]:
            return {"result": pickle.dumps(function(pickle.loads(row["job"])))}

        size = JOBS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while round_ := list(islice(jobs, size)):
            rows = ray.data.from_items([{"job": pickle.dumps(job)} for job in round_], override_num_blocks=len(round_))
            for row in rows.map(do).iter_rows():
                yield pickle.loads(row["result"])

    def close(self) -> None:
        import ray

        if self._ours:
            ray.shutdown()
