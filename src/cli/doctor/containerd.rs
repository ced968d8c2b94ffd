//! containerd: whether it answers, knows hoist, and is configured to say which images it pulls.
//!
//! The few messages of its API that are needed are declared here, fields by their numbers in containerd's
//! `version.proto` and `introspection.proto`; fields that nobody here reads are left out, which protobuf allows.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::{Check, Doctor};
use crate::config::Config;
use crate::image::Platform;
use crate::install;

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct VersionResponse {
    #[prost(string, tag = "1")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    plugins: Vec<Plugin>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(map = "string, string", tag = "5")]
    exports: HashMap<String, String>,
    #[prost(message, optional, tag = "7")]
    error: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
}

/// How long containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Files that configurations may import; more is a loop.
const FILES_MOST: usize = 32;

pub(super) async fn checks(checks: &mut Vec<Check>, args: &Doctor, config: &Config) {
    let version = version(&args.containerd).await;
    let two = matches!(&version, Ok(version) if !version.starts_with("1."));
    checks.push(told(&version, &args.containerd));
    if version.is_ok() {
        checks.push(plugin(args, two).await);
    }
    match Settings::read(&args.containerd_config) {
        Ok(settings) => settings.checks(checks, args, config),
        Err(error) => checks.push(Check::wrong(
            "containerd's configuration",
            error,
            "--containerd-config names another file; config/containerd-2.x.toml is what to merge into it",
        )),
    }
}

async fn call<Answer>(socket: &Path, method: &'static str) -> Result<Answer, String>
where
    Answer: prost::Message + Default + Send + 'static,
{
    let absolute = std::path::absolute(socket).map_err(|error| error.to_string())?;
    let asked = async {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("unix:{}", absolute.display()));
        let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
        let channel = channel.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            source.unwrap_or_else(|| error.to_string())
        })?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::<Empty, Answer>::default();
        let answer = client.unary(tonic::Request::new(Empty {}), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| Err("no answer for 10 s".to_owned()))
}

async fn version(socket: &Path) -> Result<String, String> {
    let answer = call::<VersionResponse>(socket, "/containerd.services.version.v1.Version/Version");
    answer.await.map(|answer| answer.version.trim_start_matches('v').to_owned())
}

fn told(version: &Result<String, String>, socket: &Path) -> Check {
    const NAME: &str = "containerd";
    match version {
        Err(error) => Check::wrong(
            NAME,
            format!("no answer at {}: {error}", socket.display()),
            "systemctl status containerd; --containerd names another socket",
        ),
        Ok(version) => {
            let mut numbers = version.split(['.', '-', '~', '+']).map(|n| n.parse().unwrap_or(0));
            let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if found >= (1, 6) {
                Check::ok(NAME, format!("version {version}"))
            } else {
                Check::wrong(
                    NAME,
                    format!("version {version}"),
                    "hoist needs containerd 1.6 or later",
                )
            }
        }
    }
}

async fn plugin(args: &Doctor, two: bool) -> Check {
    const NAME: &str = "plugin";
    let method = "/containerd.services.introspection.v1.Introspection/Plugins";
    let plugins = match call::<PluginsResponse>(&args.containerd, method).await {
        Ok(answer) => answer.plugins,
        Err(error) => return Check::wrong(NAME, error, "ctr plugins ls says more"),
    };
    registered(&plugins, &args.snapshotter, two)
}

/// Whether the snapshotter `name` is among the plugins as it has to be; `two` is containerd 2 or later.
fn registered(plugins: &[Plugin], name: &str, two: bool) -> Check {
    const NAME: &str = "plugin";
    let own = |p: &&Plugin| p.kind == "io.containerd.snapshotter.v1" && p.id == name;
    let Some(plugin) = plugins.iter().find(own) else {
        let fix = format!(
            "[proxy_plugins.{name}] in containerd's configuration, then restart containerd"
        );
        return Check::wrong(NAME, format!("containerd has no snapshotter {name:?}"), fix);
    };
    if let Some(error) = plugin.error.as_ref().filter(|error| !error.message.is_empty()) {
        return Check::wrong(NAME, error.message.clone(), "restart containerd with hoistd running");
    }
    let labels = plugin.exports.get("enable_remote_snapshot_annotations");
    if two && labels.is_none_or(|value| value != "true") {
        return Check::wrong(
            NAME,
            format!(
                "snapshotter {name:?} is registered without enable_remote_snapshot_annotations"
            ),
            format!(
                "[proxy_plugins.{name}.exports]\n  enable_remote_snapshot_annotations = \"true\""
            ),
        );
    }
    Check::ok(NAME, format!("snapshotter {name:?} is registered"))
}

/// containerd's configuration, with what it imports.
struct Settings {
    files: Vec<toml::Table>,
}

