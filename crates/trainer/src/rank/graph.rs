//! A trained ranker → an ONNX graph that computes the same.
//!
//! In: a model. Out: a folder with `graph.onnx`, which a ranking service runs: P users and N candidates in one call, each candidate with the
//! place of its user among them. Called by `stages`; `session` runs it.
//!
//! | input (i64) | shape | |
//! |---|---|---|
//! | `history_items` | [P, H, 6] | what a user did, newest first, by the fields of the item; H from 1 to 64; rows are filled up with 0 |
//! | `history_actions` | [P, H] | |
//! | `history_length` | [P] | engagements of the row |
//! | `cross_items`, `cross_length` | [P, C, 6], [P] | the cross-user sequence; length 0 = none |
//! | `profile` | [P, attributes] | where users have profiles |
//! | `words` | [P, 16] | of the newest searches; 0 = none |
//! | `domains` | [P] | where the items are shown |
//! | `codes` | [P, tables] | `intra` code plus one, 0 = none; where the ranker reads codes |
//! | `items` | [N, 6] | the candidates |
//! | `owners` | [N] | the place of each one's user, from 0 |
//!
//! Outputs, f32 [N]: `click`, P(click); `conversion`, P(conversion | click). Numbers are those of `ranker.json`; 0 = not known.

use super::inputs::{FACT_ENGAGEMENTS, ITEM_FIELDS, WORDS};
use super::mixer_graph::LOSS_ONLY;
use super::model::{Body, Head};
use super::onepiece_graph::KnownNames;
use super::{RankError, RankModel};
use crate::nn::{Module, Parameter};
use std::path::Path;
use taiji_export::onnx::{AttributeProto, BASE, Dim, FLOAT, INT64, fixed, int, node, symbol, value};
use taiji_export::{Element, GRAPH_FILE, GraphWriter, Weight};

/// Writes `graph.onnx` (and the weights beside it, where they are not small) into a folder.
pub(super) fn write(model: &RankModel, folder: &Path) -> Result<(), RankError> {
    let mut writer = GraphWriter::create(folder)?;
    writer.begin(GRAPH_FILE, "ranker", BASE);
    let mut graph = Graph { writer, values: 0 };
    graph.declare(model);
    graph.constants(model)?;
    let hidden = graph.logits(model);
    graph.outputs(&hidden);
    graph.writer.finish()?;
    Ok(())
}

pub(super) struct Graph {
    pub writer: GraphWriter,
    /// Values named so far.
    values: usize,
}

impl Graph {
    fn declare(&mut self, model: &RankModel) {
        let [points, shown] = ["points", "impressions"].map(symbol);
        let mut input = |name: &str, dims: &[Dim]| self.writer.input(value(name, INT64, dims));
        for name in ["history", "cross"] {
            let length = symbol(name);
            input(&format!("{name}_items"), &[points.clone(), length.clone(), fixed(ITEM_FIELDS)]);
            if name == "history" {
                input("history_actions", &[points.clone(), length]);
            }
            input(&format!("{name}_length"), std::slice::from_ref(&points));
        }
        let (profile, (tables, _)) = model.shape();
        for (name, columns) in [("profile", profile), ("words", WORDS), ("codes", tables)] {
            if columns > 0 {
                input(name, &[points.clone(), fixed(columns)]);
            }
        }
        input("domains", std::slice::from_ref(&points));
        input("items", &[shown.clone(), fixed(ITEM_FIELDS)]);
        input("owners", std::slice::from_ref(&shown));
        for name in ["click", "conversion"] {
            self.writer.output(value(name, FLOAT, std::slice::from_ref(&shown)));
        }
    }

