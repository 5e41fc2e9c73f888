"""Makes k8s/monitoring/taiji-dashboard.json (Grafana) of the panels in panels.py.

    python3 scripts/monitoring/dashboard.py [FILE]
"""

import json
import pathlib
import re
import sys

from panels import GREEN, ROWS

FILE = pathlib.Path(__file__).resolve().parents[2] / "k8s/monitoring/taiji-dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
FILTER = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
# A metric of a taiji process, with its selector if it has one.
OURS = re.compile(r"\b((?:taiji|process)_\w+)(?:\{([^}]*)\})?")


def filtered(query):
    """The query with the dashboard's filter on every metric of ours."""
    return OURS.sub(lambda found: f"{found[1]}{{{FILTER}{',' + found[2] if found[2] else ''}}}", query)


def targets(panel):
    form = {"format": "table", "instant": True} if panel["kind"] == "table" else {}
    return [{"refId": chr(ord("A") + nth), "datasource": SOURCE, "expr": filtered(query), "legendFormat": legend, **form}
            for nth, (query, legend) in enumerate(panel["queries"])]


def grafana(panel, number, place):
    shared = {"id": number, "title": panel["title"], "description": panel["about"], "datasource": SOURCE, "gridPos": place,
              "targets": targets(panel)}
    steps = [{"value": value, "color": colour} for value, colour in panel.get("steps", [(None, GREEN)])]
    defaults = {"unit": panel["unit"], "thresholds": {"mode": "absolute", "steps": steps}}
    if panel["kind"] == "stat":
        options = {"colorMode": "background", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        return {**shared, "type": "stat", "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options}
    if panel["kind"] == "table":
        merge = [{"id": "merge", "options": {}},
                 {"id": "organize", "options": {"excludeByName": {"Time": True, "Value #A": True, "Value #B": True}}}]
        return {**shared, "type": "table", "fieldConfig": {"defaults": {}, "overrides": []}, "options": {}, "transformations": merge}
    stacking = {"mode": "normal" if panel["stacked"] else "none", "group": "A"}
    defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 25 if panel["stacked"] else 5, "showPoints": "never",
                          "stacking": stacking}
    options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {**shared, "type": "timeseries", "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options}


def variable(name, label, query):
    # ".*" for all: series without the label are in it.
    return {"type": "query", "name": name, "label": label, "datasource": SOURCE, "query": {"query": query, "refId": name}, "definition": query,
            "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*" if name != "job" else None,
            "current": {"text": "All", "value": "$__all"}}


def dashboard():
    panels, number, top = [], 0, 0
    for title, row in ROWS:
        number += 1
        panels.append({"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}})
        left, top, height = 0, top + 1, 0
        for panel in row:
            wide, high = (3, 4) if panel["kind"] == "stat" else (12 if title == "At a glance" else 8, 7)
            if left + wide > 24:
                left, top, height = 0, top + height, 0
            number += 1
            panels.append(grafana(panel, number, {"x": left, "y": top, "w": wide, "h": high}))
            left, height = left + wide, high
        top += height
    chosen = [
        {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1, "current": {}},
        variable("namespace", "Namespace", "label_values(taiji_build_info, namespace)"),
        variable("job", "Job", 'label_values(taiji_build_info{namespace=~"$namespace"}, job)'),
        variable("instance", "Process", 'label_values(taiji_build_info{namespace=~"$namespace",job=~"$job"}, instance)'),
    ]
    return {"uid": "taiji", "title": "taiji", "tags": ["taiji"], "schemaVersion": 39, "version": 1, "editable": True, "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"}, "timezone": "", "graphTooltip": 1, "templating": {"list": chosen}, "annotations": {"list": []},
            "links": [], "panels": panels}


def text():
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else FILE).write_text(text())
