"""The safety policy for prompts in the service: every API and text, accounts, keys, the audit log."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from limner.cli.main import main
from limner.errors import InternalError, InvalidRequest
from limner.service import catalogue
from limner.service.supervisor import Supervisor
from limner.settings.serve import ServeSettings
from tests.serving import Painter, Served, serving, submit

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
MINORS = "a naked schoolgirl"  # refused in every server
BLOCKED, FLAGGED = "a hentai poster", "a nude figure"  # by the policy "standard"
POLICY = """
schema = 1
[[rules]]
name = "boats"
action = "block"
reason = "no boats"
lists = ["boats"]
[lists.boats]
add = ["boat"]
"""


def write_network(path: Path, words: str, **tensors: np.ndarray) -> None:
    """A network and a note with the words that it answers to."""
    save_file({name: np.asarray(value, np.float32) for name, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"activation text": words}))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stocked")
    for name in ("words", "loras", "embeddings"):
        (folder / name).mkdir()
    (folder / "words/who.txt").write_text("naked schoolgirl\n")
    (folder / "styles.csv").write_text("name,prompt,negative_prompt\nbad,hentai,\n")
    down, up = np.ones((4, 192)), np.ones((64, 4))
    lora = {f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up}
    write_network(folder / "loras/ink.safetensors", "naked", **lora)
    write_network(folder / "embeddings/blob.safetensors", "hentai", emb_params=np.zeros((1, 192)))
    painter = Painter(failures={"a red car": InternalError("the engine failed")})
    with serving(
        folder / "data",
        painter=painter,
        wildcards_dirs=(folder / "words",),
        styles_files=(folder / "styles.csv",),
        lora_dirs=(folder / "loras",),
        embedding_dirs=(folder / "embeddings",),
    ) as served:
        yield served


def jobs_of(served: Served) -> int:
    return len(served.ledger.list_jobs(None, limit=500))


def refusals(served: Served):
    return [row for row in served.ledger.audit_log() if row.action == "request.refused"]


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"prompt": BLOCKED}, "prompt"),
        ({"prompt": "a h.e.n.t.a.i poster"}, "prompt"),
        ({"prompt": "a __who__", "wildcards": True}, "prompt"),
        ({"prompt": "{a|a} hen{tai|tai}", "wildcards": True}, "prompt"),
        ({"prompt": "a cat", "styles": ["bad"]}, "prompt"),
        ({"prompt": "a hen[:tai:0]"}, "prompt"),
        ({"prompt": "a little boy <lora:ink:1>"}, "loras"),
        ({"prompt": "a blob"}, "prompt"),
        ({"prompt": "a cat", "hires_scale": 2.0, "hires_prompt": "hentai"}, "hires_prompt"),
        (
            {"prompt": "x", "negative_prompt": "hentai", "sampler": "euler_cfg_pp", "guidance_scale": 0.3},
            "negative_prompt",
        ),
        ({"prompt": "an orgy", "negative_prompt": "adult, grown up"}, "negative_prompt"),
    ],
)
def test_every_text_of_a_request_is_checked(stocked, fields, source):
    before = jobs_of(stocked), len(refusals(stocked))
    answer = stocked.client.post("/api/v1/jobs", json={"request": fields})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    problem = answer.json()
    assert problem["code"] == "prompt_refused"
    assert source in problem["fields"]
    decision = problem["decision"]
    assert (decision["action"], decision["version"].split()[0]) == ("block", "standard")
    assert decision["rule"] in problem["detail"]
    assert source in {span["source"] for span in decision["spans"]}
    assert (jobs_of(stocked), len(refusals(stocked))) == (before[0], before[1] + 1)


def test_the_problem_says_which_words_are_meant(stocked):
    problem = stocked.client.post("/api/v1/jobs", json={"request": {"prompt": BLOCKED}}).json()
    [span] = [one for one in problem["decision"]["spans"] if one["source"] == "prompt"]
    assert BLOCKED[span["start"] : span["end"]] == span["text"] == "hentai"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/v1/jobs", {"request": {"prompt": "%s"}}, 422),
        ("/v1/images/generations", {"prompt": "%s"}, 400),
        ("/v1/images/generations", {"prompt": "%s", "stream": True}, 400),
        ("/sdapi/v1/txt2img", {"prompt": "%s"}, 400),
        ("/sdapi/v1/txt2img", {"prompt": "a cat", "enable_hr": True, "hr_prompt": "%s"}, 400),
        ("/api/v1/estimates", {"request": {"prompt": "%s"}}, 422),
    ],
)
@pytest.mark.parametrize("prompt", [BLOCKED, MINORS])
def test_every_api_refuses_in_its_own_way(stocked, path, body, status, prompt):
    before = jobs_of(stocked)
    answer = stocked.client.post(path, json=json.loads(json.dumps(body).replace("%s", prompt)))
    assert answer.status_code == status, answer.text
    assert jobs_of(stocked) == before
    if path.startswith("/v1"):
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "image_generation_user_error",
            "content_policy_violation",
            "prompt",
        )
        assert answer.headers["x-should-retry"] == "false"
    elif path.startswith("/sdapi"):
        assert set(answer.json()) == {"error", "detail", "body", "errors"}
        assert "safety policy" in answer.json()["detail"]


def test_a_refusal_is_audited_without_its_words_and_counted(stocked):
    counted = lambda: stocked.state.metrics.value(  # noqa: E731
        "limner_safety_decisions_total", stage="prompt", action="block", rule="sexual"
    )
    before = counted()
    stocked.client.post("/v1/images/generations", json={"prompt": "a hentai of a zeppelin"})
    row = refusals(stocked)[-1]
    assert (row.actor, row.subject, row.details["client"]) == ("local", "local", "openai")
    assert row.details["version"].startswith("standard ")
    assert row.details["fields"] == ["prompt"]
    assert "zeppelin" not in json.dumps(row.details)
    assert "hentai" not in json.dumps(row.details)
    assert (row.details["rule"], counted()) == ("sexual", before + 1)
    assert 'action="block",rule="sexual",stage="prompt"' in stocked.client.get("/metrics").text
    entries = len(refusals(stocked))
    stocked.client.post("/api/v1/estimates", json={"request": {"prompt": BLOCKED}})
    assert len(refusals(stocked)) == entries, "an estimate is no request for images"


def test_what_is_flagged_is_drawn_and_says_so(stocked):
    done = submit(stocked.client, prompt=FLAGGED)
    [job] = done["jobs"]
    assert (job["state"], job["safety"]["action"]) == ("done", "flag")
    assert job["safety"]["findings"][0]["spans"][0]["text"] == "nude"
    assert any("flags the prompt" in one for one in done["warnings"])
    record = stocked.client.get(f"/api/v1/images/{job['image']['id']}").json()["record"]
    assert record["notes"]["safety"].startswith(f"flag by {job['safety']['version']}, rule ")
    fine = submit(stocked.client, prompt="a red house")["jobs"][0]
    assert (fine["safety"]["action"], fine["safety"]["rule"]) == ("allow", None)
    record = stocked.client.get(f"/api/v1/images/{fine['image']['id']}").json()["record"]
    assert record["notes"]["safety"] == f"allow by {fine['safety']['version']}"


def test_an_account_has_a_policy_of_its_own_and_a_key_adds_to_it(stocked):
    def ask(headers, prompt):
        return stocked.client.post("/api/v1/jobs", json={"request": {"prompt": prompt}}, headers=headers)

    stocked.ledger.create_account("free", policy={"safety": "off"})
    free, strict = stocked.key("free"), stocked.key("free", policy={"safety": "strict"})
    assert ask(free, BLOCKED).status_code == 202
    assert ask(free, MINORS).status_code == 422, "no account is without this tier"
    refused = ask(strict, FLAGGED)
    assert refused.status_code == 422
    assert [one.split()[0] for one in refused.json()["decision"]["version"].split(", ")] == ["off", "strict"]
    careful = stocked.key("careful", policy={"safety": "off"})
    assert ask(careful, BLOCKED).status_code == 422, "a key cannot take the service's policy away"
    seen = stocked.client.get("/api/v1/account", headers=strict).json()["safety"]
    assert [one.split()[0] for one in seen] == ["off", "strict"]
    made = stocked.client.post("/api/v1/keys", json={"policy": {"safety": "off"}}, headers=strict)
    assert (made.status_code, made.json()["fields"]) == (403, ["policy"])
    made = stocked.client.post("/api/v1/keys", json={"policy": {"max_steps": 5}}, headers=strict)
    assert made.json()["policy"] == {"max_steps": 5, "safety": "strict"}


def test_what_was_accepted_is_checked_again_before_it_is_drawn_again(stocked):
    alice = stocked.key("alice")
    stocked.ledger.update_account("alice", policy={"safety": "off"})
    failed = submit(stocked.client, prompt="a red car", headers=alice)
    done = submit(stocked.client, prompt=BLOCKED, headers=alice)
    [job], client = failed["jobs"], stocked.client
    assert client.post(f"/api/v1/jobs/{job['id']}/retry", headers=alice).status_code == 200
    assert client.post(f"/api/v1/sets/{done['id']}/jobs", json={"count": 1}, headers=alice).status_code == 202
    stocked.ledger.update_account("alice", policy={"safety": "standard"})
    more = client.post(f"/api/v1/sets/{done['id']}/jobs", json={"count": 1}, headers=alice)
    assert (more.status_code, more.json()["code"]) == (422, "prompt_refused")
    waiting = stocked.ledger.get_set(done["id"]).jobs
    assert len(waiting) == 2
    assert refusals(stocked)[-1].actor == "alice"


def test_a_retry_must_pass_the_policy(tmp_path):
    painter = Painter(failures={BLOCKED: InternalError("the engine failed")})
    with serving(tmp_path, painter=painter, safety="off") as served:
        alice = served.key("alice")
        [job] = submit(served.client, prompt=BLOCKED, headers=alice)["jobs"]
        assert job["state"] in ("failed", "dead")
        served.ledger.update_account("alice", policy={"safety": "standard"})
        again = served.client.post(f"/api/v1/jobs/{job['id']}/retry", headers=alice)
        assert (again.status_code, again.json()["code"]) == (422, "prompt_refused")
        operator = served.key("local")
        again = served.client.post(f"/api/v1/jobs/{job['id']}/retry", headers=operator)
        assert again.status_code == 422, "the policy of the job's account counts"
        assert served.ledger.get_job(job["id"]).state == job["state"]


def test_a_file_is_the_policy_and_off_keeps_one_tier(tmp_path):
    (tmp_path / "own.toml").write_text(POLICY)
    with serving(tmp_path / "own", working=False, safety=str(tmp_path / "own.toml")) as served:
        refused = served.client.post("/api/v1/jobs", json={"request": {"prompt": "a red boat"}}).json()
        assert (refused["decision"]["rule"], refused["decision"]["version"][:9]) == ("boats", "own.toml ")
        assert str(tmp_path) not in json.dumps(refused)
    with serving(tmp_path / "off", working=False, safety="off") as served:
        ask = lambda prompt: served.client.post("/api/v1/jobs", json={"request": {"prompt": prompt}})  # noqa: E731
        assert ask(BLOCKED).status_code == 202
        assert ask(MINORS).json()["code"] == "prompt_refused"


def test_a_service_for_others_with_other_models_asks_for_a_choice(tmp_path, monkeypatch):
    def start(**settings):
        Supervisor(ServeSettings(data=tmp_path / "data", **settings)).run()

    with pytest.raises(InvalidRequest, match="no safety policy is chosen") as refused:
        start(host="0.0.0.0", models=("other",))
    assert refused.value.fields == ("safety",)
    with pytest.raises(InvalidRequest, match="no safety policy is chosen"):
        start(host="0.0.0.0", model_dirs=(tmp_path,))
    with monkeypatch.context() as patched:
        entry = SimpleNamespace(name="organisation/other", problem=None)  # such as one of the hub's cache
        known = SimpleNamespace(entries=lambda kind: [entry])
        patched.setattr(catalogue, "catalogue_of", lambda settings: known)
        with pytest.raises(
            InvalidRequest, match=r"other than the shipped one \(organisation/other\)"
        ) as refused:
            start(host="0.0.0.0")
        assert "`safety`" in refused.value.hint
    with pytest.raises(InvalidRequest, match=r"there is no safety policy .*none\.toml"):
        start(safety=str(tmp_path / "none.toml"))
    for settings in ({"models": ("other",), "safety": "off"}, {}):  # the next thing that is asked for: a key
        with pytest.raises(InvalidRequest, match="there is no key"):
            start(host="0.0.0.0", port=0, devices=("fake",), **settings)


def test_the_command_line_gives_an_account_a_policy(tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments), "--data", str(tmp_path)])
        return end.value.code

    assert run("keys", "create", "--account", "anna", "--limit", "safety=strict") == 0
    assert run("accounts", "change", "anna", "--limit", "safety=off", "--limit", "max_steps=9") == 0
    assert "safety=off" in capsys.readouterr().err
    assert run("accounts", "change", "anna", "--limit", "safety=none") == 0
    assert "safety" not in capsys.readouterr().err
    assert run("accounts", "change", "anna", "--limit", "safety=weak") == 2
