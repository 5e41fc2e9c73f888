"""What the client makes of a service that is busy, broken, slow or another program."""

from __future__ import annotations

import math
import threading
import time
import unittest
from unittest.mock import patch

from support import NAMES, StandIn, changed, reply, scored, semantic

from taiji_rl import RewardClient, RewardsMalformed, RewardsRefused, RewardsUnavailable
from taiji_rl.transport import LONGEST_PAUSE_S

USERS, TOKENS = ["u1", "u2"], [[12, 5], [4, 6, 7]]


class WithService(unittest.TestCase):
    def setUp(self) -> None:
        self.service = StandIn()
        self.addCleanup(self.service.stop)
        self.client = RewardClient(self.service.url, timeout_s=5.0, retries=2)
        self.pauses: list[float] = []
        patched = patch("taiji_rl.transport.time.sleep", self.pauses.append)
        patched.start()
        self.addCleanup(patched.stop)

    def ask(self, client: RewardClient | None = None):
        return (client or self.client).rewards(USERS, token_ids=TOKENS)


class Answers(WithService):
    def test_an_answer_is_what_was_sent_for(self) -> None:
        found = self.client.rewards(USERS, token_ids=TOKENS, mode="no_think")
        self.assertEqual(found.rewards["semantic"], [semantic(of) for of in TOKENS])
        self.assertEqual(self.service.posts[0]["answers"][1], {"user_id": "u2", "tokens": [4, 6, 7]})
        self.assertEqual(self.service.posts[0]["mode"], "no_think")
        self.assertNotIn("Authorization", self.service.headers[0])

    def test_the_key_goes_along(self) -> None:
        self.ask(RewardClient(self.service.url, key="secret"))
        self.assertEqual(self.service.headers[0]["Authorization"], "Bearer secret")

    def test_what_is_too_much_for_one_request_is_sent_in_several(self) -> None:
        self.service.description["max_answers"] = 2
        found = self.client.rewards(["a", "b", "c", "d", "e"], texts=["ab", "b", "cc", "dc", "e"])
        self.assertEqual([len(post["answers"]) for post in self.service.posts], [2, 2, 1])
        whole = scored([{"text": text} for text in ["ab", "b", "cc", "dc", "e"]])
        self.assertEqual(found.rewards, whole["rewards"])
        self.assertEqual(found.start, whole["start"])

    def test_long_answers_are_cut_by_bytes(self) -> None:
        self.service.description["max_body_bytes"] = 3000
        texts = ["x" * 900, "y" * 900, "z" * 900, "w" * 5000]
        found = self.client.rewards(["a", "b", "c", "d"], texts=texts)
        self.assertEqual([len(post["answers"]) for post in self.service.posts], [2, 1, 1])
        self.assertEqual(found.rewards, scored([{"text": text} for text in texts])["rewards"])

    def test_null_is_none_and_a_recipe_may_have_no_start(self) -> None:
        rewards = {"semantic": [None, 1], "simulated": [0.5, 0.0]}
        self.service.replies = [changed(rewards=rewards, start=None)]
        found = self.ask()
        self.assertEqual(found.rewards, rewards)
        self.assertIsNone(found.start)

    def test_calls_that_cannot_be_meant_are_refused_before_they_are_sent(self) -> None:
        wrong = [
            {"user_ids": USERS, "token_ids": TOKENS, "texts": ["a", "b"]},
            {"user_ids": USERS},
            {"user_ids": ["u1"], "token_ids": TOKENS},
            {"user_ids": [], "token_ids": []},
            {"user_ids": [1, 2], "token_ids": TOKENS},
        ]
        for call in wrong:
            with self.subTest(call), self.assertRaises(ValueError):
                self.client.rewards(**call)
        self.assertEqual(self.service.posts, [])
        with self.assertRaises(ValueError):
            RewardClient("localhost:80")


