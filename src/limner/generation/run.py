"""Running one generation against a model."""

from collections.abc import Generator, Sequence
from typing import Protocol

from torch import Tensor

from .calls import Answer, Call, Generation


class AnswersCalls(Protocol):
    """What `run` needs of a model."""

    def answer(self, calls: Sequence[Call]) -> list[Answer]: ...


def watch(generation: Generation, model: AnswersCalls) -> Generator[tuple[Call, Answer], None, Tensor]:
    """Run a generation, yielding each call with its answer; closing this closes the generation."""
    try:
        call = next(generation)
        while True:
            [answer] = model.answer([call])
            if answer.error is not None:
                raise answer.error
            yield call, answer
            call = generation.send(answer.value)
    except StopIteration as done:
        image: Tensor = done.value
        return image
    finally:
        generation.close()


def run(generation: Generation, model: AnswersCalls) -> Tensor:
    """Run a generation to its end. Raises what an answer has for an error."""
    watched = watch(generation, model)
    while True:
        try:
            next(watched)
        except StopIteration as done:
            image: Tensor = done.value
            return image
