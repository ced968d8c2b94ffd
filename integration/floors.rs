//! Reads the imports of `src/` and fails on one that points up or sideways.
//!
//! The floors stand in the table of `src/lib.rs`; a room imports only from floors below its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Room and floor, read from the table that people read.
fn floors() -> BTreeMap<String, u32> {
    let lib = fs::read_to_string(source().join("lib.rs")).unwrap();
    let mut floors = BTreeMap::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split('|').map(str::trim);
        let (Some(floor), Some(rooms)) = (cells.next(), cells.next()) else { continue };
        let Ok(floor) = floor.parse::<u32>() else { continue };
        for room in rooms.split(',') {
            let room = room.trim().trim_matches(|c| "[]`".contains(c));
            floors.insert(room.to_owned(), floor);
        }
    }
    floors
}

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The rooms that a text names as `crate::room`, also within `use crate::{a, b::c}`.
fn imports(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word = |s: &str| {
            s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        };
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut start) = (0, true);
            for (i, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && c.is_alphabetic() => {
                        rooms.insert(word(&list[i..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            rooms.insert(word(rest));
        }
    }
    rooms
}

fn violations(floors: &BTreeMap<String, u32>, room: &str, text: &str) -> Vec<String> {
    let own = floors[room];
    imports(text)
        .into_iter()
        .filter(|other| other != room)
        .filter(|other| floors.get(other).is_none_or(|&floor| floor >= own))
        .collect()
}

#[test]
fn every_room_has_a_floor_and_imports_only_from_below() {
    let floors = floors();
    let mut all = Vec::new();
    files(&source(), &mut all);
    let mut found = Vec::new();
    let mut rooms = BTreeSet::new();
    for file in all {
        let inside = file.strip_prefix(source()).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if room == "lib" || room == "bin" {
            continue;
        }
        assert!(floors.contains_key(room), "room {room} stands in no floor of src/lib.rs");
        rooms.insert(room.to_owned());
        for other in violations(&floors, room, &fs::read_to_string(&file).unwrap()) {
            found.push(format!("{}: crate::{other}", inside.display()));
        }
    }
    assert!(found.is_empty(), "imports that point up or sideways:\n{}", found.join("\n"));
    assert_eq!(rooms.len(), floors.len(), "the table names rooms that are not there: {floors:?}");
}

#[test]
fn an_import_that_points_up_or_sideways_is_seen() {
    let floors = floors();
    let seen = |room: &str, text: &str| violations(&floors, room, text);
    assert_eq!(seen("image", "use crate::pull::Puller;"), ["pull"]);
    assert_eq!(seen("fetch", "use crate::{budget::Budget, unpack::{self, Summary}};"), ["unpack"]);
    assert_eq!(seen("archive", "fn f() { crate::compression::decoder() }"), ["compression"]);
    assert!(seen("pull", "use crate::{fetch, image::DiffId};\n// crate::daemon").is_empty());
}

/// Rules of the house that imports do not show: who may do what.
#[test]
fn only_the_rooms_that_may_do_it_do_it() {
    let rules: [(&str, &[&str]); 4] = [
        ("unsafe {", &["sys"]),
        ("reqwest::", &["registry", "otlp"]),
        ("std::env::var", &["config"]),
        ("println!", &["cli"]),
    ];
    let mut all = Vec::new();
    files(&source(), &mut all);
    let mut found = Vec::new();
    for file in all {
        let inside = file.strip_prefix(source()).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        // Tests come last in a file and may do what they need.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (what, rooms) in rules {
            if !inside.ends_with("tests.rs")
                && !inside.components().any(|part| part.as_os_str() == "tests")
                && !rooms.contains(&first.trim_end_matches(".rs"))
                && code
                    .lines()
                    .any(|line| !line.trim_start().starts_with("//") && line.contains(what))
            {
                found.push(format!("{}: {what}", inside.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
