"""What policies say about prompts, and about all texts of a request."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.prompt_policy import MINORS, TRANSFORMATIONS, benign, obfuscations
from limner.errors import InvalidRequest, PromptRefused
from limner.safety import prompts
from limner.safety.checker_config import CompVisConfig, OnnxConfig, OpenNSFWConfig
from limner.safety.matching import Matcher
from limner.safety.policy import Action, ImageRule, PolicyFile, Rule, load_policy
from limner.safety.prompts import PromptText, check_pictures, check_prompt, check_texts

ROOT = Path(__file__).resolve().parents[3]

HARMLESS = """a nude-coloured dress|girl reading a book|naked mole rat|breast of chicken
a map of Essex|a cocktail
little boy with a dog|mother breastfeeding a baby|Scunthorpe station|a therapist's office|cum laude ceremony
a 12 year old whisky|a b c d e f|ein kleines Mädchen liest|una niña con su perro|children's book illustration
Michelangelo's David, nude marble statue|anatomical drawing of the penis, textbook|pen is on the table"""


@pytest.mark.parametrize("text", [one for line in HARMLESS.splitlines() for one in line.split("|")])
def test_harmless_prompts_pass_the_strictest_policy(text):
    assert check_prompt(text, load_policy("strict")).action is Action.ALLOW


def test_few_of_many_harmless_prompts_are_refused():
    prompts = benign(500, seed=1)
    for level, share in (("standard", 0.01), ("strict", 0.015)):
        refused = [text for text in prompts if check_prompt(text, load_policy(level)).action is Action.BLOCK]
        assert len(refused) <= share * len(prompts), refused


@pytest.mark.parametrize("kind", [name for name in TRANSFORMATIONS if "not undone" not in name])
def test_obfuscations_are_seen_through(kind):
    for level, scenes in (("off", {"scenes": MINORS}), ("standard", {})):
        for name, text in obfuscations(4, seed=1, **scenes):
            if name == kind:
                assert check_prompt(text, load_policy(level)).action is Action.BLOCK, text


def test_the_words_are_found_where_they_stand_in_the_text():
    text = "Ein ｎu\u200bdｅ, p0rn und k l e i n e s"
    found = check_prompt(text, load_policy("strict"))
    spans = {text[span.start : span.end] for one in found.findings for span in one.spans}
    assert spans == {"ｎu\u200bdｅ", "p0rn"}
    assert all(span.text in spans for one in found.findings for span in one.spans)


def test_what_is_hidden_scores_less_than_what_is_plain():
    scores = [check_prompt(text, load_policy("strict")).score for text in ("porn", "p0rn", "p*rn")]
    assert scores[0] == 1
    assert scores == sorted(scores, reverse=True)
    assert len({*scores}) == 3


def test_subject_and_act_may_be_in_different_texts():
    policy = load_policy("off")
    apart = [PromptText("prompt", "a little girl"), PromptText("loras", "nude")]
    assert check_texts(apart[:1], policy).action is check_texts(apart[1:], policy).action is Action.ALLOW
    decision = check_texts(apart, policy)
    assert (decision.action, decision.rule) == (Action.BLOCK, "minors.sexual")
    assert {span.source for span in decision.spans} == {"prompt", "loras"}


def test_each_text_of_a_request_is_searched_once_whatever_number_of_tiers_and_policies_read_it(monkeypatch):
    searched = []
    find = Matcher.find
    monkeypatch.setattr(Matcher, "find", lambda self, text: searched.append(text) or find(self, text))
    monkeypatch.setattr(prompts, "texts_of", lambda picture, _: picture)
    first = [PromptText("prompt", "a nude"), PromptText("hires_prompt", "a nude")]
    pictures = [first, [*first, PromptText("loras", "ink")]]
    policies = [load_policy("standard"), load_policy("strict")]
    found = check_pictures(SimpleNamespace(pictures=pictures), policies, lambda _: ())
    assert sorted(searched) == ["a nude", "ink"]
    assert [one.action for one in found] == [Action.BLOCK, Action.BLOCK]
    [one, other] = check_pictures(SimpleNamespace(pictures=pictures), policies[:1], lambda _: ())
    assert one.action is other.action is Action.FLAG
    assert len(searched) == 4  # nothing is remembered from one request to the next


def test_a_negative_prompt_steers_away():
    policy = load_policy("strict")
    assert check_prompt("a girl in a garden", policy, "nude, nsfw, child").action is Action.ALLOW
    steered = check_prompt("nude portrait", load_policy("off"), "adult, mature")
    assert (steered.action, steered.rule) == (Action.BLOCK, "minors.steered")


