"""Reward functions share one request a batch."""

from __future__ import annotations

import threading
import time
import unittest
from unittest.mock import patch

from support import NAMES, StandIn, reply, scored, semantic, simulated

import taiji_rl
from taiji_rl import RewardClient, reward_functions
from taiji_rl.verl import compute_score

USERS, TOKENS = ["u1", "u1"], [[12, 5], [4, 6, 7]]
BATCH = {"prompts": ["p", "p"], "completions": ["x", "y"], "completion_ids": TOKENS, "user_id": USERS, "more": None}


class Functions(unittest.TestCase):
    def setUp(self) -> None:
        self.service = StandIn()
        self.addCleanup(self.service.stop)
        self.functions = reward_functions(RewardClient(self.service.url))

    def test_one_request_a_batch(self) -> None:
        self.assertEqual([function.__name__ for function in self.functions], NAMES)
        found = [function(**BATCH) for function in self.functions]
        self.assertEqual(found, [[semantic(of) for of in TOKENS], [simulated(of) for of in TOKENS]])
        self.assertEqual(len(self.service.posts), 1)
        for function in self.functions:
            function(**{**BATCH, "completion_ids": [[1], [2]]})
        self.assertEqual(len(self.service.posts), 2)

    def test_an_equal_batch_later_is_another_batch(self) -> None:
        heard: list[object] = []
        self.functions[0].batches.listeners.append(heard.append)
        for _ in range(3):
            for function in self.functions:
                function(**BATCH)
        self.assertEqual((len(self.service.posts), len(heard)), (3, 3))

    def test_nothing_is_kept_of_batches_that_are_done_and_little_of_others(self) -> None:
        for at in range(20):
            self.functions[0](**{**BATCH, "completion_ids": [[at], [at]]})
        self.assertEqual(len(self.functions[0].batches._replies), 8)
        for function in self.functions:
            function(**BATCH)
        self.assertEqual(len(self.functions[0].batches._replies), 7)

    def test_functions_that_are_called_at_the_same_time_wait_for_one_request(self) -> None:
        def slow(request):
            time.sleep(0.2)
            return reply(200, scored(request["answers"]))

        self.service.replies = [slow]
        found: dict[str, list[float | None]] = {}

        def call(function) -> None:
            found[function.__name__] = function(**BATCH)

        threads = [threading.Thread(target=call, args=(function,)) for function in self.functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(set(found), set(NAMES))
        self.assertEqual(len(self.service.posts), 1)

    def test_an_error_is_not_kept(self) -> None:
        self.service.replies = [reply(400, {"error": {"code": "bad", "message": "no"}})]
        with self.assertRaises(taiji_rl.RewardsRefused):
            self.functions[0](**BATCH)
        self.assertEqual(len(self.functions[0](**BATCH)), 2)

    def test_a_dataset_without_users_is_told_what_it_lacks(self) -> None:
        with self.assertRaisesRegex(ValueError, "no column user_id"):
            self.functions[0](prompts=["p"], completions=["x"], completion_ids=[[1]])


class Verl(unittest.TestCase):
    def setUp(self) -> None:
        self.service = StandIn()
        self.addCleanup(self.service.stop)

    def score(self, **more):
        with patch.dict("os.environ", {"TAIJI_REWARDS_URL": self.service.url}):
            return compute_score("taiji", "abc", None, extra_info={"user_id": "u1"}, **more)

    def test_a_score_is_the_weighted_sum(self) -> None:
        letters = [ord(letter) for letter in "abc"]
        even = self.score()
        self.assertAlmostEqual(even["score"], (semantic(letters) + simulated(letters)) / 2)
        self.assertEqual(even["semantic"], semantic(letters))
        one = self.score(weights={"semantic": 0.0, "simulated": 2.0}, reward_router_address=None)
        self.assertAlmostEqual(one["score"], 2.0 * simulated(letters))
        self.assertEqual([post["answers"] for post in self.service.posts], [[{"user_id": "u1", "text": "abc"}]] * 2)

    def test_what_is_missing_is_named(self) -> None:
        with self.assertRaisesRegex(ValueError, "user_id"):
            compute_score("taiji", "abc", None, extra_info={})
        with patch.dict("os.environ", clear=True), self.assertRaisesRegex(ValueError, "TAIJI_REWARDS_URL"):
            compute_score("taiji", "abc", None, extra_info={"user_id": "u1"})
        with self.assertRaisesRegex(ValueError, "give one each"):
            self.score(weights={"semantic": 1.0})


if __name__ == "__main__":
    unittest.main()
