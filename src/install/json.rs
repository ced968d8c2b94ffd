//! Edits in the text of a JSON object: what is not edited keeps its layout and its order.
//!
//! The text has been parsed by `serde_json` before, so the scanner here meets nothing but JSON.

use std::ops::Range;

use serde_json::Value;

/// A member of an object, by where it stands in the text.
struct Member {
    key: String,
    start: usize,
    value: Range<usize>,
}

struct Object {
    members: Vec<Member>,
    /// Where its brace opens and closes.
    open: usize,
    close: usize,
}

/// Reads `text`; an empty one is an empty object, as Docker has it.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value) if value.is_object() => Ok(value),
        Ok(_) => Err("it is JSON, but no object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Sets the member at `path` (one key, or a key of an object in it) to `value`, in JSON.
pub(super) fn set(text: &str, path: &[&str], value: &str) -> String {
    if text.trim().is_empty() {
        return set("{\n}\n", path, value);
    }
    let open = text.find('{').expect("it was parsed as an object");
    set_in(text, open, path, value)
}

fn set_in(text: &str, open: usize, path: &[&str], value: &str) -> String {
    let object = scan(text, open);
    let (key, rest) = (path[0], &path[1..]);
    let found = object.members.iter().rev().find(|member| member.key == key);
    match (found, rest) {
        (Some(member), []) => replaced(text, member.value.clone(), value),
        (Some(member), rest) if text[member.value.clone()].starts_with('{') => {
            set_in(text, member.value.start, rest, value)
        }
        (Some(member), rest) => replaced(text, member.value.clone(), &nested(rest, value)),
        (None, rest) => insert(text, &object, key, &nested(rest, value)),
    }
}

fn nested(path: &[&str], value: &str) -> String {
    path.iter().rev().fold(value.to_owned(), |inner, key| format!("{{ {}: {inner} }}", quoted(key)))
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn replaced(text: &str, range: Range<usize>, with: &str) -> String {
    format!("{}{with}{}", &text[..range.start], &text[range.end..])
}

/// After the last member, laid out as that one is.
fn insert(text: &str, object: &Object, key: &str, value: &str) -> String {
    let key = quoted(key);
    let Some(last) = object.members.last() else {
        // The indentation of the brace's own line, for the brace that closes.
        let line = text[..object.open].rfind('\n').map_or(0, |at| at + 1);
        let outer: String = text[line..].chars().take_while(|c| *c == ' ' || *c == '\t').collect();
        let inside = format!("{{\n{outer}    {key}: {value}\n{outer}}}");
        return replaced(text, object.open..object.close + 1, &inside);
    };
    let before = &text[object.open + 1..last.start];
    let gap = &before[before.trim_end().len()..];
    let gap = if gap.contains('\n') { &gap[gap.rfind('\n').unwrap_or(0)..] } else { " " };
    let end = last.value.end;
    replaced(text, end..end, &format!(",{gap}{key}: {value}"))
}

/// Takes the member at `path` out, if it is there.
pub(super) fn remove(text: &str, path: &[&str]) -> String {
    let Some(mut open) = text.find('{') else { return text.to_owned() };
    for (depth, key) in path.iter().enumerate() {
        let object = scan(text, open);
        let Some(at) = object.members.iter().rposition(|member| member.key == **key) else {
            return text.to_owned();
        };
        if depth + 1 == path.len() {
            return cut(text, &object, at);
        }
        open = object.members[at].value.start;
        if !text[open..].starts_with('{') {
            return text.to_owned();
        }
    }
    text.to_owned()
}

fn cut(text: &str, object: &Object, at: usize) -> String {
    let members = &object.members;
    let range = if members.len() == 1 {
        object.open + 1..object.close
    } else if at + 1 == members.len() {
        members[at - 1].value.end..members[at].value.end
    } else {
        members[at].start..members[at + 1].start
    };
    replaced(text, range, "")
}

/// The members of the object whose brace is at `open`.
fn scan(text: &str, open: usize) -> Object {
    let bytes = text.as_bytes();
    let blank = |mut at: usize| {
        while bytes[at].is_ascii_whitespace() || bytes[at] == b',' || bytes[at] == b':' {
            at += 1;
        }
        at
    };
    let mut members = Vec::new();
    let mut at = blank(open + 1);
    while bytes[at] != b'}' {
        let start = at;
        let end = string_end(bytes, at);
        let key = serde_json::from_str(&text[start..end]).expect("it was parsed");
        let value = blank(end);
        at = value_end(bytes, value);
        members.push(Member { key, start, value: value..at });
        at = blank(at);
    }
    Object { members, open, close: at }
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    loop {
        match bytes[at] {
            b'"' => {
                at = string_end(bytes, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return if depth == 1 { at + 1 } else { at },
            b'}' | b']' => depth -= 1,
            c if depth == 0 && (c == b',' || c.is_ascii_whitespace()) => return at,
            _ => {}
        }
        at += 1;
    }
}
