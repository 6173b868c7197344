"""Metrics, what is told of them, and what is made of them: docs/operating.md, the alerts and the dashboard in deploy/
go by those that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproto.net.causes import Cause
from tests.net.test_seed_front import Looker
from tests.prometheus import PARTS, Page, read
from tests.world import World

ROOT = Path(__file__).parent.parent
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
ALERTS_TEST = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "meshproto.json").read_text(encoding="utf-8"))
PROMTOOL = shutil.which("promtool")

_METRIC = re.compile(r"\b(?:meshproto_(?:user|seed)|process)_[a-z0-9_]+")
_LABELLED = re.compile(r"\b((?:meshproto_(?:user|seed)|process)_[a-z0-9_]+)\{([^}]*)\}")
_BY_TIME = re.compile(r"\b(?:rate|irate|increase)\(([a-z0-9_]+)")
_QUANTILE = re.compile(r"histogram_quantile\(([\d.]+), sum by \(([^)]*)\) \(rate\(([a-z0-9_]+)")
_OF_PROMETHEUS = {"job", "instance"}


@pytest.fixture(scope="module")
def there() -> Page:
    """What a user node and a seed have, put together."""
    world = World(5)
    world.add_seed("seedX")
    world.add_user("UserX", ["seedX"])
    world.run_until(world.registered)
    world.run(2)
    user = read(world.text("UserX", "/metrics")[1])
    seed = read(Looker(world, "seedX").ask("GET", "/metrics")[1].decode())
    world.close()
    return Page({**user.kinds, **seed.kinds}, {**user.values, **seed.values})


def series(page: Page) -> dict[str, set[str]]:
    """What stands in expressions -> the labels that it has."""
    labels: dict[str, set[str]] = {name: set() for name, kind in page.kinds.items() if kind != "histogram"}
    for written in page.values:
        name, _, inside = written.partition("{")
        labels.setdefault(name, set()).update(re.findall(r"([a-z_]+)=", inside))
    for program in ("behind", "attempts"):  # this user has none
        labels[f"meshproto_user_program_{program}"] = {"kind"}
    return labels


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def alert_expressions() -> dict[str, str]:
    """By alert; an expression is on the line or folded below it."""
    found = re.findall(r"- alert: (\w+)\n +expr: (?:>-\n)?(.*?)\n +(?:for|labels):", ALERTS, re.DOTALL)
    return {alert: " ".join(expression.split()) for alert, expression in found}


def expressions() -> list[str]:
    return [*alert_expressions().values(), *(target["expr"] for panel in panels() for target in panel["targets"])]


# -- what is told -------------------------------------------------------------------------------------------------


def test_every_metric_is_told_of_with_its_kind_and_no_other(there: Page) -> None:
    told = dict(re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|", OPERATING, re.MULTILINE))
    assert told == there.kinds


def test_every_value_of_a_label_is_told_of(there: Page) -> None:
    """Of those that are always the same: causes, results, roles."""
    rows = {row.split("`")[1]: row for row in OPERATING.splitlines() if row.startswith("| `meshproto_")}
    causes = set(re.findall(r"^\| `([a-z_]+)` \|(?! counter| gauge| histogram)", OPERATING, re.MULTILINE))
    assert causes >= {cause.value for cause in Cause}
    for written in there.values:
        name, _, inside = written.partition("{")
        for label, value in re.findall(r'([a-z_]+)="([^"]*)"', inside):
            if label in ("le", "user", "seed", "version") or value in causes:
                continue
            assert re.search(rf"\b{value}\b", rows[name]) or value in ("3xx", "4xx"), written


def test_every_alert_is_told_of(there: Page) -> None:
    told = re.findall(r"^\| `(Mesh\w+)` \| .+ \| .+ \|$", OPERATING, re.MULTILINE)
    assert told == list(alert_expressions()) == re.findall(r"- alert: (\w+)", ALERTS)


# -- what is made of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", expressions())
def test_expressions_are_of_metrics_that_exist(there: Page, expression: str) -> None:
    """Of their labels too. Counters and histograms only grow, so it is their growth that is looked at; what goes up and
    down has none; and a quantile is one of buckets, by their ends."""
    known = series(there)
    named = _METRIC.findall(expression)
    assert named or expression.startswith("up{")
    assert set(named) <= known.keys()
    for name, inside in _LABELLED.findall(expression):
        assert set(re.findall(r"([a-z_]+)=", inside)) <= known[name] | _OF_PROMETHEUS
    grows = {name for name in known if name.endswith(("_total", *PARTS)) and name not in there.kinds}
    grows |= {name for name, kind in there.kinds.items() if kind == "counter"}
    by_time = _BY_TIME.findall(expression)
    assert set(by_time) <= grows
    assert sorted(name for name in named if name in grows) == sorted(by_time)
    quantiles = _QUANTILE.findall(expression)
    assert len(quantiles) == expression.count("histogram_quantile")
    for _, by, name in quantiles:
        assert name.endswith("_bucket") and "le" in by.split(", ")
    for by in re.findall(r"by \(([^)]*)\)", expression):
        labels = set().union(*(known[name] for name in named))
        assert set(by.split(", ")) <= labels | _OF_PROMETHEUS


def test_legends_name_labels_that_are_left(there: Page) -> None:
    """What a legend shows is not summed away."""
    known = series(there)
    for panel in panels():
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            by = re.search(r"by \(([^)]*)\)", target["expr"])
            summed = "sum(" in target["expr"] or "max(" in target["expr"]
            left = (
                set(by[1].split(", "))
                if by
                else set()
                if summed
                else _OF_PROMETHEUS.union(*(known[name] for name in _METRIC.findall(target["expr"])))
            )
            assert wanted <= left, target["expr"]


def test_the_dashboard_is_one() -> None:
    """What Grafana needs to import it: ids that are unique, places that do not overlap, a data source that is asked
    for, a unit and a word on each panel."""
    assert DASHBOARD["schemaVersion"] >= 39 and DASHBOARD["uid"] and DASHBOARD["title"]
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
    units = {"none", "short", "s", "ops", "reqps", "Bps", "bytes", "percentunit"}
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"] in units and panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == sorted({t["refId"] for t in panel["targets"]})
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert "$instance" in target["expr"] or "$instance" not in str(panel)


def test_the_dashboard_shows_nearly_all_there_is(there: Page) -> None:
    """But for what says who it is, since when, and how many of the known seeds live, which the seeds know better."""
    shown = {name for panel in panels() for target in panel["targets"] for name in _METRIC.findall(target["expr"])}
    for name, kind in there.kinds.items():
        if kind == "histogram":
            assert f"{name}_bucket" in shown
        elif not name.endswith(("_info", "_uptime_seconds", "_start_time_seconds", "user_seeds", "seeds_alive")):
            assert name in shown


# -- held against Prometheus itself -------------------------------------------------------------------------------

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (of Debian's package prometheus) is not there")


def promtool(*arguments: str, given: str = "") -> str:
    """What it says, if it is content."""
    done = subprocess.run(
        [PROMTOOL or "", *arguments], input=given, cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\])?", ALERTS_TEST)
    fires = {alert for alert, nothing in cases if not nothing}
    quiet = {alert for alert, nothing in cases if nothing}
    assert fires == set(alert_expressions())
    assert fires - quiet == {"MeshDiskRefuses"}  # in its first case one disk of two does not


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


@needs_promtool
def test_the_configuration_is_one() -> None:
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "alerts.yml")


@needs_promtool
def test_prometheus_reads_what_is_written() -> None:
    """And has nothing to say about the names."""
    world = World(6)
    world.add_seed("seedX")
    world.add_user("UserX", ["seedX"])
    world.run_until(world.registered)
    world.send("UserX", "UserX", "hello")
    user, seed = world.text("UserX", "/metrics")[1], Looker(world, "seedX").ask("GET", "/metrics")[1].decode()
    for page in (user, seed):
        assert promtool("check", "metrics", given=page) == ""
    world.close()


@needs_promtool
@pytest.mark.parametrize("expression", expressions())
def test_prometheus_reads_the_expressions(expression: str, tmp_path: Path) -> None:
    """Those of the dashboard with its variables filled in."""
    filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    rules = tmp_path / "rules.yml"
    rules.write_text(json.dumps({"groups": [{"name": "one", "rules": [{"record": "a:b", "expr": filled}]}]}))
    promtool("check", "rules", str(rules))
