//! A reader of TOML that goes on after a mistake.
//!
//! [`Document`] holds the text and collects mistakes; a [`Section`] hands out the values of one
//! table, notes each key that was asked for, and at its end reports the keys that nobody asked for
//! as unknown. The list of keys thus exists once: in the code that reads them.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Mistake;

/// The text and the mistakes found in it.
pub(super) struct Document<'t> {
    text: &'t str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'t> Document<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, mistakes: RefCell::default() }
    }

    /// The root table: as much of it as can be read.
    pub(super) fn parse(&self) -> Spanned<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.mistake("toml", error.span().unwrap_or(0..0), error.message());
        }
        table
    }

    pub(super) fn mistake(&self, key: &str, span: Range<usize>, text: impl Display) {
        let before = self.text.as_bytes().iter().take(span.start);
        let line = 1 + before.filter(|&&byte| byte == b'\n').count();
        let mistake = Mistake { line, key: key.to_owned(), text: text.to_string() };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// The mistakes, in the order of their lines. What was made of a line that is no TOML is not
    /// held against it a second time.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        let broken = |mistake: &&Mistake| mistake.key == "toml";
        let lines: Vec<usize> = mistakes.iter().filter(broken).map(|m| m.line).collect();
        mistakes.retain(|mistake| mistake.key == "toml" || !lines.contains(&mistake.line));
        mistakes.sort_by_key(|mistake| mistake.line);
        mistakes
    }
}

/// One table while it is being read.
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    name: String,
    table: Option<&'d DeTable<'t>>,
    asked: Vec<&'static str>,
}

/// A key's value, for messages about it.
pub(super) struct Value<'d, 't> {
    document: &'d Document<'t>,
    key: String,
    value: &'d Spanned<DeValue<'t>>,
}

impl<'d, 't> Section<'d, 't> {
    pub(super) fn root(document: &'d Document<'t>, table: &'d DeTable<'t>) -> Self {
        Self { document, name: String::new(), table: Some(table), asked: Vec::new() }
    }

    /// The table `name` inside this one; an empty one if it is not there.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'d, 't> {
        let value = self.value(name);
        let table = value.and_then(|value| match value.value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => {
                value.mistake(format_args!("is {}, has to be a section: [{name}]", words(other)));
                None
            }
        });
        Section { document: self.document, name: self.path(name), table, asked: Vec::new() }
    }

    /// The tables inside this one, with the names that whoever wrote them gave them; anything else
    /// in it is a mistake.
    pub(super) fn tables(self) -> Vec<(Value<'d, 't>, String, Section<'d, 't>)> {
        let entries = self.table.into_iter().flat_map(DeTable::iter);
        let tables = entries.filter_map(|(key, value)| {
            let name: &str = key.get_ref();
            let path = format!("{}.{name:?}", self.name);
            let of = Value { document: self.document, key: path.clone(), value };
            let DeValue::Table(table) = value.get_ref() else {
                of.mistake(format_args!(
                    "is {}, has to be a section: [{path}]",
                    words(value.get_ref())
                ));
                return None;
            };
            let asked = Vec::new();
            let section =
                Section { document: self.document, name: path, table: Some(table), asked };
            Some((of, name.to_owned(), section))
        });
        tables.collect()
    }

    /// The value of `key`, if it is there.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Value<'d, 't>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let value = self.table?.get(key)?;
        Some(Value { document: self.document, key: self.path(key), value })
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let text = match nearest(name, &self.asked) {
                Some(meant) => format!("is not a key; did you mean {meant:?}?"),
                None => format!("is not a key; known here: {}", self.asked.join(", ")),
            };
            self.document.mistake(&self.path(name), key.span(), text);
        }
    }
}

impl<'d, 't> Value<'d, 't> {
    pub(super) fn mistake(&self, text: impl Display) {
        self.document.mistake(&self.key, self.value.span(), text);
    }

    pub(super) fn string(&self) -> Option<&'d str> {
        let DeValue::String(text) = self.value.get_ref() else {
            self.mistake(format_args!(
                "is {}, has to be a string in quotes",
                words(self.value.get_ref())
            ));
            return None;
        };
        Some(text)
    }

    pub(super) fn integer(&self) -> Option<i128> {
        let DeValue::Integer(integer) = self.value.get_ref() else {
            self.mistake(format_args!(
                "is {}, has to be a whole number",
                words(self.value.get_ref())
            ));
            return None;
        };
        let parsed = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        if parsed.is_none() {
            self.mistake("is too large a number");
        }
        parsed
    }

    /// Whether the value is the word `word`.
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.value.get_ref(), DeValue::String(text) if text == word)
    }

    /// The elements of a list of strings, each on its own, so that a mistake has its own line.
    pub(super) fn strings(&self) -> Option<Vec<&'d str>> {
        let DeValue::Array(array) = self.value.get_ref() else {
            self.mistake(format_args!(
                "is {}, has to be a list of strings",
                words(self.value.get_ref())
            ));
            return None;
        };
        let elements = array.iter().enumerate().map(|(i, value)| {
            let key = format!("{}[{i}]", self.key);
            Value { document: self.document, key, value }.string()
        });
        // Every element is looked at before the list is given up.
        elements.collect::<Vec<_>>().into_iter().collect()
    }
}

fn words(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// The known key that `name` most likely stands for: the closest one, if a third of its letters
/// or fewer differ.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distances = known.iter().map(|&key| (strsim::damerau_levenshtein(name, key), key));
    let (distance, key) = distances.min()?;
    (distance * 3 <= key.len().max(name.len())).then_some(key)
}
