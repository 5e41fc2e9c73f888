//! The table item → codes: its file, its checks, the tokens of its codes. Called by `stages` and `generative`.

use super::CodeTableError;
use crate::data::{DataError, open_text};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::io::BufRead;
use std::path::Path;
use taiji::llm::trie::Trie;

/// Token that begins a sequence.
pub const BOS: u32 = 0;
/// Most codes of a level.
const MAX_SIZE: usize = 1 << 16;

/// Items with their codes, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeTable {
    size: usize,
    levels: usize,
    items: Vec<String>,
    /// `items × levels`.
    codes: Vec<u32>,
    numbers: HashMap<String, usize>,
}

impl CodeTable {
    /// Reads lines `item<TAB>code<TAB>code…` without a header, plain or gzip; every code is below `size`, all items have as many
    /// codes, none comes twice.
    pub fn read(path: &Path, size: usize) -> Result<Self, CodeTableError> {
        if size == 0 || size > MAX_SIZE {
            return Err(CodeTableError::Size { size });
        }
        let mut table = CodeTable { size, levels: 0, items: Vec::new(), codes: Vec::new(), numbers: HashMap::new() };
        let mut lines: Vec<usize> = Vec::new();
        for (place, line) in open_text(path)?.lines().enumerate() {
            let number = place + 1;
            let text = line.map_err(|source| DataError::unreadable(path, number, source))?;
            if text.trim().is_empty() {
                continue;
            }
            let wrong = |message: String| DataError::line(path, number, message);
            let (item, codes) = row(&text, size).map_err(wrong)?;
            if table.items.is_empty() {
                table.levels = codes.len();
            }
            if codes.len() != table.levels {
                let (found, before) = (codes.len(), table.levels);
                return Err(wrong(format!("has {found} codes, the lines before have {before}")).into());
            }
            if let Some(earlier) = table.numbers.insert(item.to_owned(), table.items.len()) {
                return Err(wrong(format!("item {item} is already on line {}", lines[earlier])).into());
            }
            lines.push(number);
            table.items.push(item.to_owned());
            table.codes.extend(codes);
        }
        match table.items.is_empty() {
            true => Err(CodeTableError::Empty { path: path.display().to_string() }),
            false => Ok(table),
        }
    }

    /// The form that [`Self::read`] takes.
    pub fn to_tsv(&self) -> String {
        let mut text = String::new();
        for (number, item) in self.items.iter().enumerate() {
            text.push_str(item);
            for code in self.codes(number) {
                // Writing into a string cannot fail.
                let _ = write!(text, "\t{code}");
            }
            text.push('\n');
        }
        text
    }

    /// Items, in order; an item's number is its place.
    pub fn items(&self) -> &[String] {
        &self.items
    }

    /// Codes of an item.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Codes of a level.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Tokens: the one that begins a sequence, then those of each level.
    pub fn vocabulary(&self) -> usize {
        1 + self.levels * self.size
    }

    /// Number of an item.
    pub fn number(&self, item: &str) -> Option<usize> {
        self.numbers.get(item).copied()
    }

    /// Codes of the item of a number.
    pub fn codes(&self, number: usize) -> &[u32] {
        &self.codes[number * self.levels..(number + 1) * self.levels]
    }

    /// Its tokens, one a code.
    pub fn tokens(&self, number: usize) -> impl Iterator<Item = u32> + '_ {
        let levels = self.codes(number).iter().enumerate();
        levels.map(|(level, code)| 1 + (level * self.size) as u32 + code)
    }

    /// Tokens of items, oldest first, behind the one that begins a sequence.
    pub fn sequence(&self, numbers: &[usize]) -> Vec<u32> {
        std::iter::once(BOS).chain(numbers.iter().flat_map(|number| self.tokens(*number))).collect()
    }

    /// The items of each code sequence that exists; `popularity` (by number) decides who comes first within one.
    pub fn groups(&self, popularity: &[f64]) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
        for number in 0..self.items.len() {
            groups.entry(self.codes(number)).or_default().push(number);
        }
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        // A stable sort: of equals the first in the table.
        groups
            .iter_mut()
            .for_each(|group| group.sort_by(|left, right| popularity[*right].total_cmp(&popularity[*left])));
        groups
    }

    /// The sequences of these groups; the item at a sequence's end is the group's place.
    pub fn trie(&self, groups: &[Vec<usize>]) -> Result<Trie, CodeTableError> {
        let sequences: Vec<Vec<u32>> =
            groups.iter().map(|group| group.iter().take(1).flat_map(|first| self.tokens(*first)).collect()).collect();
        let entries = sequences.iter().enumerate().map(|(place, tokens)| (place as u32, tokens.as_slice(), true));
        Ok(Trie::build(entries)?)
    }

    /// Items that share their codes with one before them.
    pub fn collisions(&self) -> usize {
        let distinct: BTreeSet<&[u32]> = (0..self.items.len()).map(|number| self.codes(number)).collect();
        self.items.len() - distinct.len()
    }

    /// Refuses data with items that have no codes.
    pub fn check_items<'a>(&self, items: impl IntoIterator<Item = &'a str>) -> Result<(), CodeTableError> {
        let all: BTreeSet<&str> = items.into_iter().collect();
        let mut missing = all.iter().filter(|item| !self.numbers.contains_key(**item));
        match missing.next() {
            None => Ok(()),
            Some(first) => Err(CodeTableError::Missing {
                first: (*first).to_owned(),
                missing: missing.count() + 1,
                items: all.len(),
            }),
        }
    }
}

/// One line: item and codes, or what is wrong with it.
fn row(text: &str, size: usize) -> Result<(&str, Vec<u32>), String> {
    let mut cells = text.trim_end_matches('\r').split('\t');
    let item = cells.next().unwrap_or_default();
    if item.is_empty() {
        return Err("column 1: the item is missing".to_owned());
    }
    let code = |(place, cell): (usize, &str)| {
        let column = place + 2;
        let code: u32 = cell.parse().map_err(|_| format!("column {column}: code '{cell}' is not a number from 0"))?;
        match (code as usize) < size {
            true => Ok(code),
            false => Err(format!("column {column}: code {code} is not below codebook_size {size}")),
        }
    };
    let codes = cells.enumerate().map(code).collect::<Result<Vec<u32>, String>>()?;
    match codes.is_empty() {
        true => Err(format!("item {item} has no codes: separate them by tabs")),
        false => Ok((item, codes)),
    }
}
