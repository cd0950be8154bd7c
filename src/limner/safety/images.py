"""What a policy says about images, and what then leaves.

    policy = load_policy("standard")
    checkers = load_checkers(policy)
    [decision] = check_images([np.asarray(picture)], policy, checkers)
    picture = released(picture, decision)

Without torch, but for a checker that needs it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import ImageRefused, InternalError, NumericalError
from limner.images.picture import Picture

from .checker_config import CheckerConfig, OpenNSFWConfig
from .checkers import ImageChecker, load_checker
from .decisions import BaseDecision, BaseFinding, ordered
from .policy import Action, Policy

NOTE = "image_safety"  # key of the decision in a record's notes
Scores = list[dict[str, float]]
"""The scores that a checker gives images, by category."""
_CELLS = 8  # colours along the longer side of a blurred image
_DONE = {Action.FLAG: "flags", Action.BLUR: "blurs", Action.BLOCK: "blocks"}


@dataclass(frozen=True)
class ImageFinding(BaseFinding):
    """A rule that applies to an image. The score is the checker's.

    Attributes:
        checker: Name of the checker.
        checker_version: Its version.
        category: The category of the score.
    """

    checker: str
    checker_version: str
    category: str

    def text(self) -> str:
        """The rule, its reason and the score, in words."""
        return f"{self.rule} ({self.checker} {self.category} {self.score:.3g}): {self.reason}"


@dataclass(frozen=True)
class ImageDecision(BaseDecision[ImageFinding]):
    """What a policy says about an image.

    Attributes:
        scores: Checker -> category -> score, of every checker that the policy names.
        checkers: Checker -> its version.
    """

    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    checkers: Mapping[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each rule that flags or blurs the image."""
        by = f"the safety policy {self.version}"
        kept = [one for one in self.findings if one.action is not Action.BLOCK]
        return tuple(f"{by} {_DONE[one.action]} the image by its rule {one.text()}" for one in kept)

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain data, for JSON."""
        return {
            "action": self.action.value,
            "rule": self.rule,
            "score": self.score,
            "version": self.version,
            "reason": self.reason,
            "findings": [asdict(finding) for finding in self.findings],
            "scores": {name: dict(scores) for name, scores in self.scores.items()},
            "checkers": dict(self.checkers),
        }

    @property
    def refusal(self) -> ImageRefused | None:
        """The error about an image that is blocked; None if it is not."""
        if self.action is not Action.BLOCK:
            return None
        return ImageRefused(
            f"the safety policy {self.version} blocks the image by its rule {self.findings[0].text()}",
            hint="try another seed or prompt; `limner safety check picture` shows what a policy says",
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The decision that `to_dict` wrote."""
        findings = (ImageFinding(**{**one, "action": Action(one["action"])}) for one in data["findings"])
        return cls(data["version"], tuple(findings), data["scores"], data["checkers"])

    def raise_if_blocked(self) -> None:
        """Raise ImageRefused if the action is block."""
        if (refusal := self.refusal) is not None:
            raise refusal


def load_checkers(policy: Policy) -> dict[str, ImageChecker]:
    """The checkers that the image rules of a policy need, by name; none if it has no such rules.

    A process loads each once, whatever number of policies name it.

    Raises:
        LimnerError: As `load_checker`.
    """
    return {name: _loaded(name, config, _folder(config, policy)) for name, config in policy.checkers.items()}


def _folder(config: CheckerConfig, policy: Policy) -> Path:
    """The folder of a checker's files; the same for all policies where it has none."""
    return Path() if isinstance(config, OpenNSFWConfig) else policy.folder


@lru_cache(maxsize=8)
def _loaded(name: str, config: CheckerConfig, folder: Path) -> ImageChecker:
    return load_checker(name, config, folder)


def check_images(
    images: Sequence[NDArray[np.uint8]], policy: Policy, checkers: Mapping[str, ImageChecker]
) -> list[ImageDecision]:
    """What a policy says about each of some images.

    Args:
        images: RGB images [H, W, 3], of any sizes.
        checkers: Those that `load_checkers` returns for the policy.

    Raises:
        NumericalError: A score is NaN or infinite.
        InternalError: A checker does not score every image in every category that the rules name.
    """
    [decisions] = check_images_by_policies(images, [(policy, checkers)])
    return decisions


