"""What a PromQL query names: metrics with their selectors, and the labels it groups by. Enough for our own queries, no parser."""

import re

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[a-zA-Z_:][\w:]*|\d[\w.]*|[<>=!~]+|\S')
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "offset", "bool"}


def look(query):
    """(selectors, grouped): selectors are (metric, text between the braces), grouped the labels of by, on and the like."""
    tokens = TOKEN.findall(query)
    selectors, grouped, at = [], set(), 0
    while at < len(tokens):
        token, after = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
        at += 1
        if not re.match(r"[a-zA-Z_:]", token) or token in OPERATORS:
            continue
        if token in GROUPING:
            end = tokens.index(")", at)
            grouped |= {label for label in tokens[at + 1 : end] if label != ","}
            at = end + 1
        elif after == "{":
            end = tokens.index("}", at)
            selectors.append((token, "".join(tokens[at + 1 : end])))
            at = end + 1
        elif after != "(" and after not in ("by", "without"):
            selectors.append((token, ""))
    return selectors, grouped


def matchers(selector):
    """(label, operator, value) of each matcher of a selector."""
    return MATCHER.findall(selector)
