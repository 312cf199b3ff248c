"""Requests that schemathesis makes of the map's OpenAPI description: make compat. None makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from callipper_db.web.app import create_app
from callipper_db.web.settings import MapSettings

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def described(module_town: str) -> Iterator[schemathesis.BaseSchema]:
    app = create_app(MapSettings(module_town))
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    app.state.database.close()


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_makes_the_server_fail(case: schemathesis.Case) -> None:
    response = case.call(headers={"Host": "localhost"})
    case.validate_response(response, checks=[not_a_server_error, content_type_conformance, response_schema_conformance])
    if response.status_code >= 400:
        assert response.json()["error"]
