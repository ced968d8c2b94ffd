//! For whom and for what a request is made, as far as its authorization is concerned.

use super::credentials::Place;
use super::hosts::HostConfig;

/// For whom and for what an authorization is.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The host's address and wishes.
    pub(super) host: &'a HostConfig,
    /// The host's name and port, as errors and credentials have it.
    pub(super) name: &'a str,
    /// The registry of the image references, where the host only stands for it.
    pub(super) stands_for: Option<&'a str>,
    /// The repository.
    pub(super) repository: &'a str,
    /// What is asked for, in words.
    pub(super) what: &'a str,
}

impl<'a> Scope<'a> {
    /// Where credentials are looked for.
    pub(super) fn place(&self) -> Place<'a> {
        Place { host: self.name, stands_for: self.stands_for, repository: self.repository }
    }
}
