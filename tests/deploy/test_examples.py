"""What is in deploy/ and docker-compose.yml says what this version understands; their schemas are `make check`'s."""

from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from jsonschema import Draft202012Validator

from api.routes.metrics import _Collected
from jobs.queues import DEFAULT
from jobs.records import Overview
from jobs.settings import Settings
from jobs.states import JobStatus
from jobs.tallies import Histogram
from tests.command_lines import check_command, commands_in

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OTHERS = {"HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "REDISCLI_AUTH"}
ENDS = {"succeeded", "failed", "cancelled", "died", "lease_expired", "handed_back"}


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / path).read_text(encoding="utf-8")))


def kubernetes(kind: str) -> dict[str, dict[str, Any]]:
    """The resources of a kind by their names."""
    files = ("flattengpt.yaml", "keda.yaml")
    found = [document for file in files for document in documents(f"deploy/kubernetes/{file}")]
    return {document["metadata"]["name"]: document for document in found if document["kind"] == kind}


def rules() -> list[dict[str, Any]]:
    [alerts] = documents("deploy/prometheus/alerts.yaml")
    return [rule for group in alerts["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    scaled = kubernetes("ScaledObject")["flattengpt-worker"]
    asked = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    return [rule["expr"] for rule in rules()] + asked


def exported() -> dict[str, set[str]]:
    """The names of all samples that `GET /metrics` has, and the labels of each."""
    histogram = Histogram({1.0: 1.0, float("inf"): 1.0}, 1.0)
    overview = Overview(
        jobs=dict.fromkeys(JobStatus, 0),
        queue_age_seconds={},
        unserved={},
        workers={},
        attempts_started=0,
        attempts_ended=dict.fromkeys(ENDS, 0.0),
        stage_seconds={"loading": histogram},
        peak_memory_bytes=histogram,
    )
    samples = [sample for metric in _Collected(overview, ["default"]).collect() for sample in metric.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
            inner = getattr(node, name, None)
            for each in inner if isinstance(inner, list) else [inner]:
                if each is not None and not isinstance(each, str | int | float):
                    visit(each)

    visit(promql_parser.parse(query))
    return found


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_metrics_that_there_are(query: str) -> None:
    samples = exported()
    found = selectors(query)
    assert found
    for selector in found:
        assert selector.name in samples
        for matcher in selector.matchers.matchers:
            assert matcher.name in samples[selector.name]
            values = set(matcher.value.split("|"))
            known = {"how": ENDS, "status": {status.value for status in JobStatus}, "queue": {DEFAULT}}
            assert values <= set(known[matcher.name])


def test_each_alert_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = {line.removeprefix("### ") for line in page.splitlines() if line.startswith("### FlattenGPT")}
    assert headings == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_pods_are_found_by_their_labels() -> None:
    deployments = kubernetes("Deployment")
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in deployments.items()}
    for name, deployment in deployments.items():
        assert deployment["spec"]["selector"]["matchLabels"] == labels[name]
    assert kubernetes("Service")["flattengpt"]["spec"]["selector"] == labels["flattengpt-api"]
    assert kubernetes("ScaledObject")["flattengpt-worker"]["spec"]["scaleTargetRef"]["name"] in deployments


def containers() -> list[dict[str, Any]]:
    """Every container of both examples that runs the image, with its arguments and variables."""
    found = []
    for deployment in kubernetes("Deployment").values():
        spec = deployment["spec"]["template"]["spec"]
        found += [*spec.get("initContainers", []), *spec["containers"]]
    [compose] = documents("docker-compose.yml")
    found += [
        {"args": part["command"], **part} for part in compose["services"].values() if part["image"] == "flattengpt"
    ]
    return found


def test_containers_run_commands_that_there_are() -> None:
    assert len(containers()) == 8
    for container in containers():
        check_command(container["args"])


def test_the_workflow_runs_commands_that_there_are() -> None:
    [workflow] = documents("deploy/github/compress-weekly.yaml")
    runs = [step["run"] for step in workflow["jobs"]["compress"]["steps"] if "run" in step]
    found = [command for run in runs for command in commands_in(run)]
    assert [command[0] for command in found] == ["submit", "download"]
    for command in found:
        check_command(command)


def test_variables_are_settings() -> None:
    known = {
        str(field.validation_alias or f"FLATTENGPT_{name.upper()}") for name, field in Settings.model_fields.items()
    }
    [compose] = documents("docker-compose.yml")
    inside = [name for part in compose["services"].values() for name in part["environment"]]
    assert {name for name in inside if not name.startswith("POSTGRES_")} <= known | OTHERS


@pytest.mark.parametrize(
    ("schema", "example", "path", "wrong"),
    [
        ("keda_scaled_object", "kubernetes/keda", ("spec", "triggers", 0, "metadata", "threshold"), 600),
        ("keda_scaled_object", "kubernetes/keda", ("spec", "pollingIntervall"), 30),
        ("prometheus_rules", "prometheus/alerts", ("groups", 0, "rules", 0, "for"), "5 minutes"),
        ("prometheus_rules", "prometheus/alerts", ("groups", 0, "rules", 0, "expression"), "up"),
    ],
)
def test_our_own_schemas_find_mistakes(schema: str, example: str, path: tuple[str | int, ...], wrong: object) -> None:
    [rules] = documents(f"tests/deploy/schemas/{schema}.yaml")
    [document] = documents(f"deploy/{example}.yaml")
    validator = Draft202012Validator(rules)
    assert validator.is_valid(document)
    part: Any = document
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = wrong
    assert not validator.is_valid(document)
