"""What decisions about prompts and about images have in common."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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
        version: Name and hash of the policy.
        findings: The rules that apply, the most severe first.
    """

    version: str
    findings: tuple[F, ...] = ()

    @property
    def action(self) -> Action:
        """The most severe action of the findings; allow without any."""
        return self.findings[0].action if self.findings else Action.ALLOW

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


D = TypeVar("D", bound=BaseDecision[Any])


def ordered(findings: Iterable[F]) -> tuple[F, ...]:
    """Findings as decisions have them: the most severe first, and of these the surest first."""
    return tuple(sorted(findings, key=_severity, reverse=True))


def most_severe(decisions: Iterable[D]) -> D:
    """The most severe of some decisions, and of these the surest."""
    return max(decisions, key=_severity)


def _severity(one: BaseFinding | BaseDecision[Any]) -> tuple[int, float]:
    return one.action.severity, one.score
