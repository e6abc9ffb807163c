"""Code around enqueueing and around running jobs, and some that is ready to use."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pgqueue.outcomes import Outcome

if TYPE_CHECKING:
    from pgqueue.app import Job, Task

log = logging.getLogger("pgqueue.jobs")


@dataclass
class Request:
    """What is about to be enqueued.

    Attributes:
        task: of the jobs.
        payloads: one for each job.
        options: those of :meth:`pgqueue.Task.using`; a middleware may change them.
        ids: of the jobs, as soon as they are enqueued.
    """

    task: Task[..., Any]
    payloads: list[dict[str, Any]]
    options: dict[str, Any]
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.options.get("headers") is not None:
            self.options["headers"] = dict(self.options["headers"])

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that the jobs will have; may be changed."""
        if self.options.get("headers") is None:
            self.options["headers"] = {}
        headers: dict[str, Any] = self.options["headers"]
        return headers


class Middleware:
    """Code around enqueueing and running; subclasses override what they need. See the argument of :class:`App`.

    Both methods are context managers: what is before the ``yield`` runs before, what is after it afterwards, and an
    exception comes out of the ``yield``. The first middleware of an app is the outermost. One that lets an exception of
    a handler vanish makes the job done.

    Example:
        >>> class Tenant(Middleware):
        ...     @contextmanager
        ...     def enqueuing(self, request: Request) -> Iterator[None]:
        ...         request.headers["tenant"] = tenant.get()
        ...         yield
        ...
        ...     @contextmanager
        ...     def running(self, job: Job) -> Iterator[None]:
        ...         token = tenant.set(job.headers["tenant"])
        ...         try:
        ...             yield
        ...         finally:
        ...             tenant.reset(token)
    """

    def enqueuing(self, request: Request) -> AbstractContextManager[object]:
        """Return what is around the enqueueing of jobs, in the caller's thread or event loop."""
        return nullcontext()

    def running(self, job: Job) -> AbstractContextManager[object]:
        """Return what is around a handler, in its thread or in the event loop."""
        return nullcontext()

    def running_async(self, job: Job) -> AbstractAsyncContextManager[object]:
        """Return what is around a handler that is a coroutine function: the same, if not overridden."""
        return _awaited(self.running(job))


@asynccontextmanager
async def _awaited(manager: AbstractContextManager[object]) -> AsyncIterator[None]:
    with manager:
        yield


class Timing(Middleware):
    """Measures handlers.

    Args:
        observe: called after each with its job, the seconds it took, and its exception or None; for instance to
            feed a histogram.
    """

    def __init__(self, observe: Callable[[Job, float, BaseException | None], object]) -> None:
        self._observe = observe

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        except BaseException as error:
            self._observe(job, perf_counter() - began, error)
            raise
        self._observe(job, perf_counter() - began, None)


class Logging(Timing):
    """Logs the end of each run. What it tells is also in attributes of the record, which ``--log-json`` prints.

    Args:
        logger: where to; ``pgqueue.jobs`` if left out.
    """

    def __init__(self, logger: logging.Logger = log) -> None:
        super().__init__(self._log)
        self._logger = logger

    def _log(self, job: Job, seconds: float, error: BaseException | None) -> None:
        outcome = "done" if error is None else type(error).__name__
        self._logger.info(
            "job %s (%s) of queue %s: %s after %.3f s",
            job.id, job.task, job.queue, outcome, seconds,
            extra={
                "job": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt,
                "outcome": outcome, "seconds": round(seconds, 6),
            },
        )  # fmt: skip


class Tracing(Middleware):
    """OpenTelemetry: a span for each enqueue and each run, in one trace, as the context travels in the headers.

    Needs the package ``opentelemetry-api`` (``pgqueue[opentelemetry]``), and does nothing until the application has set
    up a tracer provider.
    """

    def __init__(self) -> None:
        from opentelemetry import propagate, trace

        self._propagate = propagate
        self._trace = trace
        self._tracer = trace.get_tracer("pgqueue")

    @contextmanager
    def enqueuing(self, request: Request) -> Iterator[None]:
        kind = self._trace.SpanKind.PRODUCER
        about = _attributes("send", request.options["queue"], request.task.name)
        with self._tracer.start_as_current_span(f"send {request.task.name}", kind=kind, attributes=about) as span:
            self._propagate.inject(request.headers)
            yield
            span.set_attribute("messaging.batch.message_count", len(request.ids))
            if len(request.ids) == 1:
                span.set_attribute("messaging.message.id", str(request.ids[0]))

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        context = self._propagate.extract(job.headers if isinstance(job.headers, dict) else {})
        about = _attributes("process", job.queue, job.task)
        about |= {"messaging.message.id": str(job.id), "pgqueue.attempt": job.attempt}
        kind = self._trace.SpanKind.CONSUMER
        with self._tracer.start_as_current_span(f"process {job.task}", context=context, kind=kind, attributes=about):
            yield


def _attributes(operation: str, queue: str, task: str | None) -> dict[str, str | int]:
    return {
        "messaging.system": "pgqueue",
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "pgqueue.task": task or "",
    }


class Sentry(Middleware):
    """Sentry: each run is a transaction, and what handlers raise, other than an :class:`Outcome`, is reported.

    Needs the package ``sentry-sdk`` (``pgqueue[sentry]``), set up by the application.
    """

    def __init__(self) -> None:
        import sentry_sdk

        self._sdk = sentry_sdk

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        with self._sdk.isolation_scope() as scope:
            scope.set_tag("pgqueue.queue", job.queue)
            scope.set_context("pgqueue", {"job": job.id, "task": job.task, "attempt": job.attempt})
            with self._sdk.start_transaction(op="queue.process", name=job.task or "job"):
                try:
                    yield
                except Outcome:
                    raise
                except BaseException as error:
                    self._sdk.capture_exception(error)
                    raise