impl Settings {
    fn read(path: &Path) -> Result<Self, String> {
        let mut files = Vec::new();
        let mut left = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            if files.len() == FILES_MOST {
                return Err(format!("{} imports more than {FILES_MOST} files", path.display()));
            }
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
            let table: toml::Table =
                text.parse().map_err(|error: toml::de::Error| failed(&error))?;
            let imports = table.get("imports").and_then(toml::Value::as_array);
            for import in imports.into_iter().flatten().filter_map(toml::Value::as_str) {
                let base = path.parent().unwrap_or(Path::new("/"));
                // They are taken from the end of the list.
                left.extend(install::host::imported_by(&base.join(import)).into_iter().rev());
            }
            files.push(table);
        }
        Ok(Self { files })
    }

    /// The value at a path of keys: that of the file which was imported last.
    fn value(&self, keys: &[&str]) -> Option<&toml::Value> {
        self.files.iter().rev().find_map(|file| {
            let (last, tables) = keys.split_last()?;
            tables.iter().try_fold(file, |table, key| table.get(*key)?.as_table())?.get(*last)
        })
    }

    fn text(&self, keys: &[&str]) -> Option<&str> {
        self.value(keys).and_then(toml::Value::as_str)
    }

    fn checks(&self, checks: &mut Vec<Check>, args: &Doctor, config: &Config) {
        checks.push(self.proxy(&args.snapshotter, config));
        let three = self.value(&["version"]).and_then(toml::Value::as_integer) == Some(3)
            || self.value(&["plugins", "io.containerd.cri.v1.images"]).is_some();
        let images: &[&str] = if three {
            &["plugins", "io.containerd.cri.v1.images"]
        } else {
            &["plugins", "io.containerd.grpc.v1.cri", "containerd"]
        };
        let section = match images {
            [_, one] => format!("[plugins.'{one}']"),
            _ => "[plugins.\"io.containerd.grpc.v1.cri\".containerd]".to_owned(),
        };
        let key = |name| [images, &[name]].concat();
        checks.push(cri(self.text(&key("snapshotter")), &section, &args.snapshotter));
        let disabled = self.value(&key("disable_snapshot_annotations"));
        checks.push(annotations(disabled.and_then(toml::Value::as_bool), &section));
        if three {
            checks.push(self.unpack(&args.snapshotter));
        }
    }

    fn proxy(&self, name: &str, config: &Config) -> Check {
        const NAME: &str = "proxy plugin";
        let address = config.socket.display();
        let fix =
            format!("[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"{address}\"");
        let found = self.text(&["proxy_plugins", name, "address"]);
        let kind = self.text(&["proxy_plugins", name, "type"]);
        match (found, kind) {
            (None, _) => Check::wrong(
                NAME,
                format!("there is no [proxy_plugins.{name}] with an address"),
                fix,
            ),
            (_, kind) if kind != Some("snapshot") => Check::wrong(
                NAME,
                format!("[proxy_plugins.{name}] is not of type \"snapshot\""),
                fix,
            ),
            (Some(found), _) if Path::new(found) != config.socket => Check::wrong(
                NAME,
                format!("its address is {found:?}, and hoistd's socket {address}"),
                fix,
            ),
            (Some(found), _) => Check::ok(NAME, format!("{name:?} at {found}")),
        }
    }

    /// Without an entry for it, the transfer service does not unpack for a snapshotter.
    fn unpack(&self, name: &str) -> Check {
        const NAME: &str = "unpacking";
        let keys = ["plugins", "io.containerd.transfer.v1.local", "unpack_config"];
        let entries = self.value(&keys).and_then(toml::Value::as_array);
        let has = |entry: &toml::Value| {
            entry.get("snapshotter").and_then(toml::Value::as_str) == Some(name)
        };
        if entries.is_some_and(|entries| entries.iter().any(has)) {
            Check::ok(NAME, format!("the transfer service unpacks for {name:?}"))
        } else {
            Check::wrong(
                NAME,
                format!("the transfer service has no unpack_config for {name:?}"),
                format!(
                    "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"linux/{}\"\n  \
                     snapshotter = \"{name}\"\n  differ = \"walking\"",
                    Platform::host().architecture
                ),
            )
        }
    }
}

fn cri(found: Option<&str>, section: &str, name: &str) -> Check {
    const NAME: &str = "snapshotter of CRI";
    let fix = format!("{section}\n  snapshotter = \"{name}\"");
    match found {
        Some(found) if found == name => {
            Check::ok(NAME, format!("{name:?}: the kubelet pulls with it"))
        }
        found => Check::warning(
            NAME,
            format!("{:?}: the kubelet does not pull with hoist", found.unwrap_or("overlayfs")),
            fix,
        ),
    }
}

