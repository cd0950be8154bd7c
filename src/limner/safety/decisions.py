"""What decisions about prompts and about images have in common."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from .policy import Action


@dataclass(frozen=True)
class BaseFinding:
    """A rule that applies.

    Attributes:
        rule: Its name.
        action: What it asks for.
        score: How surely it applies.
        reason: One sentence about it.
    """

    rule: str
    action: Action
    score: float
    reason: str


F = TypeVar("F", bound=BaseFinding)


@dataclass(frozen=True)
class BaseDecision(Generic[F]):
    """What a policy says.

    Attributes:
        action: The most severe action of the findings; allow without any.
        version: Name and hash of the policy.
        findings: The rules that apply, the most severe first.
    """

    action: Action
    version: str
    findings: tuple[F, ...] = ()

    @property
    def rule(self) -> str | None:
        """The rule that decided; None where none applies."""
        return self.findings[0].rule if self.findings else None

    @property
    def score(self) -> float:
        """Its score; 0 where none applies."""
        return self.findings[0].score if self.findings else 0.0

    @property
    def reason(self) -> str:
        """Why."""
        return self.findings[0].reason if self.findings else "no rule applies"
