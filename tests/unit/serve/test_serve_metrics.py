"""Metrics: each one moves when it should, and every query of the dashboard names metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine.outputs import EngineStats
from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}
MONITORING = Path(__file__).resolve().parents[3] / "deploy" / "monitoring"
STATS = EngineStats(
    num_running=3,
    num_waiting=4,
    num_blocks=100,
    num_free_blocks=60,
    num_cached_blocks=20,
    block_size=16,
    num_steps=7,
    num_computed_tokens=900,
    num_generated_tokens=800,
    num_prefix_hit_tokens=500,
    num_preemptions=6,
    num_draft_tokens=50,
    num_accepted_drafts=40,
)


class Reading(dict[str, float]):
    """Samples by name and labels, as `name{label="value"}`."""

    def __init__(self, client: TestClient) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        super().__init__()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                self[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value


def test_requests_by_route_and_status(client: TestClient) -> None:
    client.post(CHAT, json=BODY)
    client.post(CHAT, json=BODY)
    client.post(CHAT, json={})
    client.get("/v1/models/a/b")
    for path in ("/nope", "/nope2", "/%00"):
        client.get(path)
    read = Reading(client)
    assert read[f'telechat_requests_total{{route="{CHAT}",status="200"}}'] == 2
    assert read[f'telechat_requests_total{{route="{CHAT}",status="400"}}'] == 1
    assert read['telechat_requests_total{route="/v1/models/{model_id}",status="404"}'] == 1
    assert read['telechat_requests_total{route="other",status="404"}'] == 3
    assert read[f'telechat_request_seconds_count{{route="{CHAT}"}}'] == 3


def test_refused_keys_are_counted_without_their_path(make_client: MakeClient) -> None:
    client = make_client(api_keys=("sk-a",))
    client.post("/anything/at/all")
    assert client.get("/metrics").status_code == 401
    client.headers["Authorization"] = "Bearer sk-a"
    assert Reading(client)['telechat_requests_total{route="other",status="401"}'] == 2


def test_tokens_and_times(client: TestClient) -> None:
    client.post(CHAT, json=BODY)
    client.post(CHAT, json={**BODY, "n": 2, "stream": True})
    read = Reading(client)
    assert read["telechat_prompt_tokens_total"] == 10
    # The fake's answer has five pieces and an end token.
    assert read["telechat_completion_tokens_total"] == 18
    assert read["telechat_time_to_first_token_seconds_count"] == 2
    assert read["telechat_time_per_output_token_seconds_count"] == 3
    assert 0 <= read["telechat_time_to_first_token_seconds_sum"] < 60


def test_time_per_token_leaves_the_first_one_out(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hello"] = (0.5, "a", 0.1, "b", 0.1, "c")
    client.post(CHAT, json=BODY)
    read = Reading(client)
    assert read["telechat_time_to_first_token_seconds_sum"] >= 0.5
    # Three tokens after the first: b, c and the end.
    assert 0.2 / 3 <= read["telechat_time_per_output_token_seconds_sum"] < 0.5


def test_failed_answers(make_client: MakeClient, engine: FakeEngine) -> None:
    engine.scripts["hello"] = ("a", 1000.0)
    client = make_client(request_seconds=0.05)
    client.post(CHAT, json={**BODY, "stream": True})
    client.post(CHAT, json={})
    read = Reading(client)
    assert read["telechat_requests_failed_total"] == 1
    assert read["telechat_requests_cancelled_total"] == 0


def test_what_engines_say(engine: FakeEngine) -> None:
    second = FakeEngine()
    second.is_alive, second.num_restarts = False, 2

    class Both(FakeEngine):
        @property
        def replicas(self) -> tuple[FakeEngine, ...]:
            return (engine, second)

    client = TestClient(create_app(Both(), ServeSettings()))
    assert Reading(client)['telechat_engine_running{replica="0"}'] == 0
    engine.stats = STATS
    read = Reading(client)
    expected = {
        "up": 1,
        "running": 3,
        "waiting": 4,
        "cache_blocks": 100,
        "cache_blocks_used": 40,
        "cache_blocks_reusable": 20,
        "restarts_total": 0,
        "steps_total": 7,
        "computed_tokens_total": 900,
        "generated_tokens_total": 800,
        "prefix_hit_tokens_total": 500,
        "preemptions_total": 6,
        "draft_tokens_total": 50,
        "accepted_draft_tokens_total": 40,
    }
    for name, value in expected.items():
        assert read[f'telechat_engine_{name}{{replica="0"}}'] == value
    assert read['telechat_engine_up{replica="1"}'] == 0
    assert read['telechat_engine_restarts_total{replica="1"}'] == 2
    assert read["telechat_requests_in_progress"] == 0


def test_two_services_do_not_mix(engine: FakeEngine) -> None:
    first, second = (TestClient(create_app(engine, ServeSettings())) for _ in range(2))
    first.post(CHAT, json=BODY)
    assert Reading(second)["telechat_prompt_tokens_total"] == 0


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_exist(client: TestClient) -> None:
    client.post(CHAT, json=BODY)
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
    labels_of: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels_of.setdefault(sample.name, set()).update(sample.labels)
    # What Prometheus itself adds to everything that it reads.
    added = {"job", "instance"}
    asked = set()
    for query in queries(dashboard):
        names = re.findall(r"\b(?:telechat|process)_\w+", query)
        assert names, query
        assert set(names) <= labels_of.keys(), query
        asked.update(names)
        known = set().union(*(labels_of[name] for name in names)) | added
        for listed in re.findall(r"\bby \(([^)]*)\)", query):
            assert {label.strip() for label in listed.split(",")} <= known, query
        for listed in re.findall(r"\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", listed)) <= known, query
        assert query.count("(") == query.count(")")
        if "histogram_quantile" in query:
            assert all(name.endswith("_bucket") for name in names)
        counters = [name for name in names if name.endswith("_total")]
        assert len(re.findall(r"(?:rate|increase)\(telechat", query)) == len(counters) + query.count(
            "_bucket"
        )
    # Nothing that matters is counted and never shown.
    ours = {name for name in labels_of if name.startswith("telechat_")}
    kinds = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in ours}
    shown = {re.sub(r"_bucket$", "", name) for name in asked}
    unshown = {name for name in kinds if name not in shown and f"{name}_total" not in shown}
    assert unshown == {"telechat_engine_cache_blocks_reusable", "telechat_engine_generated_tokens_total"}


def test_panels_have_numbers_and_words_of_their_own() -> None:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert all(panel["description"].endswith(".") for panel in panels)


def test_the_prometheus_file_reads_our_route() -> None:
    file = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = file["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{ServeSettings().port}"]


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0"])
def test_forms_that_readers_ask_for(client: TestClient, accept: str) -> None:
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.text.endswith("# EOF\n") is ("openmetrics" in accept)
