//! Who may call: one containerd.
//!
//! A containerd removes, at each of its garbage collections, all snapshots that its own database does not know. Two of them on
//! one hoistd would take each other's layers away, those of running containers too. So the process that calls first holds
//! hoistd for as long as it lives, and calls of any other are refused, before anything is looked at. When it has
//! ended, whoever calls next holds it: containerd after a restart or an upgrade. (BuildKit's daemon with a proxy snapshotter is
//! such an owner too.)
//!
//! The kernel says who is at the other end of the socket (`SO_PEERCRED`), and `/proc` whether that process is still the same.
//! Where it cannot say, since hoistd is in a PID namespace of its own, nobody is refused.

use std::sync::{Mutex, PoisonError};

use super::error::Error;
use crate::sys::process::Process;

/// The one caller.
#[derive(Debug, Default)]
pub(super) struct Caller(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    holder: Option<Process>,
    /// The process that was refused last, so that it is logged once.
    refused: Option<u32>,
}

impl Caller {
    /// Lets a call of the process `id` through, if nobody else holds hoistd.
    ///
    /// # Errors
    /// Somebody does.
    pub(super) fn admit(&self, id: Option<u32>) -> Result<(), Error> {
        let Some(id) = id.filter(|&id| id != 0) else { return Ok(()) };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.holder {
            Some(holder) if holder.id() == id => return Ok(()),
            Some(holder) if holder.is_alive() => {
                let error = refusal(holder, id);
                if state.refused.replace(id) != Some(id) {
                    tracing::error!(%error, "a second containerd is refused");
                }
                return Err(error);
            }
            _ => state.holder = Process::of(id),
        }
        Ok(())
    }
}

fn refusal(holder: &Process, id: u32) -> Error {
    let program = |process: &Process| {
        let path = process.program();
        path.map_or_else(String::new, |path| format!(" ({})", path.display()))
    };
    Error::OtherCaller {
        holder: format!("{}{}", holder.id(), program(holder)),
        caller: format!("{id}{}", Process::of(id).as_ref().map(program).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_holds_it_until_it_has_ended() {
        let caller = Caller::default();
        let own = std::process::id();
        let mut first = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        caller.admit(Some(first.id())).unwrap();
        caller.admit(Some(first.id())).unwrap();
        let error = caller.admit(Some(own)).unwrap_err().to_string();
        for word in [&*first.id().to_string(), &own.to_string(), "sleep", "coexistence.md"] {
            assert!(error.contains(word), "{word} is not in {error}");
        }
        // Who is not known cannot be told from the first.
        caller.admit(None).unwrap();
        caller.admit(Some(0)).unwrap();
        first.kill().unwrap();
        first.wait().unwrap();
        caller.admit(Some(own)).unwrap();
        caller.admit(Some(own)).unwrap();
        // Somebody who is gone when the call is looked at holds nothing.
        let caller = Caller::default();
        caller.admit(Some(first.id())).unwrap();
        caller.admit(Some(own)).unwrap();
    }
}
