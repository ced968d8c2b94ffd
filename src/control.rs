//! The messages of hoist's own control API, generated from `proto/hoist/control/v1/control.proto`.
//! What each means stands there.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]

tonic::include_proto!("hoist.control.v1");
