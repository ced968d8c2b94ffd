//! containerd's `hosts.toml`: which hosts stand for a registry, and how each wants to be asked.
//!
//! The file lists hosts in the order in which they are tried; the registry itself, or what `server`
//! names in its stead, comes last. Keys that hoist does not know are left alone, as containerd
//! leaves them: the file is containerd's. A known key with a wrong value is an error, where
//! containerd would log it and go on without mirrors. No I/O here; paths are made absolute only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_spanned::Spanned;

use super::endpoint::without_user;

/// What a host may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Capabilities {
    /// Blobs, and manifests by digest.
    pub(super) pull: bool,
    /// What a tag means.
    pub(super) resolve: bool,
    /// To take blobs and manifests.
    pub(super) push: bool,
}

/// One host of a registry.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct HostConfig {
    /// The API's root, mostly ending in `/v2`, without a slash at its end.
    pub(super) base: Url,
    /// What it may be asked for.
    pub(super) capabilities: Capabilities,
    /// Files with further CA certificates.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificates, each with its key's file unless that is the same.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether its certificate is not looked at.
    pub(super) skip_verify: bool,
    /// Headers that every request to it carries.
    pub(super) header: HeaderMap,
    /// Another bound for connecting than the general one.
    pub(super) dial_timeout: Option<Duration>,
}

impl HostConfig {
    /// A host without any special wishes; `base` without a slash at its end.
    pub(super) fn plain(base: Url) -> Self {
        Self {
            base,
            capabilities: Capabilities { pull: true, resolve: true, push: true },
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            header: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// The keys of a file that is read here.
const KEYS: [&str; 8] = [
    "server",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
];

#[derive(Deserialize)]
struct RawFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<RawHost>>,
    #[serde(flatten)]
    root: RawHost,
}

#[derive(Deserialize)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany<String>>,
    client: Option<OneOrMany<OneOrMany<String>>>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany<String>>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list")]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Reads a `hosts.toml` that lies in `dir`; `default` is the registry itself.
///
/// # Errors
/// The key and what is wrong with it.
pub(super) fn parse(
    text: &str,
    dir: &Path,
    default: HostConfig,
) -> Result<Vec<HostConfig>, String> {
    let raw: RawFile = toml::from_str(text).map_err(|error| discreet(&error, text))?;
    let mut named: Vec<_> = raw.host.into_iter().collect();
    // The order in the file is the order of trying.
    named.sort_by_key(|(_, host)| host.span().start);
    let mut hosts = Vec::new();
    for (name, host) in named {
        let key = format!("host.{:?}", without_user(&name));
        let base = base_url(&name, host.get_ref().override_path, &key)?;
        hosts.push(host.into_inner().parse(HostConfig::plain(base), dir, &format!("{key}."))?);
    }
    let server = match raw.server.as_deref() {
        None | Some("") => default,
        Some(server) => HostConfig::plain(base_url(server, raw.root.override_path, "server")?),
    };
    hosts.push(raw.root.parse(server, dir, "")?);
    Ok(hosts)
}

/// Where the file is no TOML or not of this form, and in which way, without its text: headers hold
/// credentials.
fn discreet(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().trim_end();
    // What it quotes is a value.
    let told = match (message.find('"'), message.rfind('"')) {
        (Some(from), Some(to)) if from < to => {
            format!("{}\"…\"{}", &message[..from], &message[to + 1..])
        }
        _ => message.to_owned(),
    };
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return told };
    let number = before.matches('\n').count();
    let line = text.lines().nth(number).unwrap_or_default().trim_start();
    let key = KEYS.into_iter().find(|key| line.starts_with(key));
    let key = key.map_or(String::new(), |key| format!(", {key}"));
    format!("line {}{key}: {told}", number + 1)
}

/// The API's root of a host as it stands in the file: `https://` where no scheme is given, `/v2`
/// at the end unless the path is to be taken as it is.
fn base_url(text: &str, override_path: bool, key: &str) -> Result<Url, String> {
    let full = if text.starts_with("http://") || text.starts_with("https://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let shown = without_user(text);
    let mut url = Url::parse(&full).map_err(|error| format!("{key}: {shown:?}: {error}"))?;
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some()
    {
        return Err(format!("{key}: {shown:?} is not the address of a registry"));
    }
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    url.set_path(&path);
    Ok(url)
}

impl RawHost {
    fn parse(self, mut host: HostConfig, dir: &Path, prefix: &str) -> Result<HostConfig, String> {
        let wrong = |key: &str, problem: String| format!("{prefix}{key}: {problem}");
        if let Some(words) = self.capabilities.filter(|words| !words.is_empty()) {
            host.capabilities =
                capabilities(&words).map_err(|problem| wrong("capabilities", problem))?;
        }
        let ca = self.ca.map(OneOrMany::into_vec).unwrap_or_default();
        host.ca = ca.into_iter().map(|file| dir.join(file)).collect();
        for pair in self.client.map(OneOrMany::into_vec).unwrap_or_default() {
            let pair = pair.into_vec();
            match pair.as_slice() {
                [both] => host.client.push((dir.join(both), None)),
                [certificate, key] => {
                    host.client.push((dir.join(certificate), Some(dir.join(key))));
                }
                _ => {
                    return Err(wrong(
                        "client",
                        format!("{pair:?} is not a certificate and a key"),
                    ));
                }
            }
        }
        for (name, values) in self.header {
            // Nor is what was meant to be a whole header.
            let key = format!("header.{}", name.split(':').next().unwrap_or_default());
            let header = HeaderName::try_from(&name)
                .map_err(|_| wrong(&key, "not the name of a header".to_owned()))?;
            for value in values.into_vec() {
                let mut value = HeaderValue::try_from(value)
                    .map_err(|_| wrong(&key, "not the value of a header".to_owned()))?;
                value.set_sensitive(true);
                host.header.append(header.clone(), value);
            }
        }
        host.skip_verify = self.skip_verify;
        if let Some(text) = self.dial_timeout {
            let timeout = duration(&text)
                .ok_or_else(|| wrong("dial_timeout", format!("{text:?} is not a duration")))?;
            host.dial_timeout = Some(timeout);
        }
        Ok(host)
    }
}

fn capabilities(words: &[String]) -> Result<Capabilities, String> {
    let mut found = Capabilities { pull: false, resolve: false, push: false };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => found.push = true,
            "referrers" => {}
            _ => {
                return Err(format!(
                    "unknown capability {word:?}; there are pull, resolve, push and referrers"
                ));
            }
        }
    }
    Ok(found)
}

