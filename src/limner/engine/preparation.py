"""Prepares requests in threads of their own: loads their models, downloads the networks that they name, and
makes their plans."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial

from limner.model.model import Model

from .jobs import DeviceJob
from .plan import Models, Plan, opens_files, plan_request
from .workers import Workers

_LOADS, _FETCHES, _PLANS = 1, 16, 2  # threads; fetches wait for the hub and must not hold up others


class Preparation:
    """Prepares requests. Only the thread of a device may use it.

    Args:
        wake: Called from another thread whenever something is done.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loader = Workers("limner-loader", _LOADS)
        self._fetcher = Workers("limner-fetcher", _FETCHES)
        self._planner = Workers("limner-planner", _PLANS)
        self._lock = threading.Lock()
        self._fetches: dict[Hashable, Future[None]] = {}  # in progress, by model and names

    def of(self, job: DeviceJob) -> tuple[Models, Plan] | None:
        """The models and the plan of a request, or None: then what is missing has been started.

        Raises:
            LimnerError: As `limner.load`, `Model.fetch` and `plan_request`.
        """
        models = self._models_of(job)
        if models is None or not self._fetched(job, models["model"]):
            return None
        plan = self._plan_of(job, models)
        return None if plan is None else (models, plan)

    def _models_of(self, job: DeviceJob) -> Models | None:
        """The models of a job, if they are in memory; otherwise they are being loaded.

        Those that were loaded for it are held until `let_go`. Others are looked up whenever they are needed,
        as they may have been dropped in the meantime.
        """
        if job.loading is not None:
            return job.loading.result() if job.loading.done() else None
        models = job.client.source.find_all(job.handle.request)
        if models is None:
            job.loading = self._loader.submit(partial(job.client.source.get_all, job.handle.request))
            job.loading.add_done_callback(lambda _: self._wake())
        return models

    def let_go(self, job: DeviceJob) -> None:
        """Let go of the models that are loaded or being loaded for a job: an image holds them, or it has
        ended."""

        def release(loaded: Future[Models]) -> None:
            if loaded.exception() is None:
                job.client.source.let_go(loaded.result())

        loading, job.loading = job.loading, None
        if loading is not None:
            loading.add_done_callback(release)

    def _fetched(self, job: DeviceJob, model: Model) -> bool:
        """Whether the auxiliary networks of a request are on this machine; otherwise they are being fetched,
        once for all requests that name them. Raises as `Model.fetch`."""
        request = job.handle.request
        if not (request.controls or request.image_prompts):
            return True
        if job.fetching is None or job.fetching[0] is not model:
            adapters = tuple((prompt.model, prompt.image_encoder) for prompt in request.image_prompts)
            key = model, tuple(control.model for control in request.controls), adapters
            with self._lock:
                fetch = self._fetches.get(key)
                if fetch is None:
                    fetch = self._fetches[key] = self._fetcher.submit(partial(model.fetch, request))
            fetch.add_done_callback(lambda _: self._arrived(key))
            job.fetching = model, fetch
        if not job.fetching[1].done():
            return False
        job.fetching[1].result()
        return True

    def _arrived(self, fetched: Hashable) -> None:
        with self._lock:
            self._fetches.pop(fetched, None)
        self._wake()

    def _plan_of(self, job: DeviceJob, models: Models) -> Plan | None:
        """The plan of a job, once it is made. Raises as `plan_request`."""
        if job.planning is not None:
            if not job.planning.done():
                return None
            planning, job.planning = job.planning, None
            job.plan = planning.result()
        if job.plan is None or not job.plan.is_for(models):
            client, request = job.client, job.handle.request
            models["model"].executor  # noqa: B018 (made here, as two threads could make two)
            given = job.handle.resolved or request
            make = partial(plan_request, given, models, client.limits, one_model=client.source.single)
            if not opens_files(request):
                job.plan = make()
            else:
                job.plan, job.planning = None, self._planner.submit(make)
                job.planning.add_done_callback(lambda _: self._wake())
        return job.plan
