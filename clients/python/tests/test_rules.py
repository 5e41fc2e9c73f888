"""The rules against what NumPy computed for the tests of taiji's own trainer, twelve steps in a row."""

from __future__ import annotations

import json
import unittest

from support import ROOT

from taiji_rl import rules

REFERENCE = json.loads((ROOT / "crates/trainer/src/weighting/tests/reference.json").read_text())


class Rules(unittest.TestCase):
    def near(self, found, expected) -> None:
        for one, other in zip(found, expected, strict=True):
            self.assertLessEqual(abs(one - other), 1e-12)

    def test_nash(self) -> None:
        weights, deviations, starts = (REFERENCE[name] for name in ["weights", "deviations", "start_means"])
        gains = [0.0, 0.0]
        for rewards, expected in zip(REFERENCE["rewards"], REFERENCE["rules"]["nash"]["weights"], strict=True):
            gains = rules.nash_gains(gains, [sum(values) / len(values) for values in rewards], starts)
            shares, factors = rules.nash_weights(gains, weights, deviations)
            self.near(shares, expected)
            self.near(rules.limited([f * s for f, s in zip(factors, deviations)], 0.0), expected)

    def test_nash_by_hand(self) -> None:
        # Gains .02 and .04 of deviations .2 and .05: shares .2/.02 = 10 and .05/.04 = 1.25, so 8/9 and 1/9.
        shares, factors = rules.nash_weights([0.02, 0.04], [0.5, 0.5], [0.2, 0.05])
        self.near(shares, [8 / 9, 1 / 9])
        self.near(factors, [8 / 18 / 0.2, 1 / 18 / 0.05])
        # A gain below .1 deviations counts as that; a share below .1 is raised to it.
        shares, _ = rules.nash_weights([-1.0, 5.0], [0.5, 0.5], [0.2, 0.05])
        self.near(shares, [0.9, 0.1])

    def test_popo_light(self) -> None:
        size = REFERENCE["group"]
        for rewards, expected in zip(REFERENCE["rewards"], REFERENCE["rules"]["popo-light"]["weights"], strict=True):
            groups = [[values[at : at + size] for values in rewards] for at in range(0, len(rewards[0]), size)]
            found = rules.popo_light(groups, 1e-3)
            assert found is not None
            self.near(found, expected)
        self.assertIsNone(rules.popo_light([[[0.1, 0.1], [0.3, 0.3]]], 1e-3))

    def test_popo(self) -> None:
        logarithms = [0.0, 0.0]
        expected = REFERENCE["rules"]["popo-rewards"]["weights"]
        for products, weights in zip(REFERENCE["products"]["whole"], expected, strict=True):
            logarithms = [one + 0.1 * sum(row) for one, row in zip(logarithms, products)]
            self.near(rules.softmax(logarithms), weights)

    def test_what_does_not_apply_is_worth_its_groups_mean(self) -> None:
        self.assertEqual(rules.filled([1.0, None, 2.0]), [1.0, 1.5, 2.0])
        self.assertEqual(rules.filled([None, None]), [0.0, 0.0])

    def test_no_share_is_below_the_floor(self) -> None:
        self.near(rules.limited([1.0, 1.0, 98.0], 0.1), [0.1, 0.1, 0.8])
        self.near(rules.limited([0.0, 0.0], 0.1), [0.5, 0.5])


if __name__ == "__main__":
    unittest.main()