fn annotations(disabled: Option<bool>, section: &str) -> Check {
    const NAME: &str = "labels of CRI";
    if disabled == Some(false) {
        Check::ok(NAME, "disable_snapshot_annotations = false: pulls say what they are for")
    } else {
        Check::wrong(
            NAME,
            "CRI does not say which image and layer a Prepare is for: containerd pulls by itself",
            format!("{section}\n  disable_snapshot_annotations = false"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// It found something wrong, and the way out has these words.
    fn finds(check: &Check, verdict: Verdict, fix: &str) {
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.fix.as_ref().is_some_and(|told| told.contains(fix)), "{check:?}");
    }

    #[test]
    fn a_containerd_that_is_too_old_or_away_is_wrong() {
        let of = |version: Result<&str, &str>| {
            let version = version.map(str::to_owned).map_err(str::to_owned);
            told(&version, Path::new("/run/containerd.sock"))
        };
        for good in ["1.6.20~ds1", "1.7.24", "2.1.4-rc.0", "10.0"] {
            assert_eq!(of(Ok(good)).verdict, Verdict::Ok, "{good}");
        }
        for old in ["1.5.18", "1.4.13~ds1", "unknown"] {
            finds(&of(Ok(old)), Verdict::Wrong, "containerd 1.6 or later");
        }
        let away = of(Err("refused"));
        assert!(away.found.contains("/run/containerd.sock: refused"), "{away:?}");
        finds(&away, Verdict::Wrong, "systemctl status containerd");
    }

    #[test]
    fn a_plugin_is_registered_with_its_annotations() {
        let exports = |value: &str| {
            HashMap::from([("enable_remote_snapshot_annotations".to_owned(), value.to_owned())])
        };
        let plugin = |id: &str, exports| Plugin {
            kind: "io.containerd.snapshotter.v1".to_owned(),
            id: id.to_owned(),
            exports,
            error: None,
        };
        let good = plugin("hoist", exports("true"));
        assert_eq!(registered(std::slice::from_ref(&good), "hoist", true).verdict, Verdict::Ok);
        // containerd 1.x has no exports, and needs none.
        let bare = plugin("hoist", HashMap::new());
        assert_eq!(registered(std::slice::from_ref(&bare), "hoist", false).verdict, Verdict::Ok);
        for without in [bare, plugin("hoist", exports("false"))] {
            let check = registered(&[without], "hoist", true);
            finds(&check, Verdict::Wrong, "[proxy_plugins.hoist.exports]");
            finds(&check, Verdict::Wrong, "enable_remote_snapshot_annotations = \"true\"");
        }
        let other = registered(&[plugin("overlayfs", HashMap::new())], "hoist", true);
        finds(&other, Verdict::Wrong, "[proxy_plugins.hoist] in containerd's configuration");
        let error = Some(Status { message: "dial: no such file".to_owned() });
        let broken = registered(&[Plugin { error, ..good }], "hoist", true);
        assert!(broken.found.contains("no such file"), "{broken:?}");
        finds(&broken, Verdict::Wrong, "restart containerd with hoistd running");
    }

    #[test]
    fn a_kubelet_that_pulls_with_another_is_told() {
        let section = "[plugins.'io.containerd.cri.v1.images']";
        assert_eq!(cri(Some("hoist"), section, "hoist").verdict, Verdict::Ok);
        for other in [None, Some("overlayfs")] {
            let check = cri(other, section, "hoist");
            assert!(check.found.contains("overlayfs"), "{check:?}");
            finds(&check, Verdict::Warning, "images']\n  snapshotter = \"hoist\"");
        }
        for disabled in [None, Some(true)] {
            let check = annotations(disabled, section);
            finds(&check, Verdict::Wrong, "images']\n  disable_snapshot_annotations = false");
        }
        assert_eq!(annotations(Some(false), section).verdict, Verdict::Ok);
    }

    #[test]
    fn imports_are_followed_and_the_last_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        write("config.toml", "version = 3\nimports = [\"conf.d/*.toml\"]\n[a]\nb = \"1\"\n");
        write("conf.d/1.toml", "[a]\nb = \"2\"\n[c]\nd = \"x\"\n");
        write("conf.d/2.toml", "[a]\nb = \"3\"\n");
        write("conf.d/other", "no TOML");
        let settings = Settings::read(&dir.path().join("config.toml")).unwrap();
        assert_eq!(settings.text(&["a", "b"]), Some("3"));
        assert_eq!(settings.text(&["c", "d"]), Some("x"));
        write("config.toml", "imports = [\"config.toml\"]");
        assert!(Settings::read(&dir.path().join("config.toml")).is_err(), "a loop ends");
    }
}
