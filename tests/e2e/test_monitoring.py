"""The example of Grafana names metrics that a server has; ours are named as Prometheus wants."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from bench.common.server import Server
from tests.e2e.forked import Zygote
from tests.e2e.prompts import tiny_passages

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "monitoring"
PARTS = {"high", "mid", "low", "near", "header", "padding", "table"}
UNITS = ("tokens", "ratio", "units", "blocks", "bytes", "pages", "rows", "objects", "loads", "failures")
"""With which names of ours end, behind which counters have ``_total``."""


@pytest.fixture(scope="module")
def server(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    """With a place beyond the device and metrics, and after a few requests, one of them a hit and streamed."""
    flags = ("--max-total-tokens", "1024", "--enable-metrics", "--leankv-host-memory", "64MiB", "--leankv-profile")
    with zygote.serve("--model-path", str(tiny), *flags, "none") as running:
        for passage in tiny_passages(6, 300, 400, seed=1):
            running.generate(passage, 40)
        list(running.stream(passage, 40))
        yield running


@pytest.fixture(scope="module")
def exposed(server: Server) -> str:
    """What Prometheus reads."""
    return requests.get(server.url + "/metrics", timeout=60).text


def samples(text: str) -> dict[str, list[str]]:
    """Names of all samples, each with the labels it comes with."""
    found: dict[str, list[str]] = {}
    for name, labels in re.findall(r"^((?:leankv|sglang):\w+)(\{.*\})? \S+$", text, re.MULTILINE):
        found.setdefault(name, []).append(labels)
    return found


def panels() -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = json.loads((EXAMPLE / "grafana" / "leankv.json").read_text())["panels"]
    return drawn


def named() -> set[str]:
    """Metrics that the dashboard's expressions ask for."""
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    return {name for expression in asked for name in re.findall(r"(?:leankv|sglang):\w+", expression)}


def test_the_dashboard_shows_what_the_server_has(exposed: str) -> None:
    there = set(samples(exposed))
    # Which has no sample before somebody was.
    assert named() - there <= {"sglang:num_retracted_requests_total"}


def test_what_is_chosen_by_is_a_label_of_each(exposed: str) -> None:
    labels = samples(exposed)
    assert all('model_name="' in one for name in named() & set(labels) for one in labels[name])


def test_the_dashboard_shows_all_of_ours(exposed: str) -> None:
    ours = {name for name in samples(exposed) if name.startswith("leankv:") and not name.endswith("_created")}
    assert len(ours) > 25
    assert ours <= named()


def test_legends_name_labels_that_are_there(exposed: str) -> None:
    labels = samples(exposed)
    for panel in panels():
        for target in panel.get("targets", []):
            first = re.findall(r"(?:leankv|sglang):\w+", target["expr"])[0]
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert all(f'{label}="' in one for one in labels[first]), (first, label)


def test_names_say_kind_and_unit(exposed: str) -> None:
    kinds = dict(re.findall(r"^# TYPE (leankv:\w+) (\w+)$", exposed, re.MULTILINE))
    assert set(kinds.values()) == {"gauge", "counter"}
    for name, kind in kinds.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.removesuffix("_total").endswith(UNITS), name


def test_labels_are_bounded(exposed: str) -> None:
    ours = {name: found for name, found in samples(exposed).items() if name.startswith("leankv:")}
    values = {pair for found in ours.values() for labels in found for pair in re.findall(r'(\w+)="([^"]*)"', labels)}
    assert {value for label, value in values if label == "part"} == PARTS
    assert {value for label, value in values if label == "place"} == {"host"}
    assert len(values) < len(PARTS) + 20
    assert max(len(found) for found in ours.values()) == len(PARTS)


def test_files_fit_each_other() -> None:
    compose = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":") for service in compose.values() for volume in service["volumes"]]
    assert all((EXAMPLE / source).is_file() and mode == "ro" for source, _, mode in mounted)
    targets = {target for _, target, _ in mounted}
    assert compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in targets
    prometheus = yaml.safe_load((EXAMPLE / "prometheus.yaml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:30000"]
    source = yaml.safe_load((EXAMPLE / "grafana" / "datasource.yaml").read_text())["datasources"][0]
    dashboard = json.loads((EXAMPLE / "grafana" / "leankv.json").read_text())
    chosen = next(one for one in dashboard["templating"]["list"] if one["type"] == "datasource")
    assert chosen["current"]["value"] == source["uid"]
    assert yaml.safe_load((EXAMPLE / "grafana" / "dashboards.yaml").read_text())["providers"][0]["options"] == {
        "path": "/etc/dashboards"
    }
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
