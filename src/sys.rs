//! System calls and processor instructions, the only `unsafe`, on top of `nix`.

pub mod clock;
pub mod heap;
pub mod images;
pub mod inflate;
pub mod priority;
pub mod process;
pub mod processors;
pub mod sha256;
pub mod sockets;
pub mod space;
pub mod threads;
pub mod xattrs;
