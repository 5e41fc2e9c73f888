//! Graph calls of sequences: host inputs of the contract (see `graph`), nothing else.

use std::ops::Range;

use crate::llm::device::Call;
use crate::llm::sequence::Sequence;

/// All of a group's prompts at once, padded on the right, with logits behind each.
pub(super) fn group_call(first: usize, group: &[Sequence]) -> Call {
    let width = group.iter().map(|sequence| sequence.job.tokens.len()).max().unwrap_or(1);
    let mut call = Call { first, rows: group.len(), width, total: width as i32, ..Call::default() };
    call.input_ids = vec![0; group.len() * width];
    for (index, sequence) in group.iter().enumerate() {
        let tokens = &sequence.job.tokens;
        let cells = &mut call.input_ids[index * width..][..tokens.len()];
        cells.iter_mut().zip(tokens).for_each(|(cell, &token)| *cell = i64::from(token));
        call.seqlens.push(tokens.len() as i32 - 1);
        call.logits_indices.push((index * width + tokens.len() - 1) as i64);
    }
    call
}

/// The next tokens of one row that holds `past`, with logits behind those of `wanted`.
pub(super) fn piece_call(row: usize, tokens: &[u32], past: usize, wanted: Range<usize>) -> Call {
    let total = (past + tokens.len()) as i32;
    Call {
        first: row,
        rows: 1,
        width: tokens.len(),
        input_ids: tokens.iter().map(|&token| i64::from(token)).collect(),
        seqlens: vec![total - 1],
        total,
        logits_indices: wanted.map(|position| position as i64).collect(),
    }
}
