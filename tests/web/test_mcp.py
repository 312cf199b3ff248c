"""The server for assistants, asked by a real client over stdin and stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from callipper_db.web.mcp_server import LONGEST_ANSWER, answer
from sessions import user_session
from town import MIDDLE, QUARTERS

QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("search", {"text": kind, "k": 5}) for kind in QUARTERS),
    *(("describe", {"lon": MIDDLE[0] + east, "lat": MIDDLE[1] + north}) for _, east, north in QUARTERS.values()),
    *(("similar", {"lon": MIDDLE[0] + east, "lat": MIDDLE[1] + north}) for _, east, north in QUARTERS.values()),
    ("compare", {"lon": MIDDLE[0], "lat": MIDDLE[1], "other_lon": MIDDLE[0] + 0.02, "other_lat": MIDDLE[1]}),
]


def ask(dsn: str, questions: list[tuple[str, dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """The tools of a new server, and its answers."""

    async def talk() -> tuple[list[Any], list[Any]]:
        command = ["-m", "callipper_db", "mcp", "--dsn", dsn]
        server = StdioServerParameters(command=sys.executable, args=command)
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, [await session.call_tool(name, arguments) for name, arguments in questions]

    return anyio.run(talk)


def test_an_assistant_gets_short_answers_with_reasons(shared_town: str) -> None:
    tools, answers = ask(shared_town, QUESTIONS)
    assert [tool.name for tool in tools] == ["search", "describe", "similar", "compare"]
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools)
    for (name, arguments), result in zip(QUESTIONS, answers, strict=True):
        assert not result.is_error, result.content
        text = result.content[0].text
        assert len(text.encode()) <= LONGEST_ANSWER
        found = json.loads(text)
        if name == "search":
            assert arguments["text"].title() in found["places"][0]["because"]
        elif name == "similar":
            assert found["places"][0]["known_for"]
        else:
            assert found["kinds"][0]["because"]
    with user_session(shared_town) as connection:
        (expected,) = connection.execute(
            "SELECT 1 - (loc_embed(ST_SetSRID(ST_Point(%s, %s), 4326)) <=> loc_embed(ST_SetSRID(ST_Point(%s, %s), 4326)))",
            list(QUESTIONS[-1][1].values()),
        ).fetchone() or (None,)
    assert json.loads(answers[-1].content[0].text)["similarity"] == pytest.approx(expected, abs=0.001)


def test_what_cannot_be_answered_is_said_in_a_sentence(shared_town: str) -> None:
    _, answers = ask(
        shared_town,
        [
            ("search", {"text": " "}),
            ("search", {"text": "cafe", "within": "here"}),
            ("describe", {"lon": 700, "lat": 0}),
            ("describe", {"lon": -170.0, "lat": -80.0}),
        ],
    )
    assert all(result.is_error for result in answers)
    said = [result.content[0].text for result in answers]
    assert "text" in said[0] or "is empty" in said[0]
    assert "within is neither a bounding box" in said[1]
    assert "180" in said[2]
    assert not any("Traceback" in text for text in said)


def test_a_long_answer_gives_way_to_the_limit() -> None:
    rows = [{"because": "Crème brûlée " * 20, "number": number} for number in range(20)]
    found = json.loads(answer(rows, "places", support=1.0))
    assert found["left_out"] == 20 - len(found["places"]) > 0
    assert [row["number"] for row in found["places"]] == list(range(len(found["places"])))
    assert len(answer(rows, "places").encode()) <= LONGEST_ANSWER


@pytest.mark.parametrize("command", ["map", "mcp"])
def test_without_the_extra_it_says_what_to_install(
    command: str, run: Callable[..., Any], shared_town: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "callipper_db.web.serve", None)
    monkeypatch.setitem(sys.modules, "callipper_db.web.mcp_server", None)
    result = run(command, "--dsn", shared_town, exit_code=1)
    assert f"callipper-db[{command}]" in result.output