def check_images_by_policies(
    images: Sequence[NDArray[np.uint8]], policies: Iterable[tuple[Policy, Mapping[str, ImageChecker]]]
) -> list[list[ImageDecision]]:
    """What several policies say about images: for each policy, its decision about each image.

    A checker that several policies have scores the images once.

    Args:
        images: As `check_images` takes them.
        policies: Each with the checkers that `load_checkers` returns for it.

    Raises:
        NumericalError, InternalError: As `check_images`.
    """
    found: dict[int, tuple[ImageChecker, Scores]] = {}  # by the checker's id, which it has while it is here

    def scores_of(checker: ImageChecker) -> Scores:
        if id(checker) not in found:
            found[id(checker)] = checker, checker.check(images)
        return found[id(checker)][1]

    decisions = []
    for policy, checkers in policies:
        scores = {name: scores_of(checkers[name]) for name in policy.checkers}
        _check_scores(scores, len(images))
        versions = {name: checkers[name].version for name in policy.checkers}
        decisions.append(
            [
                _decide(policy, {name: every[index] for name, every in scores.items()}, versions)
                for index in range(len(images))
            ]
        )
    return decisions


def _check_scores(scores: Mapping[str, Scores], images: int) -> None:
    """Raise if a checker did not score every image, or a score is not finite."""
    for name, found in scores.items():
        if len(found) != images:
            raise InternalError(f"the image checker {name} scored {len(found)} of {images} images")
        for value in (value for one in found for value in one.values()):
            if not math.isfinite(value):  # which no rule would apply to
                raise NumericalError(f"the image checker {name} gave an image the score {value}")


def _decide(
    policy: Policy, scores: Mapping[str, Mapping[str, float]], versions: Mapping[str, str]
) -> ImageDecision:
    findings = []
    for rule in policy.image_rules:
        score = scores[rule.checker].get(rule.category)
        if score is None:
            raise InternalError(f"the image checker {rule.checker} gave no score for {rule.category!r}")
        if score >= rule.min_score:
            findings.append(
                ImageFinding(
                    rule=rule.name,
                    action=rule.action,
                    score=score,
                    reason=rule.reason,
                    checker=rule.checker,
                    checker_version=versions[rule.checker],
                    category=rule.category,
                )
            )
    return ImageDecision(policy.version, ordered(findings), scores, versions)


def noted(picture: Picture, decision: ImageDecision) -> Picture:
    """The image with a record that has the decision, and a warning for each rule that flags or blurs it."""
    record = picture.record
    notes = {**record.notes, NOTE: json.dumps(decision.to_dict(), ensure_ascii=False, separators=(",", ":"))}
    warnings = tuple(dict.fromkeys((*record.warnings, *decision.warnings)))
    return Picture(picture, record.model_copy(update={"notes": notes, "warnings": warnings}))


def released(picture: Picture, decision: ImageDecision) -> Picture:
    """The image that may leave: as it is, or blurred, with a record as of `noted`.

    Raises:
        ImageRefused: The decision is to block it.
    """
    decision.raise_if_blocked()
    shown = noted(picture, decision)
    return Picture(blurred(shown), shown.record) if decision.action is Action.BLUR else shown


def shown(
    images: Sequence[Image.Image], policy: Policy, checkers: Mapping[str, ImageChecker]
) -> list[Image.Image]:
    """Images as they may be shown together, as on a sheet: as they are, blurred, or grey where they are
    blocked. Arguments and errors as of `check_images`."""
    if not policy.image_rules:
        return list(images)
    decisions = check_images([np.asarray(image.convert("RGB")) for image in images], policy, checkers)
    return [_shown(image, decision.action) for image, decision in zip(images, decisions, strict=True)]


def _shown(image: Image.Image, action: Action) -> Image.Image:
    if action is Action.BLOCK:
        return Image.new("RGB", image.size, "grey")
    return blurred(image) if action is Action.BLUR else image


def blurred(image: Image.Image) -> Image.Image:
    """An RGB image of the same size made of the mean colours of 8 areas along the longer side, and no more.

    It holds at most 64 colours of the original, so that nothing finer can be recovered from it.
    """
    image = image.convert("RGB")
    longer = max(image.size)
    width, height = (max(1, round(_CELLS * side / longer)) for side in image.size)
    cells = image.resize((width, height), Image.Resampling.BOX)
    return cells.resize(image.size, Image.Resampling.BICUBIC)
