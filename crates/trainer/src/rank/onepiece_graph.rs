//! OnePiece's part of the ONNX graph: what [`OnePiece`](super::onepiece::OnePiece) computes.
//!
//! In: names of the tokens' and candidates' values. Out: the name of the logits' value. Called by `graph`.

use super::RankError;
use super::graph::Graph;
use super::inputs::{ITEM_FIELDS, ItemFields};
use super::layer::EPSILON;
use super::onepiece::{HIDDEN, OnePiece, STEPS};
use taiji_export::onnx::{int, ints};
use taiji_export::{Element, Weight};

/// Tokens of one kind, [P, length, values], and which of them there are, [P, length] (f32).
pub(super) struct KnownNames {
    pub values: String,
    pub mask: String,
}

/// Keys and values of a layer, by name.
type Pair = (String, String);

impl Graph {
    /// `anchors`: [domains × anchors of one].
    pub(super) fn onepiece_constants(
        &mut self,
        net: &OnePiece,
        domains: usize,
        anchors: &[ItemFields],
    ) -> Result<(), RankError> {
        let (width, heads) = (net.settings.width as i64, net.settings.heads as i64);
        self.writer.integers("onepiece.split", &[4], &[0, 0, heads, width / heads]);
        self.writer.integers("onepiece.apart", &[3], &[0, heads, width / heads]);
        self.writer.integers("onepiece.tokens", &[3], &[0, 0, -1]);
        self.writer.integers("onepiece.rows", &[2], &[0, -1]);
        let numbers = [
            ("epsilon", EPSILON),
            ("onepiece.hidden", HIDDEN),
            ("onepiece.one", 1.0),
            ("onepiece.scale", ((width / heads) as f32).sqrt().recip()),
        ];
        for (name, number) in numbers {
            self.writer.weight(name, &Weight { shape: vec![1], values: vec![number] }, Element::F32)?;
        }
        (0..STEPS as i64).for_each(|step| self.writer.integers(&format!("onepiece.step.{step}"), &[1], &[step]));
        if !anchors.is_empty() {
            let each = (anchors.len() / domains) as i64;
            self.writer.integers("onepiece.places", &[each], &(0..each).collect::<Vec<_>>());
            let ids: Vec<i64> = anchors.iter().flatten().map(|id| i64::from(*id)).collect();
            self.writer.integers("onepiece.anchors", &[domains as i64, each, ITEM_FIELDS as i64], &ids);
        }
        Ok(())
    }

    /// [impressions, 2].
    pub(super) fn onepiece(&mut self, net: &OnePiece, known: &[KnownNames], candidates: &str) -> String {
        let mut tokens = Vec::new();
        for (place, one) in known.iter().enumerate() {
            tokens.push(self.linear(&one.values, &format!("onepiece.kinds.{place}")));
        }
        let mut user = self.joined(&tokens, 1);
        let masks: Vec<String> = known.iter().map(|one| one.mask.clone()).collect();
        let there = self.joined(&masks, 1);
        let missing = self.op("Sub", &["onepiece.one", &there], vec![]);
        let hidden = self.op("Mul", &[&missing, "onepiece.hidden"], vec![]);
        let mut users = Vec::new();
        for place in 0..net.layers.len() {
            let (next, keys) = self.of_user(&user, &hidden, &format!("onepiece.{place}"));
            users.push(keys);
            user = next;
        }
        let sight = (self.rows(&hidden, "owners"), self.strangers());
        let mut caches: Vec<Vec<Pair>> = vec![vec![]; net.layers.len()];
        let first = self.linear(candidates, "onepiece.candidate");
        let mut block = self.through(&first, &users, &mut caches, &sight);
        let mut answers = Vec::new();
        for step in (0..STEPS).filter(|_| net.settings.reasoning) {
            let mark = self.rows("onepiece.steps", &format!("onepiece.step.{step}"));
            let marked = self.op("Add", &[&block, &mark], vec![]);
            block = self.through(&marked, &users, &mut caches, &sight);
            answers.push(self.read(&block));
        }
        let Some(first) = answers.first().filter(|_| net.settings.progressive) else {
            return self.read(&block);
        };
        let mut columns = Vec::new();
        for (place, answer) in [first, &answers[answers.len() - 1]].into_iter().enumerate() {
            columns.push(self.op("Gather", &[answer, &format!("list.{place}")], vec![int("axis", 1)]));
        }
        self.joined(&columns, 1)
    }

    fn read(&mut self, block: &str) -> String {
        let normed = self.normed(block, "onepiece.norm");
        self.linear(&normed, "onepiece.out")
    }

    /// [N, N]: 0 where both are of one user, else `HIDDEN`.
    fn strangers(&mut self) -> String {
        let rows = self.op("Unsqueeze", &["owners", "list.1"], vec![]);
        let columns = self.op("Unsqueeze", &["owners", "list.0"], vec![]);
        let same = self.op("Equal", &[&rows, &columns], vec![]);
        let same = self.float(&same);
        let other = self.op("Sub", &["onepiece.one", &same], vec![]);
        self.op("Mul", &[&other, "onepiece.hidden"], vec![])
    }

    fn transposed(&mut self, x: &str, order: &[i64]) -> String {
        self.op("Transpose", &[x], vec![ints("perm", order)])
    }

