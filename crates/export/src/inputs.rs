//! What goes in and out of each decoder graph: the contract with those who run it.
//!
//! In: the kind of graph. Out: declared inputs and outputs. Called by `decoder`.
//!
//! B rows, S new tokens of each, N wanted logits, M slots of the cache; these are free. K key-value heads, hd head width,
//! V vocabulary, d width; these are fixed. T is the precision's float: f32 also for int8 and int4.
//!
//! | input | gqa | tree | std |
//! |---|---|---|---|
//! | `input_ids` | i64 [B, S], right-padded | same | same |
//! | `seqlens_k` | i32 [B], tokens of the row after this step, minus 1 | same | – |
//! | `total_sequence_length` | i32 [], longest row after this step | same | – |
//! | `position_ids` | – | i64 [B, S] | i64 [B, S] |
//! | `write_indices` | – | – | i64 [B], first slot written |
//! | `attention_bias` | – | T [1, 1, S, total], added to the scores | f32 [B, 1, S, M], likewise |
//! | `nonpad_kv_seqlen` | – | – | i64 [B], slots in use after this step |
//! | `logits_indices` | i64 [N], flat positions in B*S | same | same |
//! | `past_key_values.{l}.key`, `.value` | T [B, K, M, hd], the shared buffer | same | same |
//!
//! Outputs: `logits` f32 [N, V], `hidden_states` T [B, S, d] (after the last norm), `present.{l}.key`, `.value`: bind them
//! to the memory of the past.
//!
//! Paged has one token axis t for all rows: `input_ids` i64 [t], `cumulative_sequence_lengths` i32 [B+1] (new tokens,
//! prefix sums), `past_sequence_lengths` i32 [B], `block_table` i32 [B, blocks of a row], `attention_metadata` i32 [3]
//! (most new tokens of a row, longest row, lower bound of the longest; in CPU memory), `logits_indices` i32 [N],
//! `past_key_values.{l}.key`, `.value` T [blocks, slots of a block, K, hd]; `hidden_states` T [t, d], the rest alike.
//!
//! The vector form takes `input_ids`, `attention_mask` i64 [B, S] (1 = token, padding on the right) and gives
//! `sentence_embedding` f32 [B, d] of norm 1, as `bert` does.

use super::decoder::{DecoderGraph, Form};
use super::names;
use super::onnx::{Dim, FLOAT, INT32, INT64, fixed, symbol, value};
use super::options::Flavour;

impl DecoderGraph<'_> {
    /// Declares every input and output.
    pub fn declare(&mut self) {
        let Form::Text(flavour) = self.form else {
            self.declare_vector();
            return;
        };
        match flavour {
            Flavour::Gqa | Flavour::Tree => self.declare_shared_buffer(flavour),
            Flavour::Std => self.declare_standard(),
            Flavour::Paged => self.declare_paged(),
        }
        let selected = symbol("selected");
        let indices = if self.is_flat() { INT32 } else { INT64 };
        self.graph.input(value(names::LOGITS_INDICES, indices, std::slice::from_ref(&selected)));
        self.graph.output(value(names::LOGITS, FLOAT, &[selected, fixed(self.shape.vocabulary)]));
        let (kv_heads, head, hidden) = (fixed(self.shape.kv_heads), fixed(self.shape.head), fixed(self.shape.hidden));
        let (states, cache) = match self.is_flat() {
            true => (vec![symbol("tokens"), hidden], [symbol("blocks"), symbol("block_slots"), kv_heads, head]),
            false => {
                (vec![symbol("batch"), symbol("sequence"), hidden], [symbol("batch"), kv_heads, symbol("slots"), head])
            }
        };
        self.declare_cache(&states, &cache);
    }

    fn declare_cache(&mut self, states: &[Dim], cache: &[Dim]) {
        let element = self.numbers.element.onnx();
        self.graph.output(value(names::HIDDEN_STATES, element, states));
        for layer in 0..self.shape.layers {
            for part in ["key", "value"] {
                self.graph.input(value(&names::past(layer, part), element, cache));
                self.graph.output(value(&names::present(layer, part), element, cache));
            }
        }
    }

    fn declare_shared_buffer(&mut self, flavour: Flavour) {
        let tokens = [symbol("batch"), symbol("sequence")];
        self.graph.input(value(names::INPUT_IDS, INT64, &tokens));
        self.graph.input(value(names::SEQLENS_K, INT32, &[symbol("batch")]));
        self.graph.input(value(names::TOTAL_SEQUENCE_LENGTH, INT32, &[]));
        if flavour == Flavour::Tree {
            let bias = [fixed(1), fixed(1), symbol("sequence"), symbol("total")];
            self.graph.input(value(names::POSITION_IDS, INT64, &tokens));
            self.graph.input(value(names::ATTENTION_BIAS, self.numbers.element.onnx(), &bias));
        }
    }

    fn declare_standard(&mut self) {
        let (tokens, rows) = ([symbol("batch"), symbol("sequence")], [symbol("batch")]);
        let bias = [symbol("batch"), fixed(1), symbol("sequence"), symbol("slots")];
        self.graph.input(value(names::INPUT_IDS, INT64, &tokens));
        self.graph.input(value(names::POSITION_IDS, INT64, &tokens));
        self.graph.input(value(names::WRITE_INDICES, INT64, &rows));
        self.graph.input(value(names::ATTENTION_BIAS, FLOAT, &bias));
        self.graph.input(value(names::NONPAD_KV_SEQLEN, INT64, &rows));
    }

    fn declare_paged(&mut self) {
        self.graph.input(value(names::INPUT_IDS, INT64, &[symbol("tokens")]));
        self.graph.input(value("cumulative_sequence_lengths", INT32, &[symbol("batch_plus_1")]));
        self.graph.input(value("past_sequence_lengths", INT32, &[symbol("batch")]));
        self.graph.input(value("block_table", INT32, &[symbol("batch"), symbol("row_blocks")]));
        self.graph.input(value("attention_metadata", INT32, &[fixed(3)]));
    }

    fn declare_vector(&mut self) {
        let tokens = [symbol("batch"), symbol("sequence")];
        self.graph.input(value(names::INPUT_IDS, INT64, &tokens));
        self.graph.input(value(names::ATTENTION_MASK, INT64, &tokens));
        self.graph.output(value(names::SENTENCE_EMBEDDING, FLOAT, &[symbol("batch"), fixed(self.shape.hidden)]));
    }
}
