"""Holds that each alert has a unit test in which it speaks and one in which it is silent, and each record one at all:
alerts.py RULES... -- TESTS...

That the tests pass is promtool's to say.
"""

import pathlib
import sys

import yaml

split = sys.argv.index("--")
rules = [
    rule
    for path in sys.argv[1:split]
    for group in yaml.safe_load(pathlib.Path(path).read_text())["groups"]
    for rule in group["rules"]
]
tests = [test for path in sys.argv[split + 1 :] for test in yaml.safe_load(pathlib.Path(path).read_text())["tests"]]
asked = [(ask["alertname"], bool(ask["exp_alerts"])) for test in tests for ask in test.get("alert_rule_test", [])]
expressions = [ask["expr"] for test in tests for ask in test.get("promql_expr_test", [])]

missing = []
for rule in rules:
    if "record" in rule:
        if not any(rule["record"] in expression for expression in expressions):
            missing.append(f"{rule['record']} has no test")
        continue
    for speaks, word in ((True, "speaks"), (False, "is silent")):
        if (rule["alert"], speaks) not in asked:
            missing.append(f"{rule['alert']} has no test in which it {word}")
    if rule["labels"]["severity"] not in ("critical", "warning"):
        missing.append(f"{rule['alert']}: {rule['labels']}")
    if not {"summary", "description"} <= rule["annotations"].keys():
        missing.append(f"{rule['alert']} does not say what it means")
sys.exit("\n".join(missing) if missing else None)