    /// `Layer::of_user`.
    fn of_user(&mut self, x: &str, hidden: &str, name: &str) -> (String, Pair) {
        let normed = self.normed(x, &format!("{name}.attention_norm"));
        let [query, key, value] = ["query", "key", "value"].map(|part| {
            let made = self.op("MatMul", &[&normed, &format!("{name}.{part}")], vec![]);
            self.op("Reshape", &[&made, "onepiece.split"], vec![])
        });
        let query = self.op("Mul", &[&query, "onepiece.scale"], vec![]);
        let heads_first = self.transposed(&query, &[0, 2, 1, 3]);
        let keys = self.transposed(&key, &[0, 2, 3, 1]);
        let scores = self.op("MatMul", &[&heads_first, &keys], vec![]);
        let bias = self.op("Unsqueeze", &[hidden, "list.1"], vec![]);
        let bias = self.op("Unsqueeze", &[&bias, "list.1"], vec![]);
        let scores = self.op("Add", &[&scores, &bias], vec![]);
        let weights = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let values = self.transposed(&value, &[0, 2, 1, 3]);
        let seen = self.op("MatMul", &[&weights, &values], vec![]);
        let seen = self.transposed(&seen, &[0, 2, 1, 3]);
        let seen = self.op("Reshape", &[&seen, "onepiece.tokens"], vec![]);
        let next = self.behind(x, &seen, name);
        (next, (key, value))
    }

    /// `OnePiece::through`.
    fn through(&mut self, block: &str, users: &[Pair], caches: &mut [Vec<Pair>], sight: &Pair) -> String {
        let mut block = block.to_owned();
        for (place, (user, cache)) in users.iter().zip(caches).enumerate() {
            block = self.of_candidates(&block, user, cache, sight, &format!("onepiece.{place}"));
        }
        block
    }

    /// `Layer::of_candidates`. `sight`: what is added for the user's tokens and for the group.
    fn of_candidates(
        &mut self,
        x: &str,
        (user_keys, user_values): &Pair,
        cache: &mut Vec<Pair>,
        (own_hidden, strangers): &Pair,
        name: &str,
    ) -> String {
        let normed = self.normed(x, &format!("{name}.attention_norm"));
        let [query, key, value] = ["query", "key", "value"].map(|part| {
            let made = self.op("MatMul", &[&normed, &format!("{name}.{part}")], vec![]);
            self.op("Reshape", &[&made, "onepiece.apart"], vec![])
        });
        let query = self.op("Mul", &[&query, "onepiece.scale"], vec![]);
        let pair = (self.transposed(&key, &[1, 0, 2]), self.transposed(&value, &[1, 0, 2]));
        cache.push(pair);
        let (keys, values): (Vec<String>, Vec<String>) = cache.iter().cloned().unzip();
        let (keys, values) = (self.joined(&keys, 1), self.joined(&values, 1));
        // Of the user's tokens.
        let own_keys = self.rows(user_keys, "owners");
        let own_keys = self.transposed(&own_keys, &[0, 2, 3, 1]);
        let own_values = self.rows(user_values, "owners");
        let own_values = self.transposed(&own_values, &[0, 2, 1, 3]);
        let single = self.op("Unsqueeze", &[&query, "list.2"], vec![]);
        let to_user = self.op("MatMul", &[&single, &own_keys], vec![]);
        let to_user = self.op("Squeeze", &[&to_user, "list.2"], vec![]);
        let bias = self.op("Unsqueeze", &[own_hidden, "list.1"], vec![]);
        let to_user = self.op("Add", &[&to_user, &bias], vec![]);
        // Of the group and the blocks before.
        let heads_first = self.transposed(&query, &[1, 0, 2]);
        let turned = self.transposed(&keys, &[0, 2, 1]);
        let to_group = self.op("MatMul", &[&heads_first, &turned], vec![]);
        let bias = self.joined(&vec![strangers.clone(); cache.len()], 1);
        let to_group = self.op("Add", &[&to_group, &bias], vec![]);
        let to_group = self.transposed(&to_group, &[1, 0, 2]);
        let lengths = [&to_user, &to_group].map(|scores| self.op("Shape", &[scores], vec![int("start", 2)]));
        let scores = self.joined(&[to_user, to_group], 2);
        let weights = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let end = self.op("Add", &[&lengths[0], &lengths[1]], vec![]);
        let of_user = self.op("Slice", &[&weights, "list.0", &lengths[0], "list.2"], vec![]);
        let of_user = self.op("Unsqueeze", &[&of_user, "list.2"], vec![]);
        let of_user = self.op("MatMul", &[&of_user, &own_values], vec![]);
        let of_user = self.op("Reshape", &[&of_user, "onepiece.rows"], vec![]);
        let of_group = self.op("Slice", &[&weights, &lengths[0], &end, "list.2"], vec![]);
        let of_group = self.transposed(&of_group, &[1, 0, 2]);
        let of_group = self.op("MatMul", &[&of_group, &values], vec![]);
        let of_group = self.transposed(&of_group, &[1, 0, 2]);
        let of_group = self.op("Reshape", &[&of_group, "onepiece.rows"], vec![]);
        let seen = self.op("Add", &[&of_user, &of_group], vec![]);
        self.behind(x, &seen, name)
    }

    /// What was seen is added, then what a net makes of both.
    fn behind(&mut self, x: &str, seen: &str, name: &str) -> String {
        let out = self.op("MatMul", &[seen, &format!("{name}.out")], vec![]);
        let x = self.op("Add", &[x, &out], vec![]);
        let normed = self.normed(&x, &format!("{name}.net_norm"));
        let inner = self.gated(&normed, name);
        let made = self.op("MatMul", &[&inner, &format!("{name}.down")], vec![]);
        self.op("Add", &[&x, &made], vec![])
    }
}
