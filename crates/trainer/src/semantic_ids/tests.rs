//! Tables of codes: what is read, what is refused, tokens, collisions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::sft::TextTokenizer;
use proptest::prelude::*;
use std::io::Write;
use std::path::PathBuf;
use taiji::llm::trie::Trie;

fn written(folder: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("codes.tsv");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_table_is_read_as_it_is_written_zipped_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let text = "a\t0\t7\nb\t1\t0\n\nc\t0\t7\r\nd\t3\t3\n";
    let table = CodeTable::read(&written(&folder, text), 8).unwrap();
    assert_eq!((table.levels(), table.size(), table.vocabulary(), table.collisions()), (2, 8, 17, 1));
    assert_eq!(table.items(), ["a", "b", "c", "d"]);
    assert_eq!((table.codes(1), table.number("d"), table.number("e")), (&[1, 0][..], Some(3), None));
    assert_eq!(table.sequence(&[0, 1]), [BOS, 1, 16, 2, 9]);
    assert_eq!(CodeTable::read(&written(&folder, &table.to_tsv()), 8).unwrap(), table);

    let zipped = folder.path().join("codes.tsv.gz");
    let file = std::fs::File::create(&zipped).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
    assert_eq!(CodeTable::read(&zipped, 8).unwrap(), table);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    for (text, part) in [
        ("", "holds no item"),
        ("\n\n", "holds no item"),
        ("a\t1\t2\nb\t1\n", "line 2: has 1 codes, the lines before have 2"),
        ("a\t1\t2\n\na\t1\t3\n", "line 3: item a is already on line 1"),
        ("a\t1\t8\n", "line 1: column 3: code 8 is not below codebook_size 8"),
        ("a\t1\t-1\n", "line 1: column 3: code '-1' is not a number"),
        ("a\t1\tx\n", "code 'x'"),
        ("a 1 2\n", "item a 1 2 has no codes"),
        ("\t1\t2\n", "line 1: column 1: the item is missing"),
    ] {
        let told = CodeTable::read(&written(&folder, text), 8).unwrap_err().to_string();
        assert!(told.contains(part) && told.contains("codes.tsv"), "{text:?}: {told}");
    }
    assert!(CodeTable::read(&written(&folder, "a\t0\n"), 0).unwrap_err().to_string().contains("codebook_size"));
    let absent = CodeTable::read(&folder.path().join("none.tsv"), 8).unwrap_err().to_string();
    assert!(absent.contains("none.tsv"), "{absent}");

    let zipped = folder.path().join("cut.gz");
    std::fs::write(&zipped, [0x1f, 0x8b, 8, 0, 0]).unwrap();
    assert!(CodeTable::read(&zipped, 8).unwrap_err().to_string().contains("cannot be read"));

    let table = CodeTable::read(&written(&folder, "a\t0\nb\t1\n"), 8).unwrap();
    assert!(table.check_items(["b", "a"]).is_ok());
    let missing = table.check_items(["y", "a", "x", "y"]).unwrap_err().to_string();
    assert!(missing.contains("2 of 3 items of the data have no codes, x is one"), "{missing}");
}

#[test]
fn items_of_the_same_codes_follow_each_other_the_one_met_more_often_first() {
    let folder = tempfile::tempdir().unwrap();
    let table = CodeTable::read(&written(&folder, "a\t1\t1\nb\t0\t0\nc\t1\t1\nd\t1\t1\n"), 2).unwrap();
    let groups = table.groups(&[2.0, 0.0, 5.0, 2.0]);
    assert_eq!(groups, [vec![1], vec![2, 0, 3]]);
    let trie = table.trie(&groups).unwrap();
    let tokens: Vec<u32> = table.tokens(0).collect();
    assert_eq!((trie.len(), trie.get(&tokens)), (2, Some(1)));
}

#[test]
fn the_tokenizer_knows_the_codes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let table = CodeTable::read(&written(&folder, "a\t0\t7\nb\t1\t0\n"), 8).unwrap();
    let json = tokenizer_json(&table).unwrap();
    assert_eq!(json, tokenizer_json(&table).unwrap());
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json).unwrap();
    let tokenizer = TextTokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.vocab_size(), table.vocabulary());
    let text = "<bos> <0_0> <1_7> <0_1> <1_0>";
    assert_eq!(tokenizer.encode(text).unwrap(), table.sequence(&[0, 1]));
    assert_eq!(tokenizer.decode(&table.sequence(&[0, 1])).unwrap(), text);
    assert!(tokenizer.encode("<bos> hello").is_err());
}

proptest! {
    /// Tokens tell codes apart, and the trie leads to every item by its group.
    #[test]
    fn every_item_is_found_by_its_tokens(codes in prop::collection::vec((0u32..4, 0u32..4, 0u32..4), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let line = |(item, (a, b, c)): (usize, &(u32, u32, u32))| format!("{item}\t{a}\t{b}\t{c}\n");
        let text: String = codes.iter().enumerate().map(line).collect();
        let table = CodeTable::read(&written(&folder, &text), 4).unwrap();
        let groups = table.groups(&vec![0.0; codes.len()]);
        prop_assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), codes.len());
        prop_assert_eq!(codes.len() - groups.len(), table.collisions());
        let trie: Trie = table.trie(&groups).unwrap();
        for item in 0..codes.len() {
            let tokens: Vec<u32> = table.tokens(item).collect();
            prop_assert!(tokens.iter().all(|token| *token != BOS && (*token as usize) < table.vocabulary()));
            let group = trie.get(&tokens).unwrap() as usize;
            prop_assert!(groups[group].contains(&item));
        }
    }
}
