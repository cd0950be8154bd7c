"""What a policy says about prompts.

    decision = check_prompt("a red house", load_policy("standard"))
    decision.action  # Action.ALLOW

`check_request` collects every text that a resolved request gives to the networks, and decides about each
image.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from limner.errors import PromptRefused

from .decisions import BaseDecision, BaseFinding, most_severe, ordered
from .matching import Hit, Matcher
from .policy import BENIGN, Action, Policy, Rule

if TYPE_CHECKING:
    from limner.request.networks import UsedAdapter
    from limner.request.resolve import PictureSpec, ResolvedRequest


@dataclass(frozen=True)
class PromptText:
    """A text that an image is made of.

    Attributes:
        source: Where it comes from: "prompt", "negative_prompt", "loras" …
        text: The text.
        negative: Whether the image is steered away from it.
    """

    source: str
    text: str
    negative: bool = False


@dataclass(frozen=True)
class Span:
    """Words of a text that a rule is about.

    Attributes:
        source: The text's source.
        start, end: Their place in the text, in characters.
        text: The words as they are written.
        list: The list that has them.
        term: What they are in that list.
    """

    source: str
    start: int
    end: int
    text: str
    list: str
    term: str


@dataclass(frozen=True)
class Finding(BaseFinding):
    """A rule that applies. The score is from 0 to 1: how surely the text says it.

    Attributes:
        spans: The words.
    """

    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Decision(BaseDecision[Finding]):
    """What a policy says about the texts of an image."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The words that it is about."""
        return self.findings[0].spans if self.findings else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each rule that flags the prompt."""
        flagged = [one for one in self.findings if one.action is Action.FLAG]
        by = f"the safety policy {self.version} flags the prompt by its rule"
        return tuple(f"{by} {one.rule} (score {one.score:g}): {one.reason}" for one in flagged)

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain data, for JSON."""
        return {
            "action": self.action.value,
            "rule": self.rule,
            "score": self.score,
            "version": self.version,
            "reason": self.reason,
            "spans": [asdict(span) for span in self.spans],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def raise_if_blocked(self) -> None:
        """Raise PromptRefused if the action is block."""
        if self.action is not Action.BLOCK:
            return
        raise PromptRefused(
            f"the safety policy {self.version} refuses the prompt by its rule {self.rule} "
            f"(score {self.score:g}): {self.reason}",
            hint="describe something else; `limner safety check prompt` shows what a policy says",
            fields=tuple(dict.fromkeys(span.source for span in self.spans)),
            decision=self.to_dict(),
        )


def check_prompt(text: str, policy: Policy, negative_prompt: str = "") -> Decision:
    """What a policy says about a prompt."""
    texts = [PromptText("prompt", text), PromptText("negative_prompt", negative_prompt, negative=True)]
    return check_texts(texts, policy)


FindHits = Callable[[str, Matcher], Sequence[Hit]]


def check_texts(texts: Iterable[PromptText], policy: Policy, find_hits: FindHits | None = None) -> Decision:
    """What a policy says about the texts of one image. Subject and act may be in different ones.

    Args:
        find_hits: `_hits` with a cache that several calls share; None: a cache of this call.
    """
    find_hits = find_hits or cache(_hits)
    texts = [text for text in dict.fromkeys(texts) if text.text]
    findings: list[Finding] = []
    for rules, lists in ((policy.always_rules, policy.always_lists), (policy.rules, policy.lists)):
        if not rules:
            continue
        matcher = _matcher(tuple(lists.items()))
        matches = [_Match(text, hit) for text in texts for hit in find_hits(text.text, matcher)]
        wanted = [one for one in matches if not one.text.negative]
        unwanted = [one for one in matches if one.text.negative]
        for rule in rules:
            findings += _apply(rule, wanted, unwanted)
    return Decision(policy.version, ordered(one for one in findings if one.action is not Action.ALLOW))


@dataclass(frozen=True)
class _Match:
    """A term in one of the texts."""

    text: PromptText
    hit: Hit

    @property
    def span(self) -> Span:
        hit = self.hit
        words = self.text.text[hit.start : hit.end]
        return Span(self.text.source, hit.start, hit.end, words, hit.list, hit.term)


@lru_cache(maxsize=8)
def _matcher(lists: tuple[tuple[str, tuple[str, ...]], ...]) -> Matcher:
    return Matcher(dict(lists))


def _hits(text: str, matcher: Matcher) -> tuple[Hit, ...]:
    """The terms in a text, without those inside harmless phrases that are written plainly."""
    found = matcher.find(text)
    harmless = [hit for hit in found if hit.list == BENIGN and hit.certainty == 1]
    starts = [hit.start for hit in harmless]  # in order, as `found` is
    ends = list(accumulate((hit.end for hit in harmless), max))
    kept = []
    for hit in found:
        before = bisect_right(starts, hit.start)
        if hit.list != BENIGN and not (before and ends[before - 1] >= hit.end):
            kept.append(hit)
    return tuple(kept)


def _apply(rule: Rule, wanted: Sequence[_Match], unwanted: Sequence[_Match]) -> Iterator[Finding]:
    """What a rule finds in the texts that an image is steered to, and in those it is steered away from."""
    yield from _finding(rule, rule.action, wanted, unwanted)
    if not rule.steered_from:
        yield from _finding(rule, rule.negative_prompt, unwanted, ())


def _finding(
    rule: Rule, action: Action, matches: Sequence[_Match], opposite: Sequence[_Match]
) -> Iterator[Finding]:
    if any(one.hit.list in rule.unless and one.hit.certainty == 1 for one in matches):
        return
    groups = [_of(rule.lists, matches)]
    groups += [_of(rule.with_lists, matches)] if rule.with_lists else []
    groups += [_of(rule.steered_from, opposite)] if rule.steered_from else []
    if not all(groups):
        return
    score = min(max(one.hit.certainty for one in group) for group in groups)
    if score >= rule.min_score:
        spans = tuple(dict.fromkeys(one.span for group in groups for one in group))
        words = ", ".join(dict.fromkeys(f"{span.text!r} ({span.source})" for span in spans))
        yield Finding(rule.name, action, score, f"{rule.reason}: {words}", spans)


def _of(lists: Sequence[str], matches: Sequence[_Match]) -> list[_Match]:
    """The matches of some lists, the surest first."""
    return sorted((one for one in matches if one.hit.list in lists), key=lambda one: -one.hit.certainty)


TriggerWords = Callable[["PictureSpec"], Iterable[tuple[str, str]]]
"""The words that the adapters and embeddings of an image answer to, each after the field naming the file."""


class Embeddings(Protocol):
    """Textual inversions, whose names are words in prompts."""

    def files_in(self, text: str) -> Iterable[Path]:
        """The files whose words a text has."""


def find_trigger_words(
    embeddings_of: "Callable[[tuple[UsedAdapter, ...]], Embeddings]",
    words_of: Callable[[Path], Iterable[str]],
    picture: "PictureSpec",
) -> Iterator[tuple[str, str]]:
    """The words that the LoRAs and textual inversions of an image answer to, each with the field that names
    the file. It is a `TriggerWords` once its first arguments are given.

    Args:
        embeddings_of: The textual inversions that prompts may name beside these adapters.
        words_of: The words that a file answers to.
    """
    for one in picture.passes:
        for used in one.adapters:
            yield from (("loras", words) for words in words_of(used.path))
        embeddings = embeddings_of(one.adapters)
        for part in one.prompts:
            texts = [("prompt", text) for text, _ in part.positive] + [("negative_prompt", part.negative)]
            for name, text in texts:
                for file in embeddings.files_in(text):
                    yield from ((name, words) for words in words_of(file))


def texts_of(picture: "PictureSpec", trigger_words: TriggerWords) -> Iterator[PromptText]:
    """Every text that one image of a resolved request is made of: prompts as they are given and as the
    networks read them from step to step, after styles, wildcards and comments; names of LoRAs; trigger words.
    """
    request = picture.request
    for name in ("prompt", "hires_prompt"):
        yield PromptText(name, getattr(request, name) or "")
    # Below 0.5, CFG++ goes further towards the negative prompt than towards the prompt.
    reversed_guidance = any(one.cfg_pp and one.guidance_scale < 0.5 for one in picture.passes)
    for name in ("negative_prompt", "hires_negative_prompt"):
        yield PromptText(name, getattr(request, name) or "", negative=not reversed_guidance)
    for one in picture.passes:
        hires = "hires_" if one.steps_before is not None else ""
        for part in one.prompts:
            for text, _ in part.positive:
                yield PromptText(f"{hires}prompt", text)
            yield PromptText(f"{hires}negative_prompt", part.negative, negative=not reversed_guidance)
    for lora in request.loras:
        yield PromptText("loras", lora.name)
    for name, words in trigger_words(picture):
        is_negative = "negative" in name and not reversed_guidance
        yield PromptText(name, words, negative=is_negative)


def check_pictures(
    resolved: "ResolvedRequest", policies: Sequence[Policy], trigger_words: TriggerWords
) -> tuple[Decision, ...]:
    """What policies say about each image of a resolved request: the findings of all of them together."""
    find_hits = cache(_hits)  # the tiers of a policy, and Limner's own policies, mostly have the same lists
    decisions: dict[tuple[PromptText, ...], Decision] = {}  # images of one prompt are checked once
    found = []
    for picture in resolved.pictures:
        texts = tuple(texts_of(picture, trigger_words))
        if texts not in decisions:
            decisions[texts] = combined([check_texts(texts, policy, find_hits) for policy in policies])
        found.append(decisions[texts])
    return tuple(found)


def check_request(resolved: "ResolvedRequest", policy: Policy, trigger_words: TriggerWords) -> Decision:
    """What a policy says about a resolved request: the most severe decision about any of its images."""
    return most_severe(check_pictures(resolved, [policy], trigger_words))


def combined(decisions: Sequence[Decision]) -> Decision:
    """The decisions of several policies about the same texts as one, with the findings of all."""
    findings = dict.fromkeys(finding for one in decisions for finding in one.findings)
    versions = dict.fromkeys(one.version for one in decisions)
    return Decision(", ".join(versions), ordered(findings))
