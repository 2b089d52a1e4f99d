"""Whatever a MindIE body holds, the answer is never the server's fault, and refusals have TGI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.app import create_app
from telechat.serve.mindie.fields import (
    ChatWebRequest,
    TgiParameters,
    TgiRequest,
    TritonInferRequest,
    TritonParameters,
    TritonRequest,
    VllmRequest,
)
from telechat.serve.settings import ServeSettings

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["<_end>", "<_user>", "", "\x00", "1e999", -0.0, 1e-320, 1e308]),
    st.lists(st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
PARAMETERS = sorted({*TgiParameters.model_fields, *TritonParameters.model_fields})
ROUTES = {
    "/generate": (*TgiRequest.model_fields, *VllmRequest.model_fields, *ChatWebRequest.model_fields),
    "/generate_stream": (*TgiRequest.model_fields, *VllmRequest.model_fields),
    "/infer": ("inputs", "parameters", "stream"),
    "/infer_token": ("input_id", "parameters", "stream"),
    "/v2/models/fake/generate": tuple(TritonRequest.model_fields),
    "/v2/models/fake/infer": tuple(TritonInferRequest.model_fields),
}
SOUND = {
    "inputs": "hi",
    "prompt": "hi",
    "text_input": "hi",
    "input_id": [104],
    "messages": [{"role": "user", "content": "hi"}],
}


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_app(FakeEngine(), ServeSettings()), raise_server_exceptions=False)


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_body_is_the_servers_fault(client: TestClient, route: str, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(set(ROUTES[route])))
    body = data.draw(st.dictionaries(names, ODD, max_size=4))
    for name in data.draw(st.sets(names, max_size=2)) & set(SOUND):
        body[name] = SOUND[name]
    if data.draw(st.booleans()):
        body["parameters"] = data.draw(st.dictionaries(st.sampled_from(PARAMETERS), ODD, max_size=4))
    answer = client.post(
        route, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 400, 404, 422), (body, answer.text)
    if answer.status_code in (404, 422):
        refusal = answer.json()
        assert isinstance(refusal["error"], str) and refusal["error_type"] == "validation"