class Failures(WithService):
    def test_a_busy_service_is_asked_again_and_not_before_it_said(self) -> None:
        self.service.replies = [reply(429, {"error": {"code": "busy", "message": "later"}}, Retry_After="7")]
        self.ask()
        self.assertEqual(len(self.service.posts), 2)
        self.assertGreater(self.pauses[0], 7.0)
        self.assertLess(self.pauses[0], 7.6)

    def test_a_date_is_a_time_to_wait_for_and_no_wait_is_endless(self) -> None:
        self.service.replies = [reply(503, b"", Retry_After="Fri, 31 Dec 2199 23:59:59 GMT")]
        self.ask()
        self.assertEqual(self.pauses, [LONGEST_PAUSE_S])

    def test_pauses_double(self) -> None:
        client = RewardClient(self.service.url, retries=4)
        self.service.replies = [reply(500, b"")] * 4
        self.ask(client)
        for attempt, pause in enumerate(self.pauses):
            self.assertTrue(0.25 * 2**attempt <= pause <= 0.5 * 2**attempt, self.pauses)

    def test_a_service_that_stays_busy_is_an_error_that_names_it(self) -> None:
        self.service.replies = [reply(429, {"error": {"code": "busy", "message": "8 requests wait"}})] * 9
        with self.assertRaises(RewardsUnavailable) as caught:
            self.ask()
        self.assertEqual(len(self.service.posts), 3)
        self.assertEqual((caught.exception.status, caught.exception.code), (429, "busy"))
        for part in [f"POST {self.service.url}/v1/rewards", "429", "busy", "8 requests wait", "retries"]:
            self.assertIn(part, str(caught.exception))

    def test_what_is_refused_is_not_asked_again(self) -> None:
        self.service.replies = [reply(422, {"error": {"code": "unknown_user", "message": "u1 is in no data"}})]
        with self.assertRaises(RewardsRefused) as caught:
            self.ask()
        self.assertEqual(len(self.service.posts), 1)
        self.assertEqual((caught.exception.status, caught.exception.code), (422, "unknown_user"))
        for part in ["u1 is in no data", "the service's recipe"]:
            self.assertIn(part, str(caught.exception))

    def test_a_reward_that_failed_is_not_asked_for_again_and_a_slow_body_is(self) -> None:
        self.service.replies = [reply(500, {"error": {"code": "reward_failed", "message": "reward odd is NaN"}})]
        with self.assertRaisesRegex(RewardsRefused, "reward odd is NaN.*mend the reward"):
            self.ask()
        self.assertEqual(len(self.service.posts), 1)
        self.service.replies = [reply(408, {"error": {"code": "slow_body", "message": "60 s"}})]
        self.ask()
        self.assertEqual(len(self.service.posts), 3)

    def test_a_page_for_people_is_told_from_an_answer(self) -> None:
        page = reply(200, b"<html>welcome</html>", Content_Type="text/html")
        self.service.replies = [page]
        with self.assertRaisesRegex(RewardsMalformed, "not JSON.*rewards serve"):
            self.ask()
        self.service.replies = [reply(404, b"<html>no</html>", Content_Type="text/html")]
        with self.assertRaisesRegex(RewardsRefused, "404.*text/html.*rewards serve"):
            self.ask()
        self.service.replies = [reply(502, b"<html>bad gateway</html>", Content_Type="text/html")]
        self.ask()

    def test_a_redirect_is_not_followed(self) -> None:
        self.service.replies = [reply(302, b"", Location="http://elsewhere.example/")]
        with self.assertRaisesRegex(RewardsRefused, "elsewhere.example"):
            self.ask()

    def test_a_service_that_hangs_costs_the_timeout(self) -> None:
        release = threading.Event()
        self.addCleanup(release.set)

        def hang(request):
            release.wait(20)
            return reply(200, {})

        client = RewardClient(self.service.url, timeout_s=0.2, retries=1)
        client.describe()
        self.service.replies = [hang, hang]
        started = time.monotonic()
        with self.assertRaisesRegex(RewardsUnavailable, "timed out.*timeout_s"):
            self.ask(client)
        self.assertLess(time.monotonic() - started, 5)

    def test_nobody_there(self) -> None:
        self.service.stop()
        with self.assertRaisesRegex(RewardsUnavailable, "is the service running"):
            self.ask()
        self.assertEqual(len(self.pauses), 2)


class Contract(WithService):
    def test_no_reward_that_is_no_number_gets_through(self) -> None:
        for value in [math.nan, math.inf, -math.inf, "0.5", True, 10**400]:
            with self.subTest(value):
                self.service.replies = [changed(rewards={"semantic": [0.1, value], "simulated": [0.0, 0.0]})]
                with self.assertRaises(RewardsMalformed):
                    self.ask()

    def test_no_other_length_or_shape_gets_through(self) -> None:
        good = {name: [0.1, 0.2] for name in NAMES}
        wrong = [
            {"rewards": {**good, "simulated": [0.1]}},
            {"rewards": {"semantic": [0.1, 0.2]}},
            {"rewards": [0.1, 0.2]},
            {"names": ["semantic"]},
            {"format": [True]},
            {"format": [True, 1]},
            {"items": ["i1", 2]},
            {"start": {**good, "semantic": [0.1, math.nan]}},
            {"start": {**good, "semantic": [0.1]}},
        ]
        for fields in wrong:
            with self.subTest(fields):
                self.service.replies = [changed(**fields)]
                with self.assertRaisesRegex(RewardsMalformed, "v1/rewards"):
                    self.ask()

    def test_a_description_is_checked_too(self) -> None:
        wrong = [("names", []), ("max_answers", 0), ("max_body_bytes", None), ("mode", None), ("start_deviations", {"semantic": 0.1})]
        for field, value in wrong:
            with self.subTest(field), patch.dict(self.service.description, {field: value}):
                with self.assertRaises(RewardsMalformed):
                    RewardClient(self.service.url).describe()


if __name__ == "__main__":
    unittest.main()
