"""What the checks must notice.  python3 scripts/monitoring/tests.py"""

import unittest

import inputs
from check import of_query
from picture import bends, number
from promql import look

KNOWN = {"taiji_a_total": ("IntCounterVec", ["result"]), "taiji_b_seconds": ("Histogram", [])}


def complaints(query, foreign=()):
    return of_query("here", query, KNOWN, foreign, set())


class Queries(unittest.TestCase):
    def test_names_selectors_and_groupings_are_found(self):
        query = 'sum by (a, le) (rate(x_bucket{r=~"f(o|o)"}[5m] offset 1d)) / on (b) group_left (c) max(y) > 0.5 unless absent(z)'
        self.assertEqual(look(query), ([("x_bucket", 'r=~"f(o|o)"'), ("y", ""), ("z", "")], {"a", "le", "b", "c"}))

    def test_what_exists_passes(self):
        self.assertEqual(complaints('sum by (namespace, result) (rate(taiji_a_total{result="x"}[5m]))'), [])
        self.assertEqual(complaints("histogram_quantile(0.99, sum by (le) (rate(taiji_b_seconds_bucket[5m])))"), [])
        self.assertEqual(complaints("up == 0", ["up"]), [])

    def test_what_does_not_exist_is_named(self):
        for query, word in (("taiji_c", "taiji_c"), ('taiji_a_total{reason="x"}', "label reason"), ("sum by (kind) (taiji_a_total)", "label kind"),
                            ("rate(taiji_b_seconds[5m])", "histogram"), ("up", "up"), ("rate(taiji_a_total_bucket[5m])", "taiji_a_total_bucket")):
            found = complaints(query)
            self.assertEqual(len(found), 1, query)
            self.assertIn(word, found[0])

    def test_the_codes_table_is_read_with_kinds_and_labels(self):
        known = inputs.code_metrics()
        self.assertEqual(known["taiji_http_requests_total"], ("IntCounterVec", ["route", "status"]))
        self.assertEqual(known["taiji_freshness_seconds"], ("Histogram", []))


class Pictures(unittest.TestCase):
    def test_numbers_are_readable(self):
        self.assertEqual([number(0.0021, "s"), number(0.5, "percentunit"), number(3 * 2**20, "bytes"), number(1500, "short")],
                         ["2.1 ms", "50 %", "3 MiB", "1.5 k"])

    def test_level_stretches_keep_their_ends(self):
        self.assertEqual(bends([(0, 1), (1, 1), (2, 1), (3, 5), (4, 1)]), [(0, 1), (2, 1), (3, 5), (4, 1)])


if __name__ == "__main__":
    unittest.main()
