"""Judges the dashboard's build, and writes its queries as a rules file for promtool: dashboard.py JSON [RULES]

Whether Grafana draws it well is for eyes; that every metric is on it is held by `cargo test` (tests/it/observability.rs).
"""

import json
import pathlib
import re
import sys

import yaml

dashboard = json.loads(pathlib.Path(sys.argv[1]).read_text())
panels = dashboard["panels"]
drawn = [panel for panel in panels if panel["type"] != "row"]
source = {"type": "prometheus", "uid": "${datasource}"}
variables = {variable["name"] for variable in dashboard["templating"]["list"]}
faults = []


def check(holds: bool, panel: dict, fault: str) -> None:
    if not holds:
        faults.append(f"{panel.get('title', panel['id'])}: {fault}")


# What Grafana itself puts in place of its variables: a scrape interval or four, everything, whatever is chosen.
def filled(expression: str) -> str:
    expression = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$\w+", ".+", expression)


check({"datasource", "job", "instance"} <= variables, dashboard, f"variables are {variables}")
check(len({panel["id"] for panel in panels}) == len(panels), dashboard, "an id is there twice")
for panel in drawn:
    check(bool(panel.get("description")), panel, "no description")
    check(panel["datasource"] == source, panel, "another data source than the chosen one")
    check(panel["type"] == "table" or panel["type"] in ("state-timeline", "heatmap")
          or "unit" in panel["fieldConfig"]["defaults"], panel, "no unit")
    check(bool(panel["targets"]), panel, "asks nothing")
    for target in panel["targets"]:
        expression = target["expr"]
        check(target["datasource"] == source, panel, "another data source than the chosen one")
        # Every selector, so that nothing of another job or instance is in a sum.
        for selector in re.findall(r"(?:latentgate|process)_\w+(\{[^}]*\})?|\bup\b(\{[^}]*\})?", expression):
            selected = "".join(selector)
            check('job=~"$job"' in selected and 'instance=~"$instance"' in selected, panel, f"{expression}: {selected}")
        for used in re.findall(r"\$(\w+)", expression):
            check(used in variables | {"__rate_interval"}, panel, f"no variable {used}")

cells: dict[tuple[int, int], str] = {}
for panel in panels:
    place = panel["gridPos"]
    check(place["x"] + place["w"] <= 24, panel, "wider than the grid")
    for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
        check(cell not in cells, panel, f"lies on {cells.get(cell)}")
        cells[cell] = panel["title"]

if len(sys.argv) > 2:
    rules = [
        {"record": f"panel:{panel['id']}:{target['refId']}", "expr": filled(target["expr"])}
        for panel in drawn
        for target in panel["targets"]
    ]
    pathlib.Path(sys.argv[2]).write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
print(f"  {len(drawn)} panels in {len(panels) - len(drawn)} rows, {sum(len(p['targets']) for p in drawn)} queries")
sys.exit("\n".join(faults) if faults else None)
