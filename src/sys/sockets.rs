//! What the kernel takes from a socket's writer before it is sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Has a TCP socket take no more than so many bytes beyond those that are on their way
/// (`TCP_NOTSENT_LOWAT`, tcp(7)): whoever writes to it then sees how fast the peer takes bytes, not how
/// large the kernel's buffer is.
///
/// # Errors
/// What the operating system says; the socket is as it was.
#[expect(unsafe_code, reason = "nix does not know this option")]
pub fn limit_unsent(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<u32>()).expect("four is small");
    // SAFETY: the descriptor is open for as long as it is borrowed, and the value is four bytes that
    // outlive the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_writer_waits_for_a_reader_that_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut taken = [0, 0];
        for (limited, taken) in [false, true].into_iter().zip(&mut taken) {
            let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_reader, _) = listener.accept().unwrap();
            if limited {
                limit_unsent(&writer, 16 << 10).unwrap();
            }
            writer.set_nonblocking(true).unwrap();
            while let Ok(count) = writer.write(&[0; 16 << 10]) {
                *taken += count;
            }
        }
        assert!(taken[1] < taken[0], "{taken:?}");
        limit_unsent(&std::fs::File::open("/dev/null").unwrap(), 1).unwrap_err();
    }
}
