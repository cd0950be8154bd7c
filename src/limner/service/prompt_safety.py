"""The safety policy of the service: what it says about the prompts of a caller's request. No torch."""

from functools import cache, partial

from limner.catalogue.catalogue import Catalogue, trigger_words_of
from limner.request.resolve import ResolvedRequest
from limner.safety.policy import Policy
from limner.safety.prompts import Decision, check_pictures, find_trigger_words
from limner.settings.serve import ServeSettings

from .identity import Principal
from .policies import SafetyPolicies
from .vocabulary import CatalogueWords


class PromptSafety:
    """Decides about requests. Safe to use from any thread.

    Args:
        settings: Settings of the service: its policy.
        catalogue: Where embeddings are looked up.

    Raises:
        InvalidRequest: The policy of the settings cannot be used.
    """

    def __init__(self, settings: ServeSettings, catalogue: Catalogue) -> None:
        self._catalogue, self._policies = catalogue, SafetyPolicies(settings)

    def policies(self, principal: Principal) -> tuple[Policy, ...]:
        """The policies that requests of a caller must pass, all of them."""
        return self._policies.of(*principal.safety)

    def decide(self, principal: Principal, resolved: ResolvedRequest, family: str) -> tuple[Decision, ...]:
        """What the policies of a caller say about each image of a resolved request.

        Args:
            family: Family of the model, whose embeddings a prompt may name.
        """
        embeddings = CatalogueWords(self._catalogue.entries("embedding", family))
        words_of = cache(trigger_words_of)  # files are read once
        words = partial(find_trigger_words, lambda _: embeddings, words_of)
        return check_pictures(resolved, self.policies(principal), words)