    fn constants(&mut self, model: &RankModel) -> Result<(), RankError> {
        let needed = |parameter: &Parameter| !parameter.name.starts_with(LOSS_ONLY);
        for parameter in model.parameters().into_iter().filter(needed) {
            let (shape, values) = (parameter.var.dims().to_vec(), parameter.var.flatten_all()?.to_vec1()?);
            self.writer.weight(&parameter.name, &Weight { shape, values }, Element::F32)?;
        }
        for number in 0..ITEM_FIELDS as i64 {
            self.writer.integers(&format!("scalar.{number}"), &[], &[number]);
        }
        (0..3).for_each(|number| self.writer.integers(&format!("list.{number}"), &[1], &[number]));
        self.writer.integers("last", &[1], &[-1]);
        self.writer.integers("newest", &[1], &[FACT_ENGAGEMENTS as i64]);
        let rows = model.fact_rows();
        let numbers = [("word_facts", rows.words), ("engagement_facts", rows.engagements)];
        let numbers = numbers.into_iter().chain([("action_count", rows.actions), ("domain_count", rows.domains)]);
        numbers.for_each(|(name, number)| self.writer.integers(name, &[], &[number as i64]));
        let (_, (tables, each)) = model.shape();
        let offsets: Vec<i64> = (0..tables).map(|table| (table * (each + 1)) as i64).collect();
        if tables > 0 {
            self.writer.integers("code_offsets", &[tables as i64], &offsets);
            let rows: Vec<i64> = offsets.iter().map(|offset| rows.codes as i64 + offset).collect();
            self.writer.integers("code_facts", &[tables as i64], &rows);
        }
        if let Some(row) = rows.cross {
            self.writer.integers("cross_facts", &[], &[row as i64]);
        }
        // Rows are joined to one: everything behind the first dimension.
        self.writer.integers("joined", &[2], &[0, -1]);
        match model.body() {
            Body::Interest { head, .. } => match head.as_ref() {
                Head::Layers(_) => Ok(()),
                Head::Mixer(mixer) => self.mixer_constants(mixer),
            },
            Body::OnePiece { net, anchors } => self.onepiece_constants(net, rows.domains, anchors),
        }
    }

