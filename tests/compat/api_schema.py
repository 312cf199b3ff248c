"""Requests that schemathesis makes of the map's OpenAPI description: make compat. None makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from callipper_db.web.app import create_app
from callipper_db.web.settings import MapSettings

pytestmark = pytest.mark.filterwarnings("default")
LOCAL = {"Host": "localhost"}  # the map answers under no other name


@pytest.fixture(scope="module")
def described(module_town: str) -> Iterator[schemathesis.BaseSchema]:
    app = create_app(MapSettings(module_town))
    yield schemathesis.openapi.from_asgi("/openapi.json", app, headers=LOCAL)
    app.state.database.close()


def test_no_request_makes_the_server_fail(described: schemathesis.BaseSchema) -> None:
    operations = [result.ok() for result in described.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def refuses_or_answers(case: schemathesis.Case) -> None:
            response = case.call(headers=LOCAL)
            case.validate_response(response, checks=[not_a_server_error])
            if response.status_code >= 400:
                assert response.json()["error"]

        refuses_or_answers()
