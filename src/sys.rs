//! System calls, the only `unsafe`, on top of `nix`.

pub mod images;
pub mod xattrs;
