"""The review of finished images before they are recorded, by the function that an engine was given for it."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from limner.errors import InternalError

from .execution import limner_error
from .jobs import ImageRun

Reviewed = tuple[Tensor, Mapping[str, str]]
"""The image to keep [1, 3, H, W], and notes for its record."""


def reviewed(group: Sequence[ImageRun]) -> list[Reviewed | Exception]:
    """The result of the review for each of several finished images of one engine and size.

    If the review of all together raises an error, each is reviewed alone, so that only the requests at fault
    fail.
    """
    images = [cast("Tensor", run.image) for run in group]
    review = group[0].job.client.review
    if review is None:
        return [(image, {}) for image in images]
    given = torch.cat(images)  # [B, 3, H, W]
    try:
        kept, notes = review(given, [run.request for run in group])
        if kept.shape != given.shape or len(notes) != len(group):
            raise InternalError(
                f"the review of {len(group)} images {list(given.shape)} returned {len(notes)} notes and "
                f"images {list(kept.shape)}"
            )
    except Exception as error:
        failure = limner_error(error)  # what the failed review held is free before the next one
    else:
        return [(kept[row, None], notes[row]) for row in range(len(group))]
    return [failure] if len(group) == 1 else [reviewed([run])[0] for run in group]
