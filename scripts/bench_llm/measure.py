"""Interleaved measurement: every round measures every subject once, next to each other in time.

A shared machine changes its speed by the minute, so two figures are compared only within a round. What is reported is
the median of the rounds' ratios, with the lowest and the highest.
"""


class Row:
    """One line of a table: a figure of every round."""

    def __init__(self, what, values, wanted="", unit=""):
        self.what, self.values, self.wanted, self.unit = what, list(values), wanted, unit

    def to_json(self):
        return {"what": self.what, "wanted": self.wanted, "unit": self.unit, "values": self.values}


def rotated(subjects, number):
    """The subjects, another one first in every round: no one always runs after the same neighbour."""
    start = number % len(subjects)
    return subjects[start:] + subjects[:start]


def ratios(above, below):
    return [one / other for one, other in zip(above, below, strict=True)]


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
