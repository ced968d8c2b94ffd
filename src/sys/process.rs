//! Processes, each told from a later one that has its number.

use std::path::PathBuf;

/// A process of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    id: u32,
    /// When it was started, in clock ticks since the boot.
    started: u64,
}

impl Process {
    /// The one that has this number now; `None` where there is none, or `/proc` does not tell.
    pub fn of(id: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        Some(Self { id, started: started(&text)? })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.id).is_some_and(|now| now == *self)
    }

    /// The program that it runs, where that can be read.
    pub fn program(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/exe", self.id)).ok()
    }
}

/// The time of the start in a line of `/proc/PID/stat` (proc(5), field 22); `None` for one that has ended and whose parent has
/// not heard of it yet. The second field, the program's name, stands in brackets and may hold anything.
fn started(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_behind_whatever_the_name_is() {
        let line = |state: &str| {
            let rest = (5..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
            format!("7 (a) Z 9 (b) {state} 4 {rest}")
        };
        assert_eq!(started(&line("S")), Some(22));
        assert_eq!(started(&line("Z")), None);
        assert_eq!(started(""), None);
    }

    #[test]
    fn a_process_lives_until_it_has_ended() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.is_alive() && own.program().is_some());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        // A zombie first, then nobody.
        while process.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(!Process { started: 0, ..own }.is_alive(), "another one has its number");
    }
}