def test_levels():
    text = "nude woman on a sofa"
    actions = [check_prompt(text, load_policy(level)).action for level in ("off", "standard", "strict")]
    assert actions == [Action.ALLOW, Action.FLAG, Action.BLOCK]


def test_a_decision_as_json_and_as_an_error():
    decision = check_prompt("p0rn", load_policy("standard"))
    data = json.loads(json.dumps(decision.to_dict()))
    assert data["action"] == "block"
    assert data["version"] == decision.version
    assert data["spans"] == [
        {
            "source": "prompt",
            "start": 0,
            "end": 4,
            "text": "p0rn",
            "list": "sexual",
            "term": data["spans"][0]["term"],
        }
    ]
    with pytest.raises(PromptRefused, match=r"rule sexual \(score 0.9\): sexual acts: 'p0rn'") as refused:
        decision.raise_if_blocked()
    assert refused.value.fields == ("prompt",)


def policy_file(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(f"schema = 1\n{text}", encoding="utf-8")
    return path


def test_a_file_changes_rules_and_lists(tmp_path):
    path = policy_file(
        tmp_path,
        """
        base = "standard"
        [lists.gore]
        add = ["chainsaw*"]
        remove = ["gore"]
        [[rules]]
        name = "gore"
        action = "block"
        reason = "no gore here"
        lists = ["gore"]
        """,
    )
    policy = load_policy(path)
    assert check_prompt("two Chainsaws", policy).reason == "no gore here: 'Chainsaws' (prompt)"
    assert check_prompt("gore", policy).action is Action.ALLOW
    assert check_prompt("a hentai poster", policy).rule == "sexual"
    assert policy.version != load_policy("standard").version


def test_lists_of_a_folder_take_the_place_of_limners(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sexual.toml").write_text('en = ["frobnicate"]')
    policy = load_policy(policy_file(tmp_path, 'lists_dir = "mine"'))
    assert check_prompt("frobnicate", policy).rule == "sexual"
    assert check_prompt("porn", policy).action is Action.ALLOW


def test_no_file_weakens_the_tier_that_is_always_active(tmp_path):
    lists = tmp_path / "mine"
    lists.mkdir()
    for name in ("minors", "sexual", "nudity"):
        (lists / f"{name}.toml").write_text('en = ["frobnicate"]')
    (lists / "benign.toml").write_text('en = ["naked little girl"]')
    policy = load_policy(policy_file(tmp_path, 'base = "none"\nlists_dir = "mine"'))
    assert check_prompt("naked little girl", policy).rule == "minors.sexual"
    assert check_prompt("frobnicate", policy).rule == "minors.sexual"  # added to both lists
    own = '[[rules]]\nname = "minors.sexual"\naction = "allow"\nreason = "x"\nlists = ["minors"]'
    with pytest.raises(InvalidRequest, match=r"minors\.sexual is always active"):
        load_policy(policy_file(tmp_path, own))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shema = 1", "shema is wrong"),
        ('[[rules]]\nname = "a"\naction = "blur"\nreason = "x"\nlists = ["gore"]', "rules.0.action is wrong"),
        ('[[rules]]\nname = "a"\naction = "flag"\nreason = "x"\nlists = ["gor"]', "names the list gor"),
        ('lists_dir = "nowhere"', "no folder"),
        ('[lists.gore]\nremove = ["xyz"]', "no term 'xyz'"),
        ("[[rules", "cannot be read"),
    ],
)
def test_faults_of_a_file(tmp_path, text, said):
    with pytest.raises(InvalidRequest, match=r"own\.toml") as fault:
        load_policy(policy_file(tmp_path, text))
    assert said in fault.value.message
    assert fault.value.fields == ("safety",)


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(InvalidRequest, match="there is no safety policy"):
        load_policy(tmp_path / "none.toml")


def test_the_guide_describes_every_field():
    guide = (ROOT / "docs/guides/safety.md").read_text(encoding="utf-8")
    for model in (PolicyFile, Rule, ImageRule, OpenNSFWConfig, CompVisConfig, OnnxConfig):
        for name, field in model.model_fields.items():
            assert f"| `{field.alias or name}` | {field.description} |" in guide


def test_long_prompts_take_no_quadratic_time():
    """Counts steps, not seconds: with twice the text no more than three times as many."""
    import sys

    policy = load_policy("strict")

    def calls(text):
        count = 0

        def step(*_):
            nonlocal count
            count += 1

        before = sys.getprofile()
        sys.setprofile(step)
        try:
            check_prompt(text, policy)
        finally:
            sys.setprofile(before)
        return count

    for part in ("a.", "ab ", "nude", "n*d*", "n!a|", "nude girl "):
        calls(part * 10)  # compiles patterns
        assert calls(part * 800) < 3 * calls(part * 400)