/// A duration as Go writes it: numbers with `h`, `m`, `s` or `ms`, one after the other.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<HostConfig>, String> {
        let default = HostConfig::plain("https://registry.example/v2".parse().unwrap());
        parse(text, Path::new("/etc/certs.d/registry.example"), default)
    }

    fn bases(text: &str) -> Vec<String> {
        read(text).unwrap().iter().map(|host| host.base.to_string()).collect()
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://upstream.example"
            [host."https://z.example"]
            [host."http://b.example:5000".header]
            x = "1"
            [host."a.example/prefix"]
            [host."https://c.example/raw"]
            override_path = true
        "#;
        assert_eq!(
            bases(text),
            [
                "https://z.example/v2",
                "http://b.example:5000/v2",
                "https://a.example/prefix/v2",
                "https://c.example/raw",
                "https://upstream.example/v2",
            ]
        );
        assert_eq!(bases(""), ["https://registry.example/v2"]);
        assert_eq!(bases("[host.\"m.example\"]").last().unwrap(), "https://registry.example/v2");
    }

    #[test]
    fn every_key_is_read() {
        let hosts = read(
            r#"
            [host."https://m.example"]
            capabilities = ["pull"]
            ca = "ca.pem"
            client = [["c.pem", "/k.pem"], "both.pem"]
            skip_verify = true
            dial_timeout = "1m2.5s"
            some_future_key = 1
            [host."https://m.example".header]
            x-one = "a"
            x-two = ["b", "c"]
            "#,
        )
        .unwrap();
        let dir = Path::new("/etc/certs.d/registry.example");
        let host = &hosts[0];
        assert_eq!(host.capabilities, Capabilities { pull: true, resolve: false, push: false });
        assert_eq!(host.ca, [dir.join("ca.pem")]);
        let pairs =
            [(dir.join("c.pem"), Some(PathBuf::from("/k.pem"))), (dir.join("both.pem"), None)];
        assert_eq!(host.client, pairs);
        assert!(host.skip_verify);
        assert_eq!(host.dial_timeout, Some(Duration::from_millis(62_500)));
        let two: Vec<_> = host.header.get_all("x-two").iter().collect();
        assert_eq!(two, ["b", "c"]);
    }

    #[test]
    fn a_mistake_names_its_key() {
        for (text, key) in [
            ("[host.\"https://m.example\"]\ncapabilities = [\"pul\"]", "capabilities"),
            ("[host.\"https://m.example\"]\nca = 7", "ca"),
            ("[host.\"https://m.example\"]\nclient = [[\"a\", \"b\", \"c\"]]", "client"),
            ("[host.\"https://m.example\"]\nskip_verify = \"yes\"", "skip_verify"),
            ("[host.\"https://m.example\"]\ndial_timeout = \"soon\"", "dial_timeout"),
            ("[host.\"https://m.example\".header]\n\"a b\" = \"c\"", "header.a b"),
            ("[host.\"https://:::\"]", "host."),
            ("server = \"https://\"", "server"),
            ("server = 7", "server"),
            ("server = ", "server"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_mistake_does_not_tell_what_is_secret() {
        for text in [
            "[host.\"https://m.example\".header]\nAuthorization = \"Basic s3cret",
            "[host.\"https://m.example\".header]\nAuthorization = Basic s3cret",
            "[host.\"https://m.example\"]\nheader = \"Authorization: s3cret \\\" more\"",
            "[host.\"https://m.example\"]\nheader = \"\"\"\nca s3cret=\n\"\"\"",
            "[host.\"https://user:s3cret@m.example\"]\ncapabilities = [\"pul\"]",
            "[host.\"https://user:s3cret@:::\"]",
            "server = \"https://user:s3cret@/\"",
            "server = \"user:s3cret@:::\"",
            "server = \"https://user:s3cret@m.example",
        ] {
            let error = read(text).unwrap_err();
            assert!(!error.contains("s3cret") && !error.contains("user"), "{error}");
            assert!(
                error.contains("host") || error.contains("server") || error.contains("line 2"),
                "{error}"
            );
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(duration("1h2m3s"), Some(Duration::from_secs(3723)));
        for wrong in ["", "3", "s", "1x", "1..2s", "-1s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
