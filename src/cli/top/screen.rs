//! The terminal's other screen, and the way back from it: at the end, at Ctrl-C and SIGTERM (both drop what
//! runs), and at a panic (through the hook, so that the panic's words stand on the ordinary screen).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};

/// The other screen (DECSET 1049), without a cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// The terminal that has to be restored, as it was.
static BEFORE: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// The other screen; dropping it leaves it.
pub(super) struct Screen(());

impl Screen {
    /// Enters it on `tty`: keys come one by one and are not shown.
    pub(super) fn enter(tty: OwnedFd) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let told = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                told(panic);
            }));
        });
        let before = termios::tcgetattr(tty.as_fd())?;
        let mut raw = before.clone();
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        // Ctrl-C stays a signal. Ctrl-Z would leave the other screen to the shell: it is a key like any other.
        raw.control_chars[SpecialCharacterIndices::VSUSP as usize] = 0;
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(tty.as_fd(), SetArg::TCSANOW, &raw)?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some((tty, before));
        let screen = Self(());
        screen.write(ENTER)?;
        Ok(screen)
    }

    /// Writes to the terminal.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        before.as_ref().map_or(Ok(()), |(tty, _)| write_all(tty, bytes))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn write_all(tty: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(tty, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Puts the terminal back; once.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((tty, before)) = before {
        // There is nothing more to be done for a terminal that has gone.
        let _ = write_all(&tty, LEAVE);
        // What was typed meanwhile was not meant for the shell.
        let _ = termios::tcsetattr(tty.as_fd(), SetArg::TCSAFLUSH, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let flags = || termios::tcgetattr(pty.slave.as_fd()).unwrap().local_flags;
        let before = flags();
        let slave = pty.slave.try_clone().unwrap();
        let panicked = std::panic::catch_unwind(move || {
            let screen = Screen::enter(slave).unwrap();
            screen.write(b"drawn").unwrap();
            panic!("a defect, as this test wants it");
        });
        assert!(panicked.is_err());
        assert_eq!(flags(), before);
        // It may come in pieces; when the other end is closed and all is read, there is an error.
        drop(pty.slave);
        let (mut seen, mut piece) = (Vec::new(), [0; 100]);
        while let Ok(read @ 1..) = nix::unistd::read(&pty.master, &mut piece) {
            seen.extend_from_slice(&piece[..read]);
        }
        assert_eq!(seen, [ENTER, b"drawn", LEAVE].concat());
    }
}
