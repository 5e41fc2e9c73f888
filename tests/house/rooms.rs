//! Rooms and arrows: `docs/ARCHITECTURE.md` says which room may use which, and the sources keep to it.

use crate::source::{Source, sources};
use std::collections::{BTreeMap, BTreeSet};
use testkit::in_repository;

/// Before the table.
const MARK: &str = "<!-- arrows -->";

/// Room → the rooms it may use, in the order of the table.
fn table() -> Vec<(String, BTreeSet<String>)> {
    let page = std::fs::read_to_string(in_repository("docs/ARCHITECTURE.md")).expect("page");
    let (_, rest) = page.split_once(MARK).expect("the table of arrows");
    let rows = rest.trim_start().lines().take_while(|line| line.starts_with('|')).skip(2);
    let names = |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_string).collect() };
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let room = names(cells[0]).into_iter().next().unwrap_or_else(|| panic!("no room in {line:?}"));
        (room, names(cells[1]))
    };
    rows.map(row).collect()
}

/// The room a file of `src/` belongs to; `lib.rs` and `main.rs` belong to none.
fn room_of(source: &Source) -> Option<String> {
    let first = source.path.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    let room = first.strip_suffix(".rs").unwrap_or(&first).to_string();
    (room != "lib" && room != "main").then_some(room)
}

/// Rooms that the code names after `crate::`, also inside braces, each with its line.
fn rooms_named(source: &Source) -> Vec<(usize, String)> {
    let text = source.lines.join("\n");
    let line_of = |at: usize| text[..at].matches('\n').count() + 1;
    let mut found = Vec::new();
    for (at, mark) in text.match_indices("crate::") {
        // `taiji_crate::`, or a path that only ends so.
        if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':') {
            continue;
        }
        let rest = &text[at + mark.len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => first_names(list),
            None => vec![leading_name(rest)],
        };
        found.extend(names.into_iter().map(|name| (line_of(at), name)));
    }
    found
}

fn leading_name(text: &str) -> String {
    text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The first names of a list's entries, up to its closing brace.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(leading_name(&list[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(leading_name(&list[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// A chain of `super::` that leaves the room would be an arrow that nobody sees.
fn leaves_its_room(source: &Source) -> Option<usize> {
    let parts = source.path.components().count();
    let is_root = source.path.file_name().is_some_and(|name| name == "mod.rs");
    // `room/mod.rs` and `room.rs` lie one below the crate.
    let depth = if is_root { parts - 1 } else { parts };
    let too_long = "super::".repeat(depth);
    source.lines.iter().position(|line| line.contains(&too_long)).map(|place| place + 1)
}

#[test]
fn audit_13_a_room_uses_only_rooms_that_the_table_allows_and_there_is_no_circle() {
    let table = table();
    let allowed: BTreeMap<&str, &BTreeSet<String>> = table.iter().map(|(room, may)| (room.as_str(), may)).collect();
    let mut wrong = Vec::new();
    // Each row names only rows above it: so there is no circle.
    for (place, (room, may)) in table.iter().enumerate() {
        let above: BTreeSet<&String> = table[..place].iter().map(|(name, _)| name).collect();
        wrong.extend(
            may.iter()
                .filter(|name| !above.contains(name))
                .map(|name| format!("docs/ARCHITECTURE.md: {room} may use {name}, which is not a row above it")),
        );
    }
    let (mut arrows, mut rooms) = (BTreeSet::new(), BTreeSet::new());
    for source in sources(&in_repository("src")) {
        let Some(room) = room_of(&source) else { continue };
        let shown = format!("src/{}", source.path.display());
        let Some(may) = allowed.get(room.as_str()) else {
            wrong.push(format!("{shown}: the room {room} has no row in docs/ARCHITECTURE.md"));
            continue;
        };
        rooms.insert(room.clone());
        for (line, name) in rooms_named(&source) {
            if name == room {
                continue;
            }
            if !may.contains(&name) {
                wrong.push(format!("{shown}:{line}: {room} may not use {name}"));
            }
            arrows.insert((room.clone(), name));
        }
        wrong.extend(
            leaves_its_room(&source).map(|line| format!("{shown}:{line}: super:: leaves the room, write crate::")),
        );
    }
    wrong.extend(
        table
            .iter()
            .map(|(room, _)| room)
            .filter(|room| !rooms.contains(*room))
            .map(|room| format!("docs/ARCHITECTURE.md: there is no room {room}")),
    );
    println!("audit 13: {} rooms, {} arrows between them, 0 circles", rooms.len(), arrows.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rooms.len() > 20 && arrows.len() > 50, "the sources were not read");
}

#[test]
fn paths_in_lists_and_alone_are_found() {
    let text =
        "use crate::{store::{self, Group}, event::Item};\nfn f() -> crate::http::ApiError {\nuse other_crate::llm;\n";
    let source = Source { path: "api/x.rs".into(), lines: text.lines().map(str::to_string).collect() };
    let named: Vec<(usize, String)> = rooms_named(&source);
    assert_eq!(named, [(1, "store".into()), (1, "event".into()), (2, "http".into())]);
    let climbs = |path: &str, line: &str| leaves_its_room(&Source { path: path.into(), lines: vec![line.into()] });
    assert_eq!(climbs("api/x.rs", "use super::super::store;"), Some(1));
    assert_eq!(climbs("api/x.rs", "use super::Scope;"), None);
    assert_eq!(climbs("api/mod.rs", "use super::store;"), Some(1));
    assert_eq!(climbs("clock.rs", "use super::store;"), Some(1));
}
