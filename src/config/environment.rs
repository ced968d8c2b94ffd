//! The variables that count, read once.

use std::path::PathBuf;

use crate::otlp;

/// A picture of the process's environment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Environment {
    /// `HOIST_CONFIG`: the configuration file.
    pub config: Option<PathBuf>,
    /// `HOIST_CONTROL_SOCKET`: where `hoist` finds `hoistd`.
    pub control_socket: Option<PathBuf>,
    /// `DOCKER_CONFIG`: the *directory* of docker's `config.json`.
    pub docker_config_dir: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// `TMPDIR`.
    pub temporary_dir: Option<PathBuf>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` and its like: where traces go.
    pub traces: otlp::Settings,
    /// `CONTAINERD_ADDRESS`: containerd's socket, as `ctr` has it.
    pub containerd_address: Option<PathBuf>,
    /// `CONTAINERD_NAMESPACE`: whose images are meant.
    pub containerd_namespace: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let text = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self {
            traces: otlp::Settings {
                endpoint: text("OTEL_EXPORTER_OTLP_ENDPOINT"),
                traces_endpoint: text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
                headers: text("OTEL_EXPORTER_OTLP_HEADERS"),
                service_name: text("OTEL_SERVICE_NAME"),
            },
            config: path("HOIST_CONFIG"),
            control_socket: path("HOIST_CONTROL_SOCKET"),
            docker_config_dir: path("DOCKER_CONFIG"),
            home: path("HOME"),
            no_color: path("NO_COLOR").is_some(),
            temporary_dir: path("TMPDIR"),
            containerd_address: path("CONTAINERD_ADDRESS"),
            containerd_namespace: std::env::var("CONTAINERD_NAMESPACE")
                .ok()
                .filter(|name| !name.is_empty()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Where docker would look for its `config.json`. A daemon that systemd starts has no `HOME`;
    /// root's is meant then.
    pub fn docker_config(&self) -> PathBuf {
        let dir = self
            .docker_config_dir
            .clone()
            .unwrap_or_else(|| self.home.clone().unwrap_or_else(|| "/root".into()).join(".docker"));
        dir.join("config.json")
    }
}
