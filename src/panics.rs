//! What a thread or task said when it panicked.
//!
//! Rust's own hook has written it with its place to standard error by then; here it becomes part of an error.

use std::any::Any;

/// The words of a panic, from what `join` and `catch_unwind` give of it.
pub fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is no text").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_text_are_heard() {
        let heard = |payload: Box<dyn Any + Send>| said(&*payload);
        assert_eq!(heard(Box::new("as it is")), "as it is");
        assert_eq!(heard(Box::new(format!("{} and {}", 1, 2))), "1 and 2");
        assert_eq!(heard(Box::new(3)), "a value that is no text");
    }
}
