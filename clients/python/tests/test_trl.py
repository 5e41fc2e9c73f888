"""Real GRPOTrainers on a tiny model: the callbacks set the weights of their rules, POPO's indicators are what autograd
says."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from support import DEVIATIONS, NAMES, START, StandIn, semantic, simulated

from taiji_rl import RewardClient, reward_functions, rules

try:
    import tiny
    import torch
    from tiny import GROUP, steps
    from tokenizers import processors
    from transformers import Qwen2ForCausalLM
    from trl import GRPOTrainer

    from taiji_rl import NashWeights, PopoLight, PopoTrainer, load_tokenizer
    from taiji_rl.popo import centred

    SKIPPED = ""
except ImportError as error:
    SKIPPED = f"TRL is not here: {error}"
    print(f"skipped: tests of trainers; {SKIPPED}")

@unittest.skipIf(SKIPPED, SKIPPED)
class Training(unittest.TestCase):
    def setUp(self) -> None:
        self.service = StandIn()
        self.addCleanup(self.service.stop)
        self.client = RewardClient(self.service.url)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def trainer(self, kind=None, **settings):
        return tiny.trainer(self.folder, self.client, kind or GRPOTrainer, **settings)


class Callbacks(Training):
    def expected_nash(self):
        """Weights of each step, from the answers that the service saw in the steps before."""
        gains, weights = [0.0, 0.0], []
        for post in self.service.posts:
            weights.append(rules.nash_weights(gains, [0.5, 0.5], list(DEVIATIONS.values()))[0])
            tokens = [answer["tokens"] for answer in post["answers"]]
            means = [sum(map(of, tokens)) / len(tokens) for of in (semantic, simulated)]
            gains = rules.nash_gains(gains, means, list(START.values()))
        return weights

    def expected_light(self, post):
        """The first reward's weight after the answers of a step."""
        tokens = [answer["tokens"] for answer in post["answers"]]
        groups = [
            [[of(one) for one in tokens[at : at + GROUP]] for of in (semantic, simulated)]
            for at in range(0, len(tokens), GROUP)
        ]
        return rules.popo_light(groups, 1e-3)[0]

    def test_nash_weighs_by_the_steps_before(self) -> None:
        trainer = self.trainer()
        rule = NashWeights(self.client)
        rule.attach(trainer)
        trainer.train()
        logs = steps(trainer)
        self.assertEqual(len(self.service.posts), 3)  # one request a batch
        for logged, expected in zip(logs, self.expected_nash(), strict=True):
            found = [logged[f"weights/{name}"] for name in NAMES]
            self.assertAlmostEqual(sum(found), 1.0, places=12)
            for one, other in zip(found, expected, strict=True):
                self.assertAlmostEqual(one, other, places=12)
        self.assertNotEqual(logs[0]["weights/semantic"], logs[2]["weights/semantic"])
        factors = rules.nash_weights(rule._memory, [0.5, 0.5], list(DEVIATIONS.values()))[1]
        torch.testing.assert_close(trainer.reward_weights, torch.tensor(factors))

    def test_steps_of_several_micro_batches_and_evaluations_between_them(self) -> None:
        trainer = self.trainer(gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1, evaluate=2)
        NashWeights(self.client).attach(trainer)
        trainer.train()
        evaluated = [post for post in self.service.posts if len(post["answers"]) == 2 * GROUP]
        self.assertEqual(len(evaluated), 3)
        self.service.posts = [post for post in self.service.posts if post not in evaluated]
        for logged, expected in zip(steps(trainer), self.expected_nash(), strict=True):
            self.assertAlmostEqual(logged["weights/semantic"], expected[0], places=12)

    def test_popo_light_weighs_by_the_steps_before(self) -> None:
        trainer = self.trainer()
        PopoLight().attach(trainer)
        trainer.train()
        logs = steps(trainer)
        self.assertEqual(logs[0]["weights/semantic"], 0.5)
        for before, logged in zip(self.service.posts, logs[1:]):
            self.assertAlmostEqual(logged["weights/semantic"], self.expected_light(before), places=12)
        self.assertNotEqual(logs[2]["weights/semantic"], 0.5)

    def test_a_checkpoint_has_what_the_rule_knows(self) -> None:
        whole = self.trainer(max_steps=4, save_strategy="steps", save_steps=2)
        NashWeights(self.client).attach(whole)
        whole.train()
        resumed = self.trainer(max_steps=4)
        rule = NashWeights(self.client)
        rule.attach(resumed)
        resumed.train(resume_from_checkpoint=f"{self.folder}/checkpoint-2")
        for name in NAMES:
            before, after = (steps(one)[2][f"weights/{name}"] for one in (whole, resumed))
            self.assertEqual(before, after)

    def test_processes_have_the_same_weights_of_all_rewards_though_groups_are_cut(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [str(Path(__file__).with_name("processes.py")), self.service.url, self.folder]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        self.assertEqual(ended.returncode, 0, ended.stderr[-4000:])
        first, second = (json.loads(Path(self.folder, f"weights-{rank}.json").read_text()) for rank in range(2))
        self.assertEqual(first, second)
        self.assertEqual({len(post["answers"]) for post in self.service.posts}, {GROUP // 2})
        # A prompt's answers come in two posts. Three steps of one generation, then three of two.
        prompts = [
            self.service.posts[at]["answers"] + self.service.posts[at + 1]["answers"]
            for at in range(0, len(self.service.posts), 2)
        ]
        self.assertEqual([len({answer["user_id"] for answer in answers}) for answers in prompts], [1] * 9)
        self.service.posts = [{"answers": answers} for answers in prompts[:3]]
        for found, expected in zip(first["NashWeights"], self.expected_nash(), strict=True):
            self.assertAlmostEqual(found, expected[0], places=12)
        for at, found in zip((3, 5), first["PopoLight"][1:], strict=True):
            self.assertAlmostEqual(found, self.expected_light({"answers": prompts[at] + prompts[at + 1]}), places=12)
        self.assertIn("sees the gradients of one process", first["PopoTrainer"])

    def test_settings_that_change_what_weights_mean_are_refused(self) -> None:
        functions = reward_functions(self.client)
        foreign = [*functions, lambda completions, **_: [0.0] * len(completions)]
        cases = [
            ("sum_then_normalize", PopoLight(), {"multi_objective_aggregation": "normalize_then_sum"}),
            ("scale_rewards", NashWeights(self.client), {"scale_rewards": "group"}),
            ("reward_weights", PopoLight(), {"reward_weights": [1.0, 1.0]}),
            ("reward_funcs", PopoLight(), {"functions": foreign}),
            ("PopoTrainer", PopoLight(), {"kind": PopoTrainer, "rate": 1.0}),
            ("give one each", NashWeights(self.client, {"semantic": 1.0}), {}),
            ("sum 1", NashWeights(self.client, {"semantic": 1.0, "simulated": 1.0}), {}),
        ]
        for reason, rule, settings in cases:
            with self.subTest(reason), self.assertRaisesRegex(ValueError, reason):
                rule.attach(self.trainer(**settings))
        twice = self.trainer()
        PopoLight().attach(twice)
        with self.assertRaisesRegex(ValueError, "use one of the two"):
            PopoLight().attach(twice)
        del self.service.description["start_deviations"]
        with self.assertRaisesRegex(ValueError, "roll-outs of the start"):
            NashWeights(self.client).attach(self.trainer())
        forgotten = self.trainer()
        forgotten.add_callback(PopoLight())
        with self.assertRaisesRegex(RuntimeError, "attach"):
            forgotten.train()


class Tokenizers(Training):
    def test_words_are_split_as_the_file_says_and_the_end_is_the_models(self) -> None:
        words = tiny.tokenizer()
        words.save_pretrained(self.folder)
        text = "w5 w7 w3"
        self.assertEqual(load_tokenizer(self.folder)(text)["input_ids"], words(text)["input_ids"])
        Path(self.folder, "tokenizer_config.json").unlink()  # as taiji leaves it
        with self.assertRaisesRegex(ValueError, "eos_token_id"):
            load_tokenizer(self.folder)
        tiny.model().config.save_pretrained(self.folder)
        self.assertEqual(load_tokenizer(self.folder).eos_token_id, 1)

    def test_no_token_comes_before_a_text_that_taiji_has_not(self) -> None:
        words = tiny.tokenizer()
        plain = words("w5 w7")["input_ids"]
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", words.convert_tokens_to_ids("<eos>"))]
        )
        words.save_pretrained(self.folder)
        self.assertEqual(load_tokenizer(self.folder)("w5 w7")["input_ids"], plain)


class Popo(Training):
    def direct(self, policy, batch, rewards, loss):
        """Indicators from the definition: the mean of advantage · ln π over answers (`grpo`) or tokens (`dapo`), for
        each reward's centred values alone."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].size(1)
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
        tokens = batch["completion_mask"]
        by_answer = (chosen * tokens).sum(1) / (tokens.sum(1) if loss == "grpo" else tokens.sum() / len(tokens))
        groups = rewards.to(chosen.dtype).view(-1, GROUP, len(NAMES))
        alone = (groups - groups.mean(1, keepdim=True)).view(-1, len(NAMES))
        parameters = list(policy.parameters())
        found = [torch.autograd.grad((of * by_answer).mean(), parameters, retain_graph=True) for of in alone.unbind(1)]
        gradients = [torch.cat([part.flatten() for part in parts]) for parts in found]
        total = sum(gradients)
        return [torch.dot(one, total).item() for one in gradients]

    def recorded(self, trainer):
        """The generated batches in TRL's order, with the policy and the rewards of that moment."""
        seen = []
        score = trainer._generate_and_score_completions

        def generate(inputs):
            # A deep copy would run TRL's forward, which is bound to the original.
            policy = tiny.model()
            policy.load_state_dict(trainer.model.state_dict())
            batch = score(inputs)
            seen.append((policy, {**batch}, trainer._fresh_rewards.clone()))
            return batch

        trainer._generate_and_score_completions = generate
        return seen

    def test_indicators_are_what_autograd_says_of_the_same_batch(self) -> None:
        # A divergence's reference is read from a folder.
        tiny.model().save_pretrained(f"{self.folder}/model")
        for loss, accumulation in [("grpo", 1), ("grpo", 2), ("dapo", 1), ("dapo", 2)]:
            with self.subTest(loss=loss, accumulation=accumulation):
                policy = Qwen2ForCausalLM.from_pretrained(f"{self.folder}/model")
                trainer = self.trainer(
                    PopoTrainer,
                    policy=policy,
                    rate=30.0,
                    loss_type=loss,
                    gradient_accumulation_steps=accumulation,
                    beta=0.1,
                    entropy_coef=0.01,
                )
                seen = self.recorded(trainer)
                trainer.train()
                logarithms = torch.zeros(2, dtype=torch.float64)
                for logged, (policy, batch, rewards) in zip(steps(trainer), seen, strict=True):
                    expected = self.direct(policy.double(), batch, rewards, loss)
                    found = [logged[f"indicator/{name}"] for name in NAMES]
                    for one, other in zip(found, expected, strict=True):
                        self.assertLessEqual(abs(one - other), 1e-5 * abs(other))
                    logarithms += 30.0 * torch.tensor(found, dtype=torch.float64)
                    weights = torch.tensor([logged[f"weights/{name}"] for name in NAMES], dtype=torch.float64)
                    torch.testing.assert_close(weights, logarithms.softmax(0))
                    weighted = sum(logged[f"weights/{name}"] * logged[f"rewards/{name}/mean"] for name in NAMES)
                    self.assertAlmostEqual(logged["reward"], weighted, places=5)
                self.assertNotAlmostEqual(weights[0].item(), 0.5, places=3)

    def test_without_a_rate_it_is_the_plain_trainer(self) -> None:
        for scale in ("group", "batch", "none"):
            with self.subTest(scale):
                settings = {"max_steps": 2, "scale_rewards": scale, "gradient_accumulation_steps": 2}
                plain = self.trainer(reward_weights=[0.5, 0.5], **settings)
                plain.train()
                popo = self.trainer(PopoTrainer, rate=1e-300, **settings)
                popo.train()
                for one, other in zip(plain.model.parameters(), popo.model.parameters(), strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=0)
                for one, other in zip(steps(plain), steps(popo), strict=True):
                    for figure in ("loss", "reward", "reward_std", "entropy", "grad_norm"):
                        self.assertEqual(one[figure], other[figure], figure)

    def test_a_checkpoint_has_the_weights(self) -> None:
        whole = self.trainer(PopoTrainer, rate=30.0, max_steps=4, save_strategy="steps", save_steps=2)
        whole.train()
        resumed = self.trainer(PopoTrainer, rate=1e-300, max_steps=4)
        resumed.train(resume_from_checkpoint=f"{self.folder}/checkpoint-2")
        self.assertEqual(steps(whole)[1]["weights/semantic"], steps(resumed)[2]["weights/semantic"])

    def test_a_reward_that_does_not_apply_is_its_groups_mean(self) -> None:
        nan = float("nan")
        rewards = torch.tensor([[1.0, nan], [3.0, nan], [nan, 0.3], [0.0, 0.3]])
        expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        torch.testing.assert_close(centred(rewards, 2), expected)

    def test_what_it_cannot_do_is_refused(self) -> None:
        cases = [
            ("steps_per_generation", {"steps_per_generation": 2}),
            ("num_iterations", {"num_iterations": 2}),
            ("sum_then_normalize", {"multi_objective_aggregation": "normalize_then_sum"}),
            ("sum 1", {"reward_weights": [1.0, 1.0]}),
            ("use_reentrant", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
            ("rate", {"rate": 0.0}),
        ]
        for reason, settings in cases:
            with self.subTest(reason), self.assertRaisesRegex(ValueError, reason):
                self.trainer(PopoTrainer, **{"rate": 1.0, **settings})


if __name__ == "__main__":
    unittest.main()
