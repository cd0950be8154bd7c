"""The safety policy of the service for finished images: checked between decoding and storage, in the worker.

What it flags, blurs or blocks is reviewed by people.

Images are checked if the setting `safety` is given: without it the policy `standard` holds for prompts alone,
so that the service runs without an image checker.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from limner.images.picture import Picture
from limner.safety.checkers import ImageChecker
from limner.safety.decisions import most_severe
from limner.safety.images import ImageDecision, check_images_by_policies, load_checkers
from limner.safety.policy import Action, Policy
from limner.settings.serve import ServeSettings

from .jobs import Job, NewReview, ReviewStage, StoredImage
from .policies import SafetyPolicies

LEVELS = "levels"
"""Key, in the decision about a job's prompts, of the levels of its account and of its key."""

LoadCheckers = Callable[[Policy], Mapping[str, ImageChecker]]


class ImageSafety:
    """Decides about images. Safe to use from any thread.

    Args:
        settings: Settings of the service.
        load: Loads the checkers of a policy.

    Raises:
        LimnerError: A checker that the service's own policy names cannot be loaded.
    """

    def __init__(self, settings: ServeSettings, load: LoadCheckers = load_checkers) -> None:
        self._policies = None if settings.safety is None else SafetyPolicies(settings)
        self._load = load
        if self._policies is not None:
            load(self._policies.own)

    def withholds(self, job: Job) -> bool:
        """Whether previews of a job would show what its policies may block or blur."""
        rules = (rule for policy in self._of(job) for rule in policy.image_rules)
        return any(rule.action in (Action.BLOCK, Action.BLUR) for rule in rules)

    def decide(self, job: Job, picture: Picture) -> ImageDecision | None:
        """The most severe decision of a job's policies about its image; None where none has rules about it.

        Raises:
            LimnerError: A checker cannot be loaded, or failed.
        """
        policies = self._of(job)
        if not policies:
            return None
        pixels = np.asarray(picture.convert("RGB"))
        loaded = ((policy, self._load(policy)) for policy in policies)
        return most_severe(one for [one] in check_images_by_policies([pixels], loaded))

    def _of(self, job: Job) -> tuple[Policy, ...]:
        """The policies of a job that have rules about images."""
        if self._policies is None:
            return ()
        account, key = (job.safety or {}).get(LEVELS, (None, None))
        return tuple(policy for policy in self._policies.of(account, key) if policy.image_rules)


def review_of(
    job: Job, about_image: Mapping[str, Any] | None, withheld: StoredImage | None = None
) -> NewReview | None:
    """What a person is to look at: the more severe of the decisions about the image of a job and about its
    prompts; None where both allow it.

    Args:
        about_image: The decision about the image, as JSON; None: it was not checked.
        withheld: The image, where it is stored and withheld.
    """
    found: tuple[tuple[ReviewStage, Mapping[str, Any] | None], ...]
    found = (("image", about_image), ("prompt", job.safety))
    decisions = [(stage, one) for stage, one in found if one is not None and one["action"] != Action.ALLOW]
    if not decisions:
        return None
    stage, decision = max(decisions, key=lambda one: Action(one[1]["action"]).severity)
    return NewReview(stage, decision, withheld)
