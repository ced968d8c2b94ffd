//! The door for a kubelet: containerd's CRI, with an eye on the credentials that pass.
//!
//! A kubelet hands the pull secrets of a pod to whoever answers `ImageService.PullImage`. With
//! `image_service_endpoint` it can be told to ask here: every call goes on to containerd's socket as it came, and every
//! answer comes back as it is, of all services and versions. Only `PullImage` is looked into: what it has as `auth` goes
//! into the registry's [`Keychain`] before the call goes on, so that it is there when containerd asks
//! for the image's layers. Nothing of it is logged or written.

use std::future::poll_fn;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use prost::Message;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::Service as _;
use tonic::transport::{Channel, Endpoint};

use super::error::DaemonError;
use crate::pull;
use crate::registry::{Keychain, registry_of, unpacked};

/// The largest `PullImage` that is looked into; its pod's annotations are in it. gRPC's own bound.
const MESSAGE_BYTES_MOST: usize = 4 << 20;

/// What stands before a gRPC message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

// The messages, as far as they matter here: fields by their numbers in the CRI's definition, which
// are the same in v1 and v1alpha2.

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct AuthConfig {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
    #[prost(string, tag = "3")]
    auth: String,
    #[prost(string, tag = "4")]
    server_address: String,
    #[prost(string, tag = "5")]
    identity_token: String,
}

/// What stands between a kubelet and containerd.
#[derive(Clone)]
struct Between {
    containerd: Channel,
    keychain: Keychain,
    keep: Duration,
}

/// Serves a kubelet until `closing`: `containerd` is asked, and what passes is kept for as long as `keep`.
pub(super) async fn serve(
    listener: UnixListener,
    containerd: &Path,
    keychain: Keychain,
    keep: Duration,
    closing: CancellationToken,
) -> Result<(), DaemonError> {
    let failed = |reason: String| DaemonError::Served { door: "the kubelet", reason };
    let address = format!("unix://{}", containerd.display());
    let endpoint = Endpoint::from_shared(address).map_err(|error| failed(error.to_string()))?;
    // containerd may start later, and again.
    let between = Between { containerd: endpoint.connect_lazy(), keychain, keep };
    let router = Router::new().fallback(pass).with_state(between);
    tonic::transport::Server::builder()
        .add_routes(router.into())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), closing.cancelled_owned())
        .await
        .map_err(|error| failed(error.to_string()))
}

/// One call, there and back.
async fn pass(State(between): State<Between>, request: Request) -> Response {
    let path = request.uri().path();
    let request = if path.starts_with("/runtime.") && path.ends_with(".ImageService/PullImage") {
        match between.look(request).await {
            Ok(request) => request,
            Err(status) => return answer(status.into_http()),
        }
    } else {
        request
    };
    let mut containerd = between.containerd;
    let asked = async {
        poll_fn(|context| containerd.poll_ready(context)).await?;
        containerd.call(request.map(tonic::body::Body::new)).await
    };
    match asked.await {
        Ok(response) => answer(response),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            let status = Status::unavailable(format!("hoistd asked containerd's CRI: {text}"));
            answer(status.into_http())
        }
    }
}

fn answer(response: axum::http::Response<tonic::body::Body>) -> Response {
    response.map(Body::new)
}

impl Between {
    /// Takes what a `PullImage` has to say, and gives the request back as it was.
    async fn look(&self, request: Request) -> Result<Request, Status> {
        let (head, body) = request.into_parts();
        let bytes = to_bytes(body, MESSAGE_BYTES_MOST).await;
        let bytes =
            bytes.map_err(|_| Status::resource_exhausted("a PullImage of more than 4 MiB"))?;
        // What cannot be read here is containerd's to judge.
        if let Some(pull) = parse(&bytes) {
            self.keep(pull);
        }
        Ok(Request::from_parts(head, Body::from(bytes)))
    }

    fn keep(&self, pull: PullImageRequest) {
        let (Some(image), Some(auth)) = (pull.image, pull.auth) else { return };
        let Ok(reference) = pull::parse_reference(&image.image) else { return };
        // They may be for another registry; containerd looks too.
        let server = host_of(&auth.server_address);
        if !server.is_empty() && registry_of(server) != registry_of(reference.registry()) {
            tracing::debug!(image = image.image, server, "credentials of another server");
            return;
        }
        let (keychain, keep) = (&self.keychain, self.keep);
        if !auth.identity_token.is_empty() {
            keychain.pass_identity_token(&reference, auth.identity_token, keep);
        } else if let Some((user, password)) = auth.password() {
            keychain.pass_password(&reference, user, password, keep);
        } else {
            return;
        }
        tracing::debug!(image = image.image, "the kubelet passed credentials");
    }
}

impl AuthConfig {
    /// In two fields, or packed into one.
    fn password(self) -> Option<(String, String)> {
        if !self.username.is_empty() {
            return Some((self.username, self.password));
        }
        let (user, password) = unpacked(self.auth.trim())?;
        Some((user, password.trim_end_matches('\0').to_owned()))
    }
}

/// The one message of a call; `None` where it is compressed, cut off or not a `PullImage`.
fn parse(body: &[u8]) -> Option<PullImageRequest> {
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    (prefix[0] == 0).then_some(())?;
    PullImageRequest::decode(message.get(..length)?).ok()
}

/// The host, with its port, of an address with scheme and path, or without.
fn host_of(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, bare)| bare);
    bare.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_or_left_alone() {
        let image = ImageSpec { image: "r.example/a".to_owned() };
        let auth = AuthConfig { auth: "dXNlcjpwYTpzcw==".to_owned(), ..AuthConfig::default() };
        let pull = PullImageRequest { image: Some(image), auth: Some(auth) };
        let message = pull.encode_to_vec();
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(&message);
        let read = parse(&framed).unwrap();
        assert_eq!(read.image.unwrap().image, "r.example/a");
        let password = read.auth.unwrap().password();
        assert_eq!(password, Some(("user".to_owned(), "pa:ss".to_owned())));
        assert!(parse(&framed[..framed.len() - 1]).is_none());
        framed[0] = 1;
        assert!(parse(&framed).is_none(), "compressed");
        assert!(parse(&[0; 3]).is_none());
    }

    #[test]
    fn a_server_is_named_in_several_ways() {
        for address in ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"] {
            assert_eq!(registry_of(host_of(address)), "docker.io");
        }
        assert_eq!(host_of("http://r.example:5000/v2/"), "r.example:5000");
        assert_eq!(host_of(""), "");
    }
}
