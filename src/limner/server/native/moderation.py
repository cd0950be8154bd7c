"""The moderation queue: images that the safety policy flags, blurs or blocks. For operators."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from limner.server.auth import Operator
from limner.server.bodies import body_schema, read_body
from limner.server.state import ServerState, in_thread, state_of
from limner.service.moderation import Moderation
from limner.service.reviews import Decision, DeliveredAs, Review, ReviewState

from .jobs import Before, Limit
from .viewing import note_view
from .views import Page, Seconds, checked_id

router = APIRouter(prefix="/moderation", tags=["moderation"])

_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}

Note = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
Policy = Literal["flag", "blur", "block"]


class NewDecision(BaseModel):
    """A decision about an image."""

    model_config = ConfigDict(extra="forbid")

    decision: Decision = Field(
        description="`uphold`: it stays as the policy says; `release`: it is delivered in clear; `block`: it "
        "is taken down."
    )
    note: Note = Field(description="Reason. The account sees it in a notice.")


class Reversal(BaseModel):
    """The end of a decision."""

    model_config = ConfigDict(extra="forbid")

    note: Note = Field(description="Reason. The account sees it in a notice.")


class DecidedView(BaseModel):
    """What a person has decided."""

    decision: Decision | Literal["reverse"] = Field(description="What; `reverse` undoes the one before.")
    actor: str = Field(description="Who: an account, `cli`, or `erased`.")
    at: Seconds
    note: str = Field(description="Why.")


class ReviewView(BaseModel):
    """An image that the safety policy flags, blurs or blocks."""

    id: str = Field(description="Id of the review.")
    account_id: str = Field(description="Account whose image it is.")
    job_id: str = Field(description="Job that made it.")
    set_id: str = Field(description="Set of the job.")
    image_id: str | None = Field(description="Id of the image; null for one that was blocked and not stored.")
    stage: Literal["prompt", "image"] = Field(
        description="What the policy's decision is about: the prompts, or the pixels."
    )
    action: Policy = Field(description="What the policy does.")
    rule: str = Field(description="The rule that decided.")
    score: float = Field(description="Its score.")
    version: str = Field(description="Version of the policy.")
    reason: str = Field(description="What the policy says about the image.")
    state: ReviewState = Field(description="The decision of a person that holds.")
    delivery: DeliveredAs | None = Field(
        description="How the image is delivered now; null where it is not stored any more."
    )
    created_at: Seconds
    decisions: list[DecidedView] = Field(description="What people have decided, oldest first.")


class ReviewPage(Page):
    """Reviews, newest first."""

    items: list[ReviewView] = Field(description="The reviews.")


@router.get("")
async def list_reviews(
    request: Request,
    caller: Operator,
    state: Annotated[
        ReviewState | None, Query(description="Only those of this state; `open` are the undecided ones.")
    ] = None,
    action: Annotated[Policy | None, Query(description="Only those with this action of the policy.")] = None,
    account: Annotated[str | None, Query(max_length=128, description="Only those of this account.")] = None,
    limit: Limit = 50,
    before: Before = None,
) -> ReviewPage:
    """Reviews of all accounts, newest first. For operators."""
    await note_view(request, caller, account, "list.viewed", "reviews")
    found = await in_thread(
        state_of(request).ledger.list_reviews,
        account,
        state=state,
        action=action,
        limit=limit,
        before=before,
    )
    items = [_view(one) for one in found]
    return ReviewPage(items=items, next=items[-1].id if len(items) == limit else None)


@router.get("/{review_id}")
async def show_review(request: Request, caller: Operator, review_id: str) -> ReviewView:
    """A review. For operators."""
    found = await in_thread(state_of(request).ledger.get_review, checked_id(review_id, "review"))
    await note_view(request, caller, found.account_id, "review.viewed", found.id)
    return _view(found)


@router.get("/{review_id}/image", response_class=Response, responses=_PNG)
async def covered_image(request: Request, caller: Operator, review_id: str) -> Response:
    """The image, delivered or withheld, blurred. For operators."""
    moderation, name = _moderation(state_of(request)), checked_id(review_id, "review")
    return Response(await in_thread(moderation.covered, name), media_type="image/png")


@router.post("/{review_id}/open", response_class=Response, responses=_PNG)
async def open_image(request: Request, caller: Operator, review_id: str) -> Response:
    """The image with its exact pixels and its record; an entry of the audit log. For operators."""
    moderation, name = _moderation(state_of(request)), checked_id(review_id, "review")
    data = await in_thread(moderation.opened, name, actor=caller.account.id)
    return Response(data, media_type="image/png")


@router.post("/{review_id}/decide", openapi_extra=body_schema(NewDecision), response_model=ReviewView)
async def decide(request: Request, caller: Operator, review_id: str) -> ReviewView:
    """Decide an open review. 409 if it is decided, or if the decision changes nothing. For operators."""
    server, name = state_of(request), checked_id(review_id, "review")
    body = await read_body(request, NewDecision)
    found = await in_thread(_moderation(server).decide, name, body.decision, note=body.note)
    return _decided(server, found, body.decision)


@router.post("/{review_id}/reverse", openapi_extra=body_schema(Reversal), response_model=ReviewView)
async def reverse(request: Request, caller: Operator, review_id: str) -> ReviewView:
    """Undo the decision that holds; it stays on record. 409 for an open review. For operators."""
    server, name = state_of(request), checked_id(review_id, "review")
    body = await read_body(request, Reversal)
    found = await in_thread(_moderation(server).reverse, name, note=body.note)
    return _decided(server, found, "reverse")


def _moderation(server: ServerState) -> Moderation:
    return Moderation(server.ledger, server.release)


def _decided(server: ServerState, review: Review, decision: str) -> ReviewView:
    """A review that has just been decided, which is counted; event streams are informed."""
    server.metrics.count("limner_review_decisions_total", action=review.action, decision=decision)
    server.hub.changed()
    return _view(review)


def _view(review: Review) -> ReviewView:
    policy = {name: review.decision[name] for name in ("rule", "score", "version", "reason")}
    own = {name: getattr(review, name) for name in ReviewView.model_fields if name not in policy}
    own["decisions"] = [DecidedView(**vars(one)) for one in review.decisions]
    return ReviewView(**own, **policy)
