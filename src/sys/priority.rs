//! What a thread yields to: other threads at the processor (`nice`), other requests at the disk
//! (`ioprio_set(2)`). Threads that it starts inherit both.

use std::io;

/// Of one thread; the default is what every thread has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Priority {
    /// 0, as usual, to 19: only what others leave. Less would need `CAP_SYS_NICE`.
    pub nice: u8,
    /// At the disk; `None`: as the kernel makes it from `nice`.
    pub io: Option<IoClass>,
}

/// How requests are served by a scheduler that knows classes (BFQ; mq-deadline in part; with none
/// they are all the same).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoClass {
    /// In their share, from 0, which is the largest, to 7.
    BestEffort(u8),
    /// When nobody else wants the disk.
    Idle,
}

/// `IOPRIO_WHO_PROCESS`: with 0, the thread that asks.
const WHO_PROCESS: i32 = 1;

/// Where the class stands in an I/O priority (`IOPRIO_CLASS_SHIFT`).
const CLASS_SHIFT: i32 = 13;

impl IoClass {
    fn value(self) -> i32 {
        match self {
            Self::BestEffort(level) => (2 << CLASS_SHIFT) | i32::from(level.min(7)),
            Self::Idle => 3 << CLASS_SHIFT,
        }
    }
}

impl Priority {
    /// Gives it to the thread that calls.
    ///
    /// # Errors
    /// The system's, where it may not; what could be set is set.
    #[allow(unsafe_code, reason = "system calls that nix does not have for threads")]
    pub fn take(self) -> io::Result<()> {
        let told = |result: i64| {
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        let nice = match self.nice {
            0 => Ok(()),
            // SAFETY: the call takes integers only; 0 is the calling thread (setpriority(2), NOTES).
            nice => told(i64::from(unsafe {
                libc::setpriority(libc::PRIO_PROCESS, 0, i32::from(nice.min(19)))
            })),
        };
        let io = self.io.map_or(Ok(()), |class| {
            // SAFETY: the call takes integers only; 0 is the calling thread (ioprio_set(2)).
            told(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class.value()) })
        });
        nice.and(io)
    }

    /// Whether it is what every thread has.
    pub fn is_usual(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(unsafe_code, reason = "system calls that nix does not have")]
    fn now() -> (i32, i64) {
        // SAFETY: both take integers only.
        unsafe {
            let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
            (nice, libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0))
        }
    }

    #[test]
    fn a_thread_and_what_it_starts_yield_and_others_do_not() {
        let before = now();
        let nice = u8::try_from(before.0.max(0)).unwrap();
        assert!(nice < 19, "this test runs at the lowest priority already");
        for class in [IoClass::Idle, IoClass::BestEffort(6)] {
            let lower = Priority { nice: nice + 1, io: Some(class) };
            let (own, inherited) = std::thread::spawn(move || {
                lower.take().unwrap();
                (now(), std::thread::spawn(now).join().unwrap())
            })
            .join()
            .unwrap();
            assert_eq!(own, (i32::from(nice) + 1, i64::from(class.value())));
            assert_eq!(inherited, own);
        }
        assert_eq!(now(), before);
        assert!(Priority::default().take().is_ok());
        assert_eq!(now(), before);
    }
}
