"""The safety policy of the service for images. Networks look at them in the worker alone.

What it flags, blurs or blocks is reviewed by people, if it was drawn.

`ImageRules` says in any process which policies have rules about the images of a caller. `ImageSafety` decides
by them in a worker: about finished images, between decoding and storage, and about those that the API process
asks about by the call `CHECK`.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from limner.errors import InvalidRequest
from limner.images.opening import normalised, to_rgb
from limner.images.picture import Picture
from limner.safety.checkers import ImageChecker
from limner.safety.decisions import most_severe
from limner.safety.images import ImageDecision, check_images_by_policies, load_checkers
from limner.safety.policy import Action, Policy
from limner.settings.serve import ServeSettings

from .jobs import Job, NewReview, ReviewStage, StoredImage
from .policies import SafetyPolicies

LEVELS = "levels"
"""Key of the levels of an account and of its key, in the decision about a job's prompts and in `CHECK`."""

CHECK = "check_images"
"""Call to a worker: `LEVELS`, and image files -> `DECISIONS`: for each file one, as
`ImageDecision.to_dict`, or None where no policy has rules about it."""

DECISIONS = "decisions"

LoadCheckers = Callable[[Policy], Mapping[str, ImageChecker]]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MAX_FRAMES = 100  # of a file with several images, all of which are checked


class ImageRules:
    """The policies that have rules about the images of a caller. Safe to use from any thread.

    Without the setting `safety` the policy `standard` of the service holds for prompts alone, so that it runs
    without an image checker. Levels of accounts and keys hold for images too: somebody has chosen them.

    Args:
        settings: Settings of the service.

    Raises:
        InvalidRequest: The policy of the settings cannot be used.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._policies = SafetyPolicies(settings)
        self._own_holds = settings.safety is not None

    @property
    def own(self) -> Policy | None:
        """The policy of the service; None where it holds for prompts alone."""
        return self._policies.own if self._own_holds else None

    def of(self, account: str | None, key: str | None) -> tuple[Policy, ...]:
        """The policies with rules about images. The levels are as of `SafetyPolicies.of`."""
        found = self._policies.of(account, key)
        if account is None and not self._own_holds:
            found = found[1:]
        return tuple(policy for policy in found if policy.image_rules)


class ImageSafety:
    """Decides about images. Safe to use from any thread.

    Args:
        settings: Settings of the service.
        load: Loads the checkers of a policy.

    Raises:
        LimnerError: A checker that the service's own policy names cannot be loaded.
    """

    def __init__(self, settings: ServeSettings, load: LoadCheckers = load_checkers) -> None:
        self._rules, self._load = ImageRules(settings), load
        if self._rules.own is not None:
            load(self._rules.own)

    def withholds(self, job: Job) -> bool:
        """Whether previews of a job would show what its policies may block or blur."""
        rules = (rule for policy in self._of(job) for rule in policy.image_rules)
        return any(rule.action in (Action.BLOCK, Action.BLUR) for rule in rules)

    def decide(self, job: Job, picture: Picture) -> ImageDecision | None:
        """The most severe decision of a job's policies about its image; None where none has rules about it.

        Raises:
            LimnerError: A checker cannot be loaded, or failed.
        """
        return self._decide(self._of(job), [np.asarray(picture.convert("RGB"))])

    def answer(self, params: Mapping[str, Any], parts: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """The answer to `CHECK`: about each file the most severe decision about any image in it.

        Raises:
            InvalidRequest: A part that is no image, or holds more than 100.
            LimnerError: As `decide`.
        """
        policies = self._rules.of(*params[LEVELS])
        decisions = [self._decide(policies, list(_frames(part))) for part in parts]
        return {DECISIONS: [None if one is None else one.to_dict() for one in decisions]}, []

    def _decide(
        self, policies: Sequence[Policy], images: Sequence[NDArray[np.uint8]]
    ) -> ImageDecision | None:
        if not policies:
            return None
        loaded = ((policy, self._load(policy)) for policy in policies)
        return most_severe(one for found in check_images_by_policies(images, loaded) for one in found)

    def _of(self, job: Job) -> tuple[Policy, ...]:
        """The policies of a job that have rules about images."""
        return self._rules.of(*(job.safety or {}).get(LEVELS, (None, None)))


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


def _frames(file: bytes) -> Iterator[NDArray[np.uint8]]:
    """The images in a file as RGB [H, W, 3]: several where it is animated, has pages or transparency. Raises
    InvalidRequest."""
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as opened:
            if (frames := getattr(opened, "n_frames", 1)) > _MAX_FRAMES:
                raise InvalidRequest(f"the file holds {frames} images; expected at most {_MAX_FRAMES}")
            for frame in ImageSequence.Iterator(opened):
                image = normalised(frame.copy())
                yield np.asarray(to_rgb(image, None))
                if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
                    yield np.asarray(to_rgb(image))  # what is seen, besides what is hidden
    except InvalidRequest:
        raise
    except Exception as error:  # what a decoder raises at hostile bytes is not documented
        raise InvalidRequest(f"the image cannot be read: {error}") from None
