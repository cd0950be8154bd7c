"""Kills workers and API processes of a service under load, and checks that nothing was lost or done twice.

    python -m benchmarks.faults               # 200 workers and 50 API processes; a device that draws colours
    python -m benchmarks.faults --device cpu  # the shipped model; each image is compared with itself alone

It exits with 1 if a promise was broken.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.request import GenerationRequest
from limner.service.drawing import request_of
from limner.service.fake import fake_engine, is_fake
from limner.service.jobs import Job

from .checking import Alone
from .run import run


def make_request(number: int) -> dict[str, Any]:
    """A request of a number: its seed tells it from all others."""
    return {"prompt": f"a red house {number}", "seed": 10 * number, "steps": 4, "width": 64, "height": 64}


def fake_alone(job: Job) -> str:
    """What the fake device draws for a job."""
    with fake_engine("fake") as engine:
        picture = engine.submit(request_of(job)).result().images[0]
    return hashlib.sha256(picture.tobytes()).hexdigest()


def torch_alone(device: str) -> Alone:
    """Draws a job alone with the shipped model."""
    import limner

    model = limner.load("picturebook", device=device)

    def draw(job: Job) -> str:
        request = GenerationRequest.of(job.params).model_copy(update={"model": "picturebook"})
        picture = model.generate(request=request).images[0]
        return hashlib.sha256(picture.tobytes()).hexdigest()

    return draw


def main(arguments: list[str] | None = None) -> int:
    """Run, print what was found, and return 1 if something was."""
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--worker-kills", type=int, default=200)
    options.add_argument("--api-kills", type=int, default=50)
    options.add_argument("--device", default="fake:0.005", help="device of the worker")
    options.add_argument("--clients", type=int, default=6)
    options.add_argument("--pause", type=float, default=2.0, help="seconds between kills, on average")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--data", type=Path, help="folder of the service; by default a temporary one")
    given = options.parse_args(arguments)
    alone = fake_alone if is_fake(given.device) else torch_alone(given.device)
    make: Any = make_request if is_fake(given.device) else _world_request
    with tempfile.TemporaryDirectory() as folder:
        came = run(
            given.data or Path(folder) / "data",
            worker_kills=given.worker_kills,
            api_kills=given.api_kills,
            make=make,
            alone=alone,
            options=("--device", given.device, "--log-level", "warning"),
            pause=given.pause,
            clients=given.clients,
            seed=given.seed,
            say=lambda text: print(text, file=sys.stderr),
        )
    print(f"kills: {came.kills['worker']} of workers, {came.kills['api']} of the API process")
    print(f"accepted requests: {came.accepted} in {came.seconds:.0f} s")
    print("\n".join(came.findings.lines()))
    for refused in came.refused:
        print(f"refused: {refused}")
    return 1 if came.findings.faults or came.refused else 0


def _world_request(number: int) -> Mapping[str, Any]:
    return {**make_request(number), "prompt": "a red house in the snow", "width": 128, "height": 128}


if __name__ == "__main__":
    sys.exit(main())
