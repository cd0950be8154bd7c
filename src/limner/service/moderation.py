"""What operators do with the moderation queue: look, open, decide, reverse. For the API and the command line.

The files that are delivered are made before the ledger says that they are: no caller gets them until then, as
images in clear and blurred ones have files of their own.
"""

from dataclasses import replace

from .ledger.ledger import Ledger
from .release import ImageRelease
from .reviews import BY_POLICY, Decision, DeliveredFile, Review


class Moderation:
    """The images under review, and decisions about them. Safe to use from any thread."""

    def __init__(self, ledger: Ledger, release: ImageRelease) -> None:
        self._ledger, self._release = ledger, release

    def covered(self, review_id: str) -> bytes:
        """The image of a review as a blurred PNG.

        Raises:
            NotFound: There is no such review, or its image is not stored any more.
            StorageError: The store cannot be read.
        """
        return self._release.covered(self._ledger.reviewed_image(review_id))

    def opened(self, review_id: str, *, actor: str) -> bytes:
        """The image of a review as a PNG with its exact pixels and its record, which is entered into the
        audit log. Raises as `covered`.

        Args:
            actor: Who opens it.
        """
        return self._release.opened(self._ledger.reviewed_image(review_id), actor=actor, review=review_id)

    def decide(self, review_id: str, decision: Decision, *, note: str) -> Review:
        """Decide a review. Raises as `Ledger.decide`, and StorageError."""
        file = self._file(review_id, blurred=False) if decision == "release" else None
        return self._ledger.decide(review_id, decision, note=note, file=file)

    def reverse(self, review_id: str, *, note: str) -> Review:
        """Undo the decision that holds. Raises as `Ledger.reverse`, and StorageError."""
        review, file = self._ledger.get_review(review_id), None
        by_policy = BY_POLICY[review.action]
        if review.state not in ("open", "upheld") and by_policy != "withheld":
            file = self._file(review_id, blurred=by_policy == "blurred")
        return self._ledger.reverse(review_id, note=note, file=file)

    def _file(self, review_id: str, *, blurred: bool) -> DeliveredFile:
        image = self._ledger.reviewed_image(review_id)
        if image.blurred == blurred and image.delivered_sha256 is not None:  # it was delivered so before
            return DeliveredFile(image.delivered_sha256, image.delivered_bytes)
        return self._release.make_delivered(replace(image, blurred=blurred))
