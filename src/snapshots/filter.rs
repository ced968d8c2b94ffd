//! The filters of List, in containerd's grammar:
//!
//! ```text
//! filter    := selector ("," selector)*          all of them have to hold
//! selector  := fieldpath [ operator value ]      without an operator: the field is present
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="                equal, different, matches a regular expression
//! value     := quoted | any characters but "," and white space
//! quoted    := "…" with Go's escapes; after ~= also /…/ and |…|
//! ```
//!
//! The fields are `name`, `parent`, `kind` and `labels.KEY`; of several filters one has to hold. A
//! bare value may contain colons and dots: containerd sends `sha256:…` without quotes.

use std::iter::Peekable;
use std::str::Chars;

use regex_lite::Regex;

use super::error::Error;
use super::records::Info;

/// Filters that were read: an entry passes if one of them passes it.
#[derive(Debug)]
pub(super) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Different(String),
    Matches(Regex),
}

impl Filters {
    /// Reads filters; none at all, or an empty one, let everything pass.
    pub(super) fn parse(filters: &[String]) -> Result<Self, Error> {
        let parsed = filters.iter().map(|text| {
            let mut reader = Reader { rest: text.chars().peekable() };
            reader.filter().map_err(|reason| Error::Filter { filter: text.clone(), reason })
        });
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    pub(super) fn pass(&self, info: &Info) -> bool {
        let holds = |filter: &Vec<Selector>| filter.iter().all(|selector| selector.holds(info));
        self.0.is_empty() || self.0.iter().any(holds)
    }
}

impl Selector {
    fn holds(&self, info: &Info) -> bool {
        let value = field(info, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted),
            Test::Different(wanted) => value.is_none_or(|value| value != wanted),
            Test::Matches(pattern) => value.is_some_and(|value| pattern.is_match(value)),
        }
    }
}

