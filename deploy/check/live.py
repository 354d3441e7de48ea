"""Asks a Prometheus that has scraped one latentgate for a while what it knows: live.py URL"""

import json
import sys
import urllib.parse
import urllib.request

url = sys.argv[1]
faults = []


def ask(path: str, **parameters: str) -> dict:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=10) as answer:
        return json.load(answer)["data"]


def value(expression: str) -> float:
    """Of all series together; 0 where there is none."""
    return sum(float(sample["value"][1]) for sample in ask("query", query=expression)["result"])


for expression, least in (
    ('up{job="latentgate"}', 1),
    ("instance:latentgate_requests:rate5m", 0.1),
    ("instance:latentgate_answers_without_run:ratio_rate5m", 0.1),
    ("instance:latentgate_engine_busy:rate5m", 0.001),
    ('rate(latentgate_requests_total{outcome="hit_memory"}[1m])', 0.01),
    ('rate(latentgate_requests_total{outcome="computed"}[1m])', 0.01),
    ("rate(latentgate_response_bytes_total[1m])", 1),
):
    found = value(expression)
    print(f"  {expression} = {found:.3f}")
    if not found >= least:
        faults.append(f"{expression} = {found}, wanted at least {least}")

rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
for rule in rules:
    if rule["health"] != "ok":
        faults.append(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
speaking = [rule["name"] for rule in rules if rule.get("state") == "firing"]
silent = [rule for rule in rules if rule["type"] == "recording" and not ask("query", query=rule["query"])["result"]]
print(f"  {len(rules)} rules evaluated; alerts that speak: {', '.join(speaking) or 'none'}")
for rule in silent:
    print(f"  no series: {rule['query']}")
sys.exit("\n".join(faults) if faults else None)
