"""What a request would take: its images, resolved, with seconds, memory and cost."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from limner.request import GenerationRequest
from limner.request.dial import Dial
from limner.server.auth import Reader
from limner.server.bodies import body_schema, read_envelope
from limner.server.state import in_thread, state_of
from limner.service.intake import Prepared
from limner.service.ledger.reading import Load

router = APIRouter(tags=["requests"])


class EstimateBody(BaseModel):
    """A request to estimate."""

    model_config = ConfigDict(extra="forbid")

    request: GenerationRequest = Field(description="What would be generated.")
    dial: Dial | None = Field(
        default=None, description="A field that takes several values in turn, as in `POST /api/v1/jobs`."
    )


class EstimateView(BaseModel):
    """Estimate of what a request would take."""

    images: int = Field(description="Number of images, each a job.")
    seconds: float = Field(description="Device seconds of all images, by what was measured lately.")
    waiting_seconds: float = Field(description="Seconds until it would start, after the jobs that wait now.")
    memory: int = Field(description="Bytes of the weights and of the largest forward pass of one image.")
    fits: bool = Field(description="Whether that is within the device's memory.")
    cost: float = Field(description="Price of the seconds.")
    currency: str = Field(description="Currency of the cost.")
    device: str = Field(description="Device that it is estimated for.")
    model: str = Field(description="Id of the checkpoint in the catalogue.")
    request: dict[str, Any] = Field(
        description="The request with every default filled in; with a dial, that of its first value."
    )
    warnings: list[str] = Field(description="Warnings: what would not be done as requested.")


@router.post("/estimates", openapi_extra=body_schema(EstimateBody), response_model=EstimateView)
async def estimate(request: Request, caller: Reader) -> EstimateView:
    """Resolve and check a request without submitting it."""
    state = state_of(request)
    body = await read_envelope(request, EstimateBody)

    def work() -> tuple[tuple[Prepared, ...], Load]:
        return state.intake.prepare_all(caller, body.request, body.dial), state.ledger.load()

    prepared, load = await in_thread(work)
    first, taken, pace = prepared[0], [one.estimate for one in prepared], load.work_per_second or 1.0
    seconds = sum(one.seconds for one in taken) / pace
    return EstimateView(
        images=sum(len(one.jobs) for one in prepared),
        seconds=seconds,
        waiting_seconds=load.all_waiting_seconds / pace,
        memory=max(one.memory for one in taken),
        fits=all(one.fits for one in taken),
        cost=seconds * state.settings.price_of(state.intake.device_name),
        currency=state.settings.currency,
        device=state.intake.device_name,
        model=first.entry.id,
        request=first.resolved.request.model_dump(mode="json", exclude_none=True),
        warnings=list(dict.fromkeys(said for one in prepared for said in one.warnings)),
    )