    /// A node; the name of what it makes.
    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let made = format!("value.{}", self.values);
        self.values += 1;
        self.writer.node(node(op, inputs, &[&made], attributes));
        made
    }

    fn concat(&mut self, parts: &[String]) -> String {
        self.joined(parts, -1)
    }

    pub(super) fn joined(&mut self, parts: &[String], axis: i64) -> String {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.op("Concat", &parts, vec![int("axis", axis)])
    }

    pub fn rows(&mut self, table: &str, ids: &str) -> String {
        self.op("Gather", &[table, ids], vec![int("axis", 0)])
    }

    pub fn float(&mut self, value: &str) -> String {
        self.op("Cast", &[value], vec![int("to", i64::from(FLOAT))])
    }

    /// [.., 6] of numbers → [.., width of an item].
    fn item(&mut self, fields: &str) -> String {
        let embedded = |graph: &mut Self, field: usize| {
            let ids = graph.op("Gather", &[fields, &format!("scalar.{field}")], vec![int("axis", -1)]);
            graph.rows(&format!("items.{field}.weight"), &ids)
        };
        let parts: Vec<String> = (0..ITEM_FIELDS).map(|field| embedded(self, field)).collect();
        self.concat(&parts)
    }

    /// Numbers of the places of rows, [L], and which of them a row of so many items has, [P, L].
    fn places(&mut self, rows: &str, length: &str) -> (String, String) {
        let shape = self.op("Shape", &[rows], vec![]);
        let longest = self.op("Gather", &[&shape, "scalar.1"], vec![int("axis", 0)]);
        let places = self.op("Range", &["scalar.0", &longest, "scalar.1"], vec![]);
        let ends = self.op("Unsqueeze", &[length, "list.1"], vec![]);
        let there = self.op("Less", &[&places, &ends], vec![]);
        (places, there)
    }

    /// Items of a sequence, [P, L, width of an item], these with action and place, and which there are, [P, L] (bool).
    fn sequence(&mut self, name: &str) -> (String, String, String) {
        let (fields, length) = (format!("{name}_items"), format!("{name}_length"));
        let items = self.item(&fields);
        let shape = self.op("Shape", &[&fields], vec![int("start", 0), int("end", 2)]);
        let (places, there) = self.places(&fields, &length);
        let actions = if name == "history" { "history_actions" } else { "scalar.0" };
        let actions = self.marks("actions.weight", actions, &shape);
        let placed = self.marks("places.weight", &places, &shape);
        let known = self.concat(&[items.clone(), actions, placed]);
        (items, known, there)
    }

    /// Rows of a table, as often as a shape [P, L] asks for.
    fn marks(&mut self, table: &str, ids: &str, shape: &str) -> String {
        let rows = self.rows(table, ids);
        let width = self.op("Shape", &[&rows], vec![int("start", -1)]);
        let wanted = self.concat(&[shape.to_owned(), width]);
        self.op("Expand", &[&rows, &wanted], vec![])
    }

    /// What of a sequence bears on each candidate: `Unit::attend`.
    fn attend(&mut self, name: &str, candidate: &str, asked: &str) -> String {
        let weight = |part: &str| format!("{name}.{part}.weight");
        let (items, known, there) = self.sequence(name);
        let keys = self.op("MatMul", &[&known, &weight("key")], vec![]);
        let keys = self.rows(&keys, "owners");
        let items = self.rows(&items, "owners");
        let beside = self.op("Unsqueeze", &[candidate, "list.1"], vec![]);
        let product = self.op("Mul", &[&items, &beside], vec![]);
        let product = self.op("MatMul", &[&product, &weight("product")], vec![]);
        let query = self.op("MatMul", &[asked, &weight("query")], vec![]);
        let query = self.op("Add", &[&query, &format!("{name}.bias")], vec![]);
        let query = self.op("Unsqueeze", &[&query, "list.1"], vec![]);
        let hidden = self.op("Add", &[&keys, &product], vec![]);
        let hidden = self.op("Add", &[&hidden, &query], vec![]);
        let hidden = self.op("Relu", &[&hidden], vec![]);
        let weights = self.op("MatMul", &[&hidden, &weight("out")], vec![]);
        let weights = self.op("Squeeze", &[&weights, "last"], vec![]);
        let there = self.float(&there);
        let there = self.rows(&there, "owners");
        let weights = self.op("Mul", &[&weights, &there], vec![]);
        let weights = self.op("Unsqueeze", &[&weights, "list.1"], vec![]);
        let sum = self.op("MatMul", &[&weights, &items], vec![]);
        self.op("Squeeze", &[&sum, "list.1"], vec![])
    }

    /// What does not depend on the candidate, [P, ..] each: of presence, request and profile; codes where there are any; searches.
    fn user(&mut self, model: &RankModel, domains: String) -> Vec<Vec<String>> {
        let (profile, (tables, _)) = model.shape();
        let crossed = self.op("Greater", &["cross_length", "scalar.0"], vec![]);
        let crossed = self.op("Unsqueeze", &[&crossed, "list.1"], vec![]);
        let crossed = self.float(&crossed);
        let coded = match tables {
            // No code of anybody: a column of zeros.
            0 => self.op("Sub", &[&crossed, &crossed], vec![]),
            _ => {
                let most = self.op("ReduceMax", &["codes", "list.1"], vec![]);
                let any = self.op("Greater", &[&most, "scalar.0"], vec![]);
                self.float(&any)
            }
        };
        let mut about = vec![self.concat(&[coded, crossed]), domains];
        let joined = |graph: &mut Self, table: &str, ids: &str| {
            let rows = graph.rows(table, ids);
            graph.op("Reshape", &[&rows, "joined"], vec![])
        };
        if profile > 0 {
            about.push(joined(self, "values.weight", "profile"));
        }
        let mut parts = vec![about];
        if tables > 0 {
            let numbers = self.op("Add", &["codes", "code_offsets"], vec![]);
            parts.push(vec![joined(self, "codes.weight", &numbers)]);
        }
        parts.push(vec![self.words()]);
        parts
    }

    /// Mean of the words' rows; 0 where there are none.
    fn words(&mut self) -> String {
        let rows = self.rows("words.weight", "words");
        let there = self.op("Greater", &["words", "scalar.0"], vec![]);
        let there = self.float(&there);
        let count = self.op("ReduceSum", &[&there, "list.1"], vec![]);
        let one = self.float("scalar.1");
        let count = self.op("Max", &[&count, &one], vec![]);
        let weights = self.op("Div", &[&there, &count], vec![]);
        let weights = self.op("Unsqueeze", &[&weights, "list.2"], vec![]);
        let weighed = self.op("Mul", &[&rows, &weights], vec![]);
        let keep = vec![int("keepdims", 0)];
        self.op("ReduceSum", &[&weighed, "list.1"], keep)
    }

    fn logits(&mut self, model: &RankModel) -> String {
        let candidate = self.item("items");
        let domains = self.rows("domains.weight", "domains");
        let shown = self.rows(&domains, "owners");
        let asked = self.concat(&[candidate.clone(), shown]);
        let (hidden, pairs) = match model.body() {
            Body::Interest { head, .. } => self.interest(model, head, (candidate, asked), domains),
            Body::OnePiece { net, anchors } => {
                let pairs = self.factors(model);
                let known = self.known(model, domains, !anchors.is_empty());
                let candidates = self.concat(&[asked, pairs.clone()]);
                (self.onepiece(net, &known, &candidates), pairs)
            }
        };
        let paired = self.op("MatMul", &[&pairs, "pairs.weight"], vec![]);
        self.op("Add", &[&hidden, &paired], vec![])
    }

    /// Logits, and the pairs.
    fn interest(
        &mut self,
        model: &RankModel,
        head: &Head,
        (candidate, asked): (String, String),
        domains: String,
    ) -> (String, String) {
        let liked = self.attend("history", &candidate, &asked);
        let crossed = self.attend("cross", &candidate, &asked);
        let product = self.op("Mul", &[&candidate, &liked], vec![]);
        let user = self.user(model, domains);
        let about = [candidate, liked, product, crossed];
        match head {
            Head::Layers(_) => {
                // Joined once a user, not once a candidate.
                let user = self.concat(&user.concat());
                let user = self.rows(&user, "owners");
                let pairs = self.factors(model);
                let parts: Vec<String> = about.into_iter().chain([user, pairs.clone()]).collect();
                (self.layered(&parts), pairs)
            }
            Head::Mixer(mixer) => {
                let pairs = self.factors(model);
                let mut parts = Vec::from(about);
                for one in &user {
                    let joined = self.concat(one);
                    parts.push(self.rows(&joined, "owners"));
                }
                parts.push(pairs.clone());
                (self.mixer(mixer, &parts), pairs)
            }
        }
    }

    /// A user's tokens, kind by kind: `RankModel::known`.
    fn known(&mut self, model: &RankModel, domains: String, anchored: bool) -> Vec<KnownNames> {
        let mut all = Vec::new();
        for name in ["history", "cross"] {
            let (_, values, there) = self.sequence(name);
            all.push(KnownNames { values, mask: self.float(&there) });
        }
        let all_there = |graph: &mut Self, values: &str| {
            let shape = graph.op("Shape", &[values], vec![int("start", 0), int("end", 2)]);
            graph.op("Expand", &["onepiece.one", &shape], vec![])
        };
        if anchored {
            let ids = self.rows("onepiece.anchors", "domains");
            let items = self.item(&ids);
            let shape = self.op("Shape", &[&items], vec![int("start", 0), int("end", 2)]);
            let places = self.marks("places.weight", "onepiece.places", &shape);
            let values = self.concat(&[items, places]);
            all.push(KnownNames { mask: all_there(self, &values), values });
        }
        for one in self.user(model, domains) {
            let joined = self.concat(&one);
            let values = self.op("Unsqueeze", &[&joined, "list.1"], vec![]);
            all.push(KnownNames { mask: all_there(self, &values), values });
        }
        all
    }

    /// What a gated net makes of rows: the inner values, before they are joined again.
    pub(super) fn gated(&mut self, x: &str, name: &str) -> String {
        let gate = self.op("MatMul", &[x, &format!("{name}.gate")], vec![]);
        let open = self.op("Sigmoid", &[&gate], vec![]);
        let gate = self.op("Mul", &[&gate, &open], vec![]);
        let up = self.op("MatMul", &[x, &format!("{name}.up")], vec![]);
        self.op("Mul", &[&gate, &up], vec![])
    }

    pub(super) fn linear(&mut self, x: &str, name: &str) -> String {
        let product = self.op("MatMul", &[x, &format!("{name}.weight")], vec![]);
        self.op("Add", &[&product, &format!("{name}.bias")], vec![])
    }

    /// Divided by the root of its mean square, times what was learned.
    pub(super) fn normed(&mut self, x: &str, gain: &str) -> String {
        let square = self.op("Mul", &[x, x], vec![]);
        let mean = self.op("ReduceMean", &[&square, "last"], vec![int("keepdims", 1)]);
        let mean = self.op("Add", &[&mean, "epsilon"], vec![]);
        let root = self.op("Sqrt", &[&mean], vec![]);
        let scaled = self.op("Div", &[x, &root], vec![]);
        self.op("Mul", &[&scaled, gain], vec![])
    }

    /// DIN's three layers.
    fn layered(&mut self, parts: &[String]) -> String {
        let mut hidden = self.concat(parts);
        for place in 0..3 {
            hidden = self.op("MatMul", &[&hidden, &format!("layers.{place}.weight")], vec![]);
            hidden = self.op("Add", &[&hidden, &format!("layers.{place}.bias")], vec![]);
            if place < 2 {
                hidden = self.op("Relu", &[&hidden], vec![]);
            }
        }
        hidden
    }

    /// `Factors::pairs`.
    fn factors(&mut self, model: &RankModel) -> String {
        let spread = self.op("Unsqueeze", &["domains", "list.1"], vec![]);
        let mut kinds: Vec<(String, String)> = Vec::new();
        if model.shape().0 > 0 {
            let there = self.op("Greater", &["profile", "scalar.0"], vec![]);
            kinds.push(("profile".to_owned(), there));
        }
        let there = self.op("Greater", &["words", "scalar.0"], vec![]);
        kinds.push((self.op("Add", &["words", "word_facts"], vec![]), there));
        let newest = |graph: &mut Self, all: &str| graph.op("Slice", &[all, "list.0", "newest", "list.1"], vec![]);
        let (items, actions) = (newest(self, "history_items"), newest(self, "history_actions"));
        let leaves = self.op("Gather", &[&items, "scalar.3"], vec![int("axis", -1)]);
        let leaves = self.op("Mul", &[&leaves, "action_count"], vec![]);
        let engaged = self.op("Add", &[&leaves, &actions], vec![]);
        let engaged = self.op("Add", &[&engaged, "engagement_facts"], vec![]);
        let (_, there) = self.places(&actions, "history_length");
        kinds.push((engaged, there));
        if model.codes().0 > 0 {
            let there = self.op("Greater", &["codes", "scalar.0"], vec![]);
            kinds.push((self.op("Add", &["codes", "code_facts"], vec![]), there));
        }
        if model.fact_rows().cross.is_some() {
            let items = newest(self, "cross_items");
            let leaves = self.op("Gather", &[&items, "scalar.3"], vec![int("axis", -1)]);
            let (_, there) = self.places(&leaves, "cross_length");
            kinds.push((self.op("Add", &[&leaves, "cross_facts"], vec![]), there));
        }
        let (facts, there): (Vec<String>, Vec<String>) = kinds.into_iter().unzip();
        let (facts, there) = (self.concat(&facts), self.concat(&there));
        let rows = self.op("Mul", &[&facts, "domain_count"], vec![]);
        let rows = self.op("Add", &[&rows, &spread], vec![]);
        let rows = self.rows("facts.weight", &rows);
        let there = self.float(&there);
        let there = self.op("Unsqueeze", &[&there, "list.2"], vec![]);
        let known = self.op("Mul", &[&rows, &there], vec![]);
        let user = self.op("ReduceSum", &[&known, "list.1"], vec![int("keepdims", 0)]);
        let user = self.rows(&user, "owners");
        let shown = |graph: &mut Self, field: usize| {
            let ids = graph.op("Gather", &["items", &format!("scalar.{field}")], vec![int("axis", -1)]);
            graph.rows(&format!("factors.{field}.weight"), &ids)
        };
        let mut sum = shown(self, 0);
        for field in 1..ITEM_FIELDS {
            let other = shown(self, field);
            sum = self.op("Add", &[&sum, &other], vec![]);
        }
        self.op("Mul", &[&user, &sum], vec![])
    }

    fn outputs(&mut self, hidden: &str) {
        let chances = self.op("Sigmoid", &[hidden], vec![]);
        for (place, name) in ["click", "conversion"].into_iter().enumerate() {
            let column = format!("scalar.{place}");
            self.writer.node(node("Gather", &[&chances, &column], &[name], vec![int("axis", 1)]));
        }
    }
}
