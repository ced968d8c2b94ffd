//! Figures for people: bytes, rates, seconds, digests. The same words in the terminal, on the page
//! and in the judgement's sentences.

/// Bytes, in decimal units: 1.4 GB.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or("B");
    while value >= 1000.0 {
        let Some(next) = units.next() else { break };
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A rate: 120.0 MB/s; nothing where no time has passed.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "three digits are shown"
)]
pub fn rate(amount: u64, seconds: f64) -> String {
    if seconds > 0.0 && amount > 0 {
        bytes((amount as f64 / seconds) as u64) + "/s"
    } else {
        "-".to_owned()
    }
}

/// Seconds: 0.012 s, 1.2 s, 74 s.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{s:.3} s"),
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// A share, 0 to 1: 96 %.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// So many of them: 1 layer, 2 layers.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// 1 entry, 85,000 entries without the comma.
pub fn entries(count: u64) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

/// The first twelve digits of a digest, as docker shows them.
pub fn short(digest: &impl std::fmt::Display) -> String {
    let text = digest.to_string();
    text.strip_prefix("sha256:").unwrap_or(&text).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_880_000_000), "1.9 GB");
        assert_eq!(rate(150_000_000, 1.5), "100.0 MB/s");
        assert_eq!(rate(1, 0.0), "-");
        assert_eq!([seconds(0.0123), seconds(12.34), seconds(74.4)], ["0.012 s", "12.3 s", "74 s"]);
        assert_eq!(percent(0.957), "96 %");
    }
}
