"""Prompts that change and are composed, against what webui makes of them."""

import json

import pytest

from limner.prompts.schedule import compose, prompt_schedule


def golden(reference, name):
    entries = [json.loads(line) for line in (reference / "prompts" / name).read_text().splitlines()]
    assert len(entries) > 20
    return entries


def test_golden_schedules(reference):
    compared = 0
    for entry in golden(reference, "schedule.jsonl"):
        if entry.get("use_old_scheduling"):  # a setting for pictures of 2023
            continue
        steps, done = entry["steps"], None
        if "hires_steps" in entry:
            steps, done = entry["hires_steps"], entry["steps"]
        found = [list(part) for part in prompt_schedule(entry["prompt"], steps, done)]
        assert found == entry["schedule"], entry["id"]
        compared += 1
    assert compared > 45


def test_golden_compositions(reference):
    for entry in golden(reference, "composition.jsonl"):
        if "prompt" in entry:
            found = [[part.text, part.weight] for part in compose(entry["prompt"])]
            assert found == entry["subprompts"], entry["id"]


@pytest.mark.parametrize(
    "prompt", ["[" * 50_000, "[a|" * 20_000, "(" * 30_000 + ")" * 30_000, "[a:" * 20_000]
)
def test_hostile_prompts_end(prompt):
    assert prompt_schedule(prompt, 20)[-1][0] == 20