/// The value of a field; a name or parent is present even where it is empty.
fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    match path.first()?.as_str() {
        "name" => Some(&info.name),
        "parent" => Some(&info.parent),
        "kind" => Some(info.kind.as_str()),
        // A key that was not quoted came apart at its dots.
        "labels" => info.labels.get(&path[1..].join(".")).map(String::as_str),
        _ => None,
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    fn filter(&mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        if self.rest.peek().is_none() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            self.skip_space();
            match self.rest.next() {
                None => return Ok(selectors),
                Some(',') => {}
                Some(other) => return Err(format!("unexpected {other:?}")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.field()?];
        while self.rest.next_if_eq(&'.').is_some() {
            path.push(self.field()?);
        }
        self.skip_space();
        let mut operator = String::new();
        while let Some(sign) = self.rest.next_if(|&c| is_sign(c)) {
            operator.push(sign);
        }
        let test = match operator.as_str() {
            "" => Test::Present,
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::Different(self.value(false)?),
            "~=" => Test::Matches(
                Regex::new(&self.value(true)?).map_err(|error| format!("pattern: {error}"))?,
            ),
            other => return Err(format!("unknown operator {other:?}; there are ==, != and ~=")),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, String> {
        self.skip_space();
        if self.rest.peek() == Some(&'"') {
            return self.quoted('"');
        }
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|&c| c == '_' || c.is_ascii_alphanumeric()) {
            name.push(c);
        }
        if name.is_empty() { Err("a field's name is missing".to_owned()) } else { Ok(name) }
    }

    fn value(&mut self, is_pattern: bool) -> Result<String, String> {
        self.skip_space();
        match self.rest.peek() {
            Some('"') => return self.quoted('"'),
            Some(&quote @ ('/' | '|')) if is_pattern => return self.quoted(quote),
            Some('/' | '|') => return Err("only patterns stand between / or |".to_owned()),
            Some(&c) if is_sign(c) || c == '.' => return Err(format!("unexpected {c:?}")),
            _ => {}
        }
        let mut value = String::new();
        while let Some(c) =
            self.rest.next_if(|&c| c != ',' && !c.is_whitespace() && !c.is_control())
        {
            value.push(c);
        }
        if value.is_empty() { Err("a value is missing".to_owned()) } else { Ok(value) }
    }

    /// A literal between two `quote`s. In a pattern between slashes or bars a backslash belongs to
    /// the pattern unless it escapes the quote.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let open = || "a quoted text does not end".to_owned();
        self.rest.next();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4];
        loop {
            match self.rest.next().ok_or_else(open)? {
                c if c == quote => break,
                '\n' => return Err(open()),
                '\\' => self.escape(quote, &mut bytes)?,
                c => bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| "a quoted text is not UTF-8".to_owned())
    }

    fn escape(&mut self, quote: char, into: &mut Vec<u8>) -> Result<(), String> {
        let illegal = |c: char| format!("unknown escape \\{c}");
        let c = self.rest.next().ok_or("a quoted text does not end")?;
        let simple = match c {
            'a' => 7,
            'b' => 8,
            't' => 9,
            'n' => 10,
            'v' => 11,
            'f' => 12,
            'r' => 13,
            '\\' => b'\\',
            c if c == quote => c as u8,
            '0'..='7' => {
                let value = self.digits(c.to_digit(8), 8, 2)?;
                u8::try_from(value).map_err(|_| illegal(c))?
            }
            // A byte, which may be a part of a longer character.
            'x' => u8::try_from(self.digits(None, 16, 2)?).map_err(|_| illegal(c))?,
            'u' | 'U' => {
                let value = self.digits(None, 16, if c == 'u' { 4 } else { 8 })?;
                let value = char::from_u32(value).ok_or_else(|| illegal(c))?;
                into.extend_from_slice(value.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            c => return Err(illegal(c)),
        };
        into.push(simple);
        Ok(())
    }

    /// `count` more digits after `first`.
    fn digits(&mut self, first: Option<u32>, radix: u32, count: usize) -> Result<u32, String> {
        let mut value = first.unwrap_or(0);
        for _ in 0..count {
            let digit = self.rest.next().and_then(|c| c.to_digit(radix));
            let digit = digit.ok_or("a numeric escape is too short")?;
            // Eight hexadecimal digits are the longest, so this never overflows.
            value = value * radix + digit;
        }
        Ok(value)
    }

    fn skip_space(&mut self) {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
    }
}

fn is_sign(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::records::{Kind, Labels};
    use super::*;

    fn info() -> Info {
        let labels = [
            ("containerd.io/snapshot.ref", "sha256:abc.def"),
            ("plain", "value"),
            ("dotted.key", "a,b \"c\""),
        ];
        Info {
            name: "default/2/sha256:abc".to_owned(),
            parent: String::new(),
            kind: Kind::Committed,
            labels: labels
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter()
                .collect::<Labels>(),
            created_at: UNIX_EPOCH,
            updated_at: UNIX_EPOCH,
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let filters = filters.iter().map(|&f| f.to_owned()).collect::<Vec<_>>();
        Filters::parse(&filters).unwrap().pass(&info())
    }

    #[test]
    fn what_passes() {
        for filters in [
            &[][..],
            &[""],
            &["name"],
            &["parent"],
            &["parent==\"\""],
            &["kind==committed"],
            &[r#"labels."containerd.io/snapshot.ref"==sha256:abc.def,parent=="""#],
            &["name==default/2/sha256:abc"],
            &[r#"name=="default\x2f2/sha256:\u0061bc""#],
            &["labels.plain", "labels.nothing"],
            &["labels.dotted.key"],
            &[r#"labels."dotted.key"=="a,b \"c\"""#],
            &["labels.nothing!=x"],
            &["name~=/^default\\/[0-9]+/"],
            &["name~=|sha256:.*|"],
            &["name~=abc$"],
            &["kind==active", "kind==committed"],
            &[" kind == committed , labels.plain != other "],
        ] {
            assert!(passes(filters), "{filters:?}");
        }
    }

    #[test]
    fn what_does_not_pass() {
        for filters in [
            &["kind==active"][..],
            &["labels.nothing"],
            &["labels.nothing==x"],
            &["unknown"],
            &["unknown==x"],
            &["name==default"],
            &["kind==committed,parent==x"],
            &["labels.plain!=value"],
            &["name~=^2"],
            &[r#"labels."containerd.io/snapshot.ref"==sha256:abc"#],
        ] {
            assert!(!passes(filters), "{filters:?}");
        }
    }

    #[test]
    fn what_cannot_be_read() {
        for filter in [
            "==x",
            "name==",
            "name=x",
            "name===x",
            "name==a b",
            "name==\"open",
            "name==/x/",
            ",",
            "name,",
            "name..x",
            "name~=/[/",
            r#"name=="\q""#,
            r#"name=="\x4""#,
            "name==,x",
        ] {
            let error = Filters::parse(&[filter.to_owned()]).unwrap_err();
            assert!(
                matches!(&error, Error::Filter { filter: f, .. } if f == filter),
                "{filter}: {error}"
            );
        }
    }

    proptest::proptest! {
        /// Any text is a filter or an error, never a panic, and a quoted value reads back.
        #[test]
        fn any_text_is_read(text in ".*", value in "[^\\n]*") {
            let _ = Filters::parse(&[text]);
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let mut entry = info();
            entry.name = value;
            let filters = Filters::parse(&[format!("name==\"{quoted}\"")]).unwrap();
            proptest::prop_assert!(filters.pass(&entry));
        }
    }
}
