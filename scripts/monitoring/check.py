"""Do rules, dashboard, rule tests, runbook and the code's table of metrics agree? Needs promtool, nothing that runs.

    python3 scripts/monitoring/check.py PROMTOOL
"""

import re
import subprocess
import sys

import dashboard
import inputs
from promql import look, matchers

# What Prometheus and Kubernetes put on every series; le on buckets.
EVERYWHERE = {"namespace", "job", "instance", "le"}


def of_query(where, query, known, foreign, used):
    """Complaints about a query; adds to `used` what it names."""
    selectors, grouped = look(query)
    allowed, wrong = set(EVERYWHERE), []
    any_foreign = False
    for name, selector in selectors:
        metric = inputs.base(name, known)
        if metric not in known:
            any_foreign = True
            used.add(name)
            if name not in foreign:
                wrong.append(f"{where}: {name} is no metric of the code, nor in [foreign] of exceptions.toml")
            continue
        used.add(metric)
        kind, labels = known[metric]
        if kind.startswith("Histogram") and name == metric:
            wrong.append(f"{where}: {name} is a histogram: it has _bucket, _sum and _count")
        wrong += [f"{where}: {metric} has no label {label}" for label, *_ in matchers(selector) if label not in EVERYWHERE | set(labels)]
        allowed |= set(labels)
    if not any_foreign:
        wrong += [f"{where}: no metric of the query has the label {label}" for label in sorted(grouped - allowed)]
    return wrong


def of_metrics():
    """Every name exists; every metric of the code is looked at, or it is said why not."""
    known, exceptions = inputs.code_metrics(), inputs.exceptions()
    foreign, unused, used, wrong = exceptions["foreign"], exceptions["unused"], set(), []
    for rule in inputs.alerts():
        wrong += of_query(f"rule {rule['alert']}", rule["expr"], known, foreign, used)
    for title, query in inputs.panels():
        wrong += of_query(f"panel {title}", query, known, foreign, used)
    wrong += [f"{name}: on no panel and in no rule, nor in [unused] of exceptions.toml" for name in known if name not in used and name not in unused]
    wrong += [f"exceptions.toml: [unused] {name} is used, or no metric" for name in unused if name in used or name not in known]
    wrong += [f"exceptions.toml: [foreign] {name} is named nowhere" for name in foreign if name not in used]
    return wrong


def of_rules():
    """Every alert has a severity, an entry of the runbook, a test in which it fires and one in which it does not."""
    wrong, tests = [], inputs.rule_tests()
    names = [rule["alert"] for rule in inputs.alerts()]
    for rule in inputs.alerts():
        name = rule["alert"]
        if rule["severity"] not in ("page", "ticket"):
            wrong.append(f"rule {name}: severity is page or ticket")
        if rule["runbook"] != f"docs/runbook.md#{name.lower()}":
            wrong.append(f"rule {name}: its runbook is docs/runbook.md#{name.lower()}")
        wrong += [f"rule {name}: rules_test.yaml has no case in which it is {state}" for state in {"firing", "quiet"} - tests.get(name, set())]
    wrong += [f"rules_test.yaml: {name} is no alert" for name in tests if name not in names]
    wrong += [f"rules: {name} stands twice" for name in {name for name in names if names.count(name) > 1}]
    return wrong


def commands():
    """Names of the program's commands, as the command line is declared."""
    code = (inputs.ROOT / "src/cli/mod.rs").read_text()
    body = code[code.index("enum Command {") :]
    body = body[: body.index("\n}\n")]
    return {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in re.findall(r"^    (\w+)[ ({,]", body, re.M)}


def of_runbook():
    """One section an alert, in the same order, each with meaning, first look and remedy; its settings and commands exist."""
    wrong, sections = [], inputs.runbook()
    names = [rule["alert"] for rule in inputs.alerts()]
    wrong += [f"runbook: no section for {name}" for name in names if name not in sections]
    wrong += [f"runbook: {name} is no alert" for name in sections if name not in names]
    if not wrong and list(sections) != names:
        wrong.append("runbook: the sections stand in another order than the rules")
    settings, known, programs = inputs.settings(), inputs.code_metrics(), commands()
    tables = {path.split(".")[0] for path in settings}
    for name, text in sections.items():
        wrong += [f"runbook, {name}: no **{part}**" for part in ("Means.", "Look.", "Do.") if f"**{part}**" not in text]
        if "```sh\n" not in text and "`taiji" not in text:
            wrong.append(f"runbook, {name}: no command")
    for name, text in {**sections, **inputs.runbook("Procedures")}.items():
        for word in re.findall(r"`([a-z_]+\.[a-z_.]+)`", text):
            if word.split(".")[0] in tables and word not in settings:
                wrong.append(f"runbook, {name}: {word} is no setting")
        for word in re.findall(r"\btaiji_\w+", text):
            # A beginning is what a command greps for.
            if inputs.base(word, known) not in known and not any(name.startswith(word) for name in known):
                wrong.append(f"runbook, {name}: {word} is no metric")
        for word in re.findall(r"(?:^|`)taiji ([a-z-]+)", text, re.M):
            if word not in programs:
                wrong.append(f"runbook, {name}: taiji {word} is no command")
    return wrong


def main(promtool):
    for arguments in (["check", "rules", inputs.RULES.name], ["test", "rules", inputs.TESTS.name]):
        done = subprocess.run([promtool, *arguments], cwd=inputs.FOLDER, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"monitoring: promtool {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    wrong = of_rules() + of_metrics() + of_runbook()
    if inputs.DASHBOARD.read_text() != dashboard.text():
        wrong.append(f"{inputs.DASHBOARD.name} is not what panels.py makes: python3 scripts/monitoring/dashboard.py")
    for line in wrong:
        print(f"monitoring: {line}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)
    rules, queries = len(inputs.alerts()), len(inputs.panels())
    print(f"monitoring: {rules} alerts, each tested firing and quiet and in the runbook; {queries} queries on the dashboard; every metric looked at")


if __name__ == "__main__":
    main(sys.argv[1])
