"""Liveness, readiness and metrics, for load balancers, supervisors and Prometheus."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from .auth import is_local, principal
from .problems import Refused, SafeJSON
from .state import in_thread, state_of

router = APIRouter(tags=["health"])


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> dict[str, str]:
    """Liveness: the API process answers."""
    return {"status": "ok"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Readiness: 200 if requests can be served, else 503 with the reasons."""
    problems = dict(await in_thread(state_of(request).health.problems))
    status = "ready" if not problems else "not ready"
    return SafeJSON({"status": status, "problems": problems}, 503 if problems else 200)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus. Needs an operator's key, except on loopback or where metrics are public."""
    state = state_of(request)
    if not (state.settings.public_metrics or is_local(request)):
        caller = await principal(request, "read")
        if not caller.is_operator:
            raise Refused(403, "only operators may read metrics")
    text, media_type = await in_thread(state.metrics.exposition, request.headers.get("accept", ""))
    return Response(text, media_type=media_type)
