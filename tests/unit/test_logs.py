"""Logging: to stderr, as text or as JSON, from a level on."""

import asyncio
import json
import logging

import pytest

from limner.cli.main import main
from limner.logs import configure, log_fields


@pytest.fixture(autouse=True)
def _as_before():
    loggers = [logging.getLogger(name) for name in ("limner", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, state in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = state
    logging.getLogger("limner.training").setLevel(logging.NOTSET)


def test_events_as_json(capsys):
    configure("info", "json")
    log = logging.getLogger("limner.engine")
    log.debug("step")
    log.info("started", extra={"fields": {"job": "7f", "seconds": 0.5}})
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("a job failed")
    said = capsys.readouterr()
    assert said.out == ""
    first, second = map(json.loads, said.err.splitlines())
    assert {**first, "level": "info", "logger": "limner.engine", "job": "7f", "seconds": 0.5} == first
    assert first["message"] == "started"
    assert first["time"].endswith("+00:00")
    assert "ValueError: no" in second["traceback"]


@pytest.mark.parametrize(("level", "logged"), [(None, True), ("info", True), ("warning", False)])
def test_training_reports_its_progress_by_default(capsys, level, logged):
    configure(level, "text")
    logging.getLogger("limner.training").info("trained", extra={"fields": {"step": 7}})
    logging.getLogger("limner.engine").info("started")
    said = capsys.readouterr().err
    assert ("info limner.training: trained step=7" in said) == logged
    assert ("started" in said) == (level == "info")


def test_events_as_text_are_safe_to_print(capsys):
    configure("debug", "text")
    logging.getLogger("limner.engine").debug("step\x1b[2J", extra={"fields": {"job": "7f\nerror"}})
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("debug limner.engine: step\\x1b[2J job=7f\\nerror")


def test_a_process_of_the_service_names_itself_and_speaks_for_uvicorn(capsys):
    configure("info", "json", process="api")
    logging.getLogger("uvicorn.some").info("started")
    configure("info", "text", process="worker cpu")
    logging.getLogger("limner.service").info("claimed")
    first, second = capsys.readouterr().err.splitlines()
    assert (json.loads(first)["process"], json.loads(first)["logger"]) == ("api", "uvicorn.some")
    assert "[worker cpu] info limner.service: claimed" in second


def test_common_data_stays_with_its_task(capsys):
    log = logging.getLogger("limner.server")
    configure("info", "json")

    async def answer(name):
        with log_fields(request_id=name):
            await asyncio.sleep(0)
            log.info("answered", extra={"fields": {"status": 200}})
            await asyncio.to_thread(log.info, "stored")

    async def both():
        await asyncio.gather(answer("a"), answer("b"))
        log.info("idle")

    asyncio.run(both())
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert sorted((one["message"], one.get("request_id")) for one in events[:-1]) == [
        ("answered", "a"),
        ("answered", "b"),
        ("stored", "a"),
        ("stored", "b"),
    ]
    assert "request_id" not in events[-1]


def test_the_engine_s_events_are_logged(checkpoint_folder, tmp_path, capsys):
    size = ["--width", "64", "--height", "64", "--steps", "2", "--model", str(checkpoint_folder)]
    with pytest.raises(SystemExit) as exit:
        main(
            [
                "--log-level",
                "debug",
                "--log-format",
                "json",
                "generate",
                "x",
                *size,
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert not exit.value.code
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    messages = [event["message"] for event in events if event["logger"] == "limner.engine"]
    assert [message for message in messages if message != "step"] == [
        "admitted",
        "started",
        "picture",
        "finished",
    ]
    assert messages.count("step") == 2
    [finished] = [event for event in events if event["message"] == "finished"]
    assert finished["images"] == 1
    assert finished["seconds"] > 0
    assert not {"picture"} & {*finished}


def test_an_unknown_level_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--log-level", "loud", "models"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: the log level is 'loud'; expected debug")
