//! What is made hard: one axis at a time from the base, and one cell with most of it.

/// One setting of the rewards and roll-outs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// In tables.
    pub name: &'static str,
    /// Index of the conflicts 94, 80, 60.
    pub(super) conflict: usize,
    /// Roll-outs of a prompt; a step has [`super::ROLLOUTS`] in all.
    pub(super) group: usize,
    /// By objective: noise on its reward, in deviations that the reward has in groups under SFT (1 / SNR).
    pub(super) noise: [f64; 2],
    /// By objective: whether it counts only up to its mean under greedy SFT.
    pub(super) spent: [bool; 2],
    /// By objective: share of the roll-outs whose reward is given at all, drawn; 0 the others.
    pub(super) given: [f64; 2],
}

/// The hardest conflict: at the world's own, 80, one linear policy reaches nearly all of both, whatever the rule (that cell shows it).
const BASE: Cell = Cell { name: "base", conflict: 2, group: 8, noise: [0.0; 2], spent: [false; 2], given: [1.0; 2] };

/// All cells; similarity is objective 0, CTCVR 1.
pub const CELLS: [Cell; 13] = [
    BASE,
    Cell { name: "similarity SNR 1", noise: [1.0, 0.0], ..BASE },
    Cell { name: "similarity SNR ⅓", noise: [3.0, 0.0], ..BASE },
    Cell { name: "CTCVR SNR 1", noise: [0.0, 1.0], ..BASE },
    Cell { name: "CTCVR SNR ⅓", noise: [0.0, 3.0], ..BASE },
    Cell { name: "similarity spent", spent: [true, false], ..BASE },
    Cell { name: "CTCVR spent", spent: [false, true], ..BASE },
    Cell { name: "conflict 80", conflict: 1, ..BASE },
    Cell { name: "conflict 94", conflict: 0, ..BASE },
    Cell { name: "G 4", group: 4, ..BASE },
    Cell { name: "G 16", group: 16, ..BASE },
    Cell { name: "CTCVR 10 %", given: [1.0, 0.1], ..BASE },
    // With a tenth of CTCVR's rewards its own arm gains nothing for certain here, and all would be refused.
    Cell { name: "all bad", group: 4, noise: [3.0, 0.0], given: [1.0, 0.3], ..BASE },
];
