//! As much of a CRI client as the kubelet is for one pod: its image, its sandbox, its container.
//!
//! The messages are declared here by hand, fields by their numbers in the CRI's `api.proto` (runtime.v1); fields that
//! nobody here sets are left out, which protobuf allows.

use std::path::Path;

use tonic::transport::{Channel, Endpoint};

/// Which image is meant.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImageSpec {
    /// The reference.
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

/// Both requests have the image as their first field.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// As whom an image is pulled; the kubelet fills in these two fields.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub(crate) username: String,
    #[prost(string, tag = "2")]
    pub(crate) password: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// Asks the CRI on the unix socket `socket` to pull `image`; gives the reference that it answers.
pub(crate) fn pull(socket: &Path, image: &str) -> Result<String, String> {
    call::<PullImageResponse>(socket, "/runtime.v1.ImageService/PullImage", image)
        .map(|answer| answer.image_ref)
}

/// The same as somebody: a user's name and password go along.
pub(crate) fn pull_as(
    socket: &Path,
    image: &str,
    (username, password): (&str, &str),
) -> Result<String, String> {
    let auth = AuthConfig { username: username.to_owned(), password: password.to_owned() };
    let request =
        PullImageRequest { image: Some(ImageSpec { image: image.to_owned() }), auth: Some(auth) };
    ask::<_, PullImageResponse>(socket, "/runtime.v1.ImageService/PullImage", request)
        .map(|answer| answer.image_ref)
        .map_err(|status| format!("{image}: {status}"))
}

/// An image, as `ImageStatus` tells it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Image {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Whether the kubelet has to keep it.
    #[prost(bool, tag = "8")]
    pub(crate) pinned: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

/// Asks it for `image`; `None`: it does not have it.
pub(crate) fn image(socket: &Path, image: &str) -> Result<Option<Image>, String> {
    call::<ImageStatusResponse>(socket, "/runtime.v1.ImageService/ImageStatus", image)
        .map(|answer| answer.image)
}

/// Asks it to remove `image`.
pub(crate) fn remove(socket: &Path, image: &str) -> Result<(), String> {
    call::<Empty>(socket, "/runtime.v1.ImageService/RemoveImage", image).map(|_| ())
}

fn call<Answer>(socket: &Path, method: &'static str, image: &str) -> Result<Answer, String>
where
    Answer: prost::Message + Default + Send + 'static,
{
    let request = ImageRequest { image: Some(ImageSpec { image: image.to_owned() }) };
    ask(socket, method, request).map_err(|status| format!("{image}: {status}"))
}

/// One call of the runtime interface, on a connection of its own.
pub(crate) fn ask<Question, Answer>(
    socket: &Path,
    method: &'static str,
    question: Question,
) -> Result<Answer, String>
where
    Question: prost::Message + Default + Send + Sync + 'static,
    Answer: prost::Message + Default + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        let mut client = tonic::client::Grpc::new(connect(socket).await?);
        client.ready().await.map_err(|error| format!("{}: {error}", socket.display()))?;
        let request = tonic::Request::new(question);
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::<Question, Answer>::default();
        let answer = client.unary(request, path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| format!("{method}: {status}"))
    })
}

async fn connect(socket: &Path) -> Result<Channel, String> {
    // The client wants an absolute path here.
    let address = format!("unix://{}", socket.display());
    let endpoint =
        Endpoint::from_shared(address).map_err(|error| format!("{}: {error}", socket.display()))?;
    endpoint.connect().await.map_err(|error| format!("{}: {error:?}", socket.display()))
}
