"""Reviews as values: images that the safety policy flags, blurs or blocks, what people decide about them, and
notices to accounts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .jobs import ReviewStage

DeliveredAs = Literal["clear", "blurred", "withheld"]
"""How an image is delivered."""

Cause = Literal["policy", "uphold", "release", "block", "reverse"]
"""Why a notice is given: what the policy said, or what a person decided."""

BY_POLICY: Mapping[str, DeliveredAs] = {"flag": "clear", "blur": "blurred", "block": "withheld"}
"""How images are delivered by the action of the policy."""

Decision = Literal["uphold", "release", "block"]
"""What a person decides: the policy was right; the image is delivered in clear; it is withheld."""

ReviewState = Literal["open", "upheld", "released", "blocked"]
"""The decision that holds."""


@dataclass(frozen=True)
class DeliveredFile:
    """What is delivered of an image.

    Attributes:
        sha256: Hash of the file, in hex; None: it is the master.
        bytes: Its size; 0 where it is the master.
    """

    sha256: str | None
    bytes: int


@dataclass(frozen=True)
class Decided:
    """What a person has decided.

    Attributes:
        decision: What; "reverse" undoes the decision before it.
        actor: Who: an account, "cli", or "erased".
        at: Seconds since the epoch.
        note: Why.
    """

    decision: Decision | Literal["reverse"]
    actor: str
    at: float
    note: str


@dataclass(frozen=True)
class Review:
    """An image that the safety policy flags, blurs or blocks.

    Attributes:
        id: Its id.
        account_id, job_id, set_id: Whose image it is.
        image_id: The image; None: it was blocked and not stored.
        stage: What the decision of the policy is about: the prompts of the image, or its pixels.
        action: What the policy does: "flag", "blur" or "block".
        decision: The decision of the policy, as JSON.
        state: The decision of a person that holds.
        delivery: How the image is delivered now; None: it is deleted, or was not stored.
        created_at: Seconds since the epoch.
        decisions: What people have decided, oldest first.
    """

    id: str
    account_id: str
    job_id: str
    set_id: str
    image_id: str | None
    stage: ReviewStage
    action: str
    decision: Mapping[str, Any] = field(repr=False)
    state: ReviewState
    delivery: DeliveredAs | None
    created_at: float
    decisions: tuple[Decided, ...] = ()


@dataclass(frozen=True)
class Notice:
    """A notice to an account about an image.

    Attributes:
        id: Its id.
        account_id: The account that gets it.
        job_id, image_id: What it is about; no image where it was blocked and not stored.
        cause: Why it is given.
        delivery: How the image is delivered from now on.
        reason: What the policy says.
        note: Reason that the person gave who decided; "" where it was the policy.
        at: Seconds since the epoch.
        read_at: When the account has read it; None: not yet.
    """

    id: str
    account_id: str
    job_id: str
    image_id: str | None
    cause: Cause
    delivery: DeliveredAs
    reason: str
    note: str
    at: float
    read_at: float | None = None
