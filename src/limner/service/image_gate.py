"""The gate for images that no job has drawn: uploads, control images, enlarged images, previews of models.

What a job has drawn passes the safety policy before it is stored, and leaves by `release`. All other images
pass here on their way to a caller. Where policies have rules about images, a worker decides; without any,
nothing is asked. No torch.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Sequence

from PIL import Image
from starlette.concurrency import run_in_threadpool

from limner.images.opening import to_rgb
from limner.images.picture import encode
from limner.safety.images import ImageDecision, blurred
from limner.safety.policy import Action
from limner.settings.serve import ServeSettings

from .hub import Hub
from .identity import Principal
from .image_safety import CHECK, DECISIONS, LEVELS, ImageRules
from .ledger.ledger import Ledger
from .ledger.reviewing import IN_AUDIT_LOG
from .metrics import Meter

_SECONDS = 30.0  # that a worker has, with the time until one is free
_KNOWN = 4096  # decisions that are kept in memory

_Key = tuple[str, ...]  # account, hash of a file, and versions of the policies


class ImageGate:
    """Lets images pass that no job has drawn. For the event loop.

    Args:
        settings: Settings of the service: its policy.
        hub: Has workers decide.
        ledger: Where decisions are entered into the audit log.
        meter: Counts them.

    Raises:
        InvalidRequest: The policy of the settings cannot be used.
    """

    def __init__(self, settings: ServeSettings, hub: Hub, ledger: Ledger, meter: Meter) -> None:
        self._rules, self._hub, self._ledger, self._meter = ImageRules(settings), hub, ledger, meter
        self._known: OrderedDict[_Key, ImageDecision] = OrderedDict()

    async def passed(
        self, caller: Principal, files: Sequence[bytes], *, made_from: Sequence[bytes] = ()
    ) -> list[bytes]:
        """Image files as a caller may get them: as they are, or blurred, as PNG.

        Args:
            made_from: Images that these were made from, which must pass too. If one of them is blurred, all
                are.

        Raises:
            ImageRefused: A policy of the caller blocks one.
            WorkerUnavailable: No worker decides.
            LimnerError: A file is no image, or a checker cannot be loaded.
        """
        policies = self._rules.of(*caller.safety)
        if not policies:
            return list(files)
        versions = tuple(policy.version for policy in policies)
        sources = await self._actions(caller, made_from, versions)
        actions = await self._actions(caller, files, versions)
        return [
            await run_in_threadpool(_blurred, file) if Action.BLUR in (action, *sources) else file
            for file, action in zip(files, actions, strict=True)
        ]

    async def _actions(
        self, caller: Principal, files: Sequence[bytes], versions: tuple[str, ...]
    ) -> list[Action]:
        """What is done with each file. Raises as `passed`."""
        keys = [(caller.account.id, hashlib.sha256(file).hexdigest(), *versions) for file in files]
        new = {key: file for key, file in zip(keys, files, strict=True) if key not in self._known}
        decided = {key: self._known[key] for key in keys if key not in new}
        if new:
            answer, _ = await self._hub.call(
                CHECK, {LEVELS: caller.safety}, tuple(new.values()), timeout=_SECONDS
            )
            for key, data in zip(new, answer[DECISIONS], strict=True):
                decided[key] = self._known[key] = ImageDecision.from_dict(data)
                await run_in_threadpool(self._note, caller, key[1], decided[key])
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        for key in keys:
            decided[key].raise_if_blocked()
        return [decided[key].action for key in keys]

    def _note(self, caller: Principal, sha256: str, decision: ImageDecision) -> None:
        """Count a decision, and enter one that does not allow into the audit log."""
        action, rule = decision.action, decision.rule or ""
        self._meter.count("limner_safety_decisions_total", stage="image", action=action.value, rule=rule)
        if action is not Action.ALLOW:
            subject, score, version = f"sha256:{sha256}", decision.score, decision.version
            self._ledger.audit(
                caller.account.id,
                IN_AUDIT_LOG[action.value],
                subject,
                rule=rule,
                score=score,
                version=version,
            )


def _blurred(file: bytes) -> bytes:
    """A blurred PNG of an image file."""
    with Image.open(io.BytesIO(file)) as opened:
        return encode(blurred(to_rgb(opened)), "png")
