//! A pod through CRI's RuntimeService, as the kubelet runs one, in the host's network.
//!
//! Messages by hand, as in `cri`: fields by their numbers in `api.proto` (runtime.v1), those left out that nobody sets.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cri::{ImageSpec, ask};

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// Modes: 0 the pod's, 1 the container's, 2 the node's.
#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

const HOST_NETWORK: Namespaces = Namespaces { network: 2, pid: 1 };

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<SandboxLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// Requests and answers that hold an id in their first field.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Named>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    exit_code: i32,
}

/// `ContainerState::CONTAINER_EXITED`.
const EXITED: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(uint64, tag = "1")]
    value: u64,
}

/// What a file system holds of images.
#[derive(Clone, PartialEq, prost::Message)]
struct Usage {
    #[prost(message, optional, tag = "2")]
    place: Option<Named>,
    #[prost(message, optional, tag = "3")]
    used_bytes: Option<Value>,
    #[prost(message, optional, tag = "4")]
    used_inodes: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Usages {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Usage>,
}

/// A pod that runs.
pub(crate) struct Pod {
    socket: PathBuf,
    config: SandboxConfig,
    id: String,
}

impl Pod {
    /// Runs a sandbox; its containers' logs go to `logs`.
    pub(crate) fn run(socket: &Path, logs: &Path, name: &str) -> Result<Self, String> {
        let name = name.to_owned();
        let metadata = Metadata { uid: name.clone(), name, namespace: "default".to_owned() };
        let security = SandboxSecurity { namespaces: Some(HOST_NETWORK) };
        let config = SandboxConfig {
            metadata: Some(metadata),
            log_directory: logs.display().to_string(),
            linux: Some(SandboxLinux { security: Some(security) }),
        };
        let question = RunSandbox { config: Some(config.clone()) };
        let answer: Id = ask(socket, "/runtime.v1.RuntimeService/RunPodSandbox", question)?;
        Ok(Self { socket: socket.to_owned(), config, id: answer.id })
    }

    /// Runs `command` in a container of `image` to its end; gives its exit code and its log.
    pub(crate) fn container(&self, image: &str, command: &[&str]) -> Result<(i32, String), String> {
        let code = self.container_ends(image, command)?;
        let log = std::fs::read_to_string(Path::new(&self.config.log_directory).join("c.log"));
        Ok((code, log.map_err(|error| error.to_string())?))
    }

    /// The same where the logs are elsewhere than this process sees them.
    pub(crate) fn container_ends(&self, image: &str, command: &[&str]) -> Result<i32, String> {
        let security = ContainerSecurity { namespaces: Some(HOST_NETWORK) };
        let config = ContainerConfig {
            metadata: Some(Named { name: "c".to_owned() }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: "c.log".to_owned(),
            linux: Some(ContainerLinux { security: Some(security) }),
        };
        let question = CreateContainer {
            sandbox: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id: Id = ask(&self.socket, "/runtime.v1.RuntimeService/CreateContainer", question)?;
        let _: Nothing =
            ask(&self.socket, "/runtime.v1.RuntimeService/StartContainer", id.clone())?;
        let began = Instant::now();
        let code = loop {
            let answer: StatusAnswer =
                ask(&self.socket, "/runtime.v1.RuntimeService/ContainerStatus", id.clone())?;
            let status = answer.status.unwrap_or_default();
            if status.state == EXITED {
                break status.exit_code;
            }
            if began.elapsed() > Duration::from_secs(60) {
                return Err("the container has not ended after a minute".to_owned());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let _: Nothing = ask(&self.socket, "/runtime.v1.RuntimeService/RemoveContainer", id)?;
        Ok(code)
    }

    /// Stops and removes it.
    pub(crate) fn remove(self) -> Result<(), String> {
        let id = Id { id: self.id };
        let _: Nothing =
            ask(&self.socket, "/runtime.v1.RuntimeService/StopPodSandbox", id.clone())?;
        let _: Nothing = ask(&self.socket, "/runtime.v1.RuntimeService/RemovePodSandbox", id)?;
        Ok(())
    }
}

/// What the runtime says images take: where, bytes, inodes.
pub(crate) fn image_usage(socket: &Path) -> Result<Vec<(String, u64, u64)>, String> {
    let answer: Usages = ask(socket, "/runtime.v1.ImageService/ImageFsInfo", Nothing {})?;
    let value = |value: Option<Value>| value.unwrap_or_default().value;
    let usage = |usage: Usage| {
        let place = usage.place.unwrap_or_default().name;
        (place, value(usage.used_bytes), value(usage.used_inodes))
    };
    Ok(answer.images.into_iter().map(usage).collect())
}
