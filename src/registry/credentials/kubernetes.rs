//! Directories of Kubernetes pull secrets, as they are mounted or written by an operator.
//!
//! A secret is a file of docker's form: `.dockerconfigjson`, `config.json`, `NAME.json` with
//! `auths`, or the older `.dockercfg` with what is in `auths` alone. It lies in the directory, or one
//! directory deeper, as a mount of several secrets has it; the directories of kubelet's atomic
//! updates (`..data`) are led to by the links beside them. All are read each time that credentials
//! are needed, which is once a token.
//!
//! A registry's name matches as it does for the kubelet (Kubernetes' documentation of images): host
//! by labels, where `*` stands for any part of one label; the same port or none in both; the
//! repository has to begin with the name's path. Of several that match, the longest path goes first, and the
//! others follow.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Credential, registry_of, unpacked};

/// The largest file that is read: a Secret's own bound.
const FILE_BYTES_MOST: u64 = 1 << 20;

/// Files that are looked at in one directory, those of its directories included.
const FILES_MOST: usize = 1000;

/// The directories.
#[derive(Clone, Debug)]
pub(super) struct Secrets {
    dirs: Vec<PathBuf>,
}

/// One registry's part of a secret.
#[derive(Clone, Deserialize, Default)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

type Auths = BTreeMap<String, Auth>;

#[derive(Deserialize)]
struct Config {
    auths: Auths,
}

impl Secrets {
    pub(super) fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs }
    }

    /// The credentials that match, each with its file and the name in it, the best match first.
    /// Files that cannot be read or understood are told in the log and passed over: another secret
    /// may do. Blocks.
    pub(super) fn find(&self, host: &str, repository: &str) -> Vec<(PathBuf, String, Credential)> {
        let host = registry_of(host);
        let mut found = Vec::new();
        for file in self.dirs.iter().flat_map(|dir| files(dir)) {
            let auths = match read(&file) {
                Ok(auths) => auths,
                Err(problem) => {
                    tracing::warn!(file = %file.display(), problem, "a pull secret is passed over");
                    continue;
                }
            };
            for (name, auth) in auths {
                if !Pattern::parse(&name).matches(host, repository) {
                    continue;
                }
                match auth.credential() {
                    Some(credential) => found.push((file.clone(), name, credential)),
                    None => tracing::debug!(
                        file = %file.display(), name, "a pull secret has no credentials for its registry"
                    ),
                }
            }
        }
        // As the kubelet has it: backwards in the order of their letters, so that of two paths the
        // longer goes first, and a name goes before a pattern.
        found.sort_by_cached_key(|(_, name, _)| Reverse(Pattern::parse(name).whole()));
        found
    }
}

impl Auth {
    fn credential(&self) -> Option<Credential> {
        if !self.identity_token.is_empty() {
            return Some(Credential::IdentityToken(self.identity_token.clone()));
        }
        if !self.auth.is_empty() {
            // People's tools break the lines, or end them.
            let packed: String = self.auth.split_whitespace().collect();
            let (user, password) = unpacked(&packed)?;
            let password = password.trim_end_matches('\0').to_owned();
            return Some(Credential::Password(user, password));
        }
        (!self.username.is_empty())
            .then(|| Credential::Password(self.username.clone(), self.password.clone()))
    }
}

/// The secrets in `dir`, in the order of their names.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(dir) {
        if path.is_dir() {
            found.extend(entries(&path).into_iter().filter(|inner| is_secret(inner)));
        } else if is_secret(&path) {
            found.push(path);
        }
    }
    found.truncate(FILES_MOST);
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "pull secrets cannot be read");
            }
            return Vec::new();
        }
    };
    let hidden = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("..");
    let mut paths: Vec<_> =
        entries.flatten().filter(|entry| !hidden(entry)).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn is_secret(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let named = name.ends_with(".dockerconfigjson")
        || name.ends_with(".dockercfg")
        || name.ends_with(".json");
    named && path.is_file()
}

/// What is wrong is told without any of the file's text.
fn read(file: &Path) -> Result<Auths, String> {
    let size = fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MOST {
        return Err(format!("{size} bytes are too many for a secret"));
    }
    let text = fs::read(file).map_err(|error| error.to_string())?;
    let told = |error: serde_json::Error| {
        format!("it is not of docker's form: line {}, column {}", error.line(), error.column())
    };
    if file.to_string_lossy().ends_with(".dockercfg") {
        return serde_json::from_slice(&text).map_err(told);
    }
    Ok(serde_json::from_slice::<Config>(&text).map_err(told)?.auths)
}

/// A registry's name in a secret.
struct Pattern {
    host: String,
    path: String,
}

impl Pattern {
    fn parse(name: &str) -> Self {
        let bare = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://"));
        let bare = bare.unwrap_or(name);
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        // `https://index.docker.io/v1/` is how docker calls its Hub.
        let path = path.trim_end_matches('/');
        let path = if path == "v1" || path == "v2" { "" } else { path };
        Self { host: registry_of(host).to_owned(), path: path.to_owned() }
    }

    fn whole(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    fn matches(&self, host: &str, repository: &str) -> bool {
        let (pattern, pattern_port) = with_port(&self.host);
        let (name, port) = with_port(host);
        pattern_port == port
            && pattern.split('.').count() == name.split('.').count()
            && pattern.split('.').zip(name.split('.')).all(|(glob, label)| fits(glob, label))
            && repository.starts_with(&self.path)
    }
}

fn with_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether one label fits, where `*` stands for anything, and `?` for one letter.
fn fits(glob: &str, label: &str) -> bool {
    let mut rest = glob.chars();
    match rest.next() {
        None => label.is_empty(),
        Some('*') => {
            let rest = rest.as_str();
            label.char_indices().any(|(at, _)| fits(rest, &label[at..])) || fits(rest, "")
        }
        Some(letter) => {
            let mut label = label.chars();
            label.next().is_some_and(|other| letter == '?' || letter == other)
                && fits(rest.as_str(), label.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_they_do_for_the_kubelet() {
        let matches = |pattern: &str, host: &str, repository: &str| {
            Pattern::parse(pattern).matches(host, repository)
        };
        for (pattern, host, repository) in [
            ("r.example", "r.example", "a/b"),
            ("https://r.example/v1/", "r.example", "a/b"),
            ("*.example", "r.example", "a"),
            ("r*.e?ample", "registry.example", "a"),
            ("*.*.example", "a.b.example", "x"),
            ("r.example/team", "r.example", "team/image"),
            ("r.example/team/", "r.example", "team/image"),
            ("r.example:5000", "r.example:5000", "a"),
            ("*.example:5000/a", "r.example:5000", "a/b"),
            ("https://index.docker.io/v1/", "docker.io", "library/a"),
            ("docker.io", "docker.io", "library/a"),
        ] {
            assert!(matches(pattern, host, repository), "{pattern} {host} {repository}");
        }
        for (pattern, host, repository) in [
            ("r.example", "s.example", "a"),
            ("*.example", "a.b.example", "a"),
            ("*.example", "example", "a"),
            ("r.example", "r.example:5000", "a"),
            ("r.example:5000", "r.example", "a"),
            ("r.example:5001", "r.example:5000", "a"),
            ("r.example/team", "r.example", "other/team"),
            ("*", "r.example", "a"),
        ] {
            assert!(!matches(pattern, host, repository), "{pattern} {host} {repository}");
        }
    }

    fn users(dir: &Path, host: &str, repository: &str) -> Vec<String> {
        let found = Secrets::new(vec![dir.to_owned()]).find(host, repository);
        let user = |credential| match credential {
            Credential::Password(user, password) => format!("{user}:{password}"),
            Credential::IdentityToken(token) => token,
        };
        found.into_iter().map(|(.., credential)| user(credential)).collect()
    }

    #[test]
    fn secrets_are_found_in_all_of_their_places_and_forms() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        assert!(users(dir.path(), "r.example", "a").is_empty());
        write("team.json", r#"{"auths": {"r.example/team": {"auth": "dDpw"}}}"#);
        write(
            "wild.dockerconfigjson",
            r#"{"auths": {"*.example": {"username": "w", "password": "p"}}}"#,
        );
        write("old/.dockercfg", r#"{"r.example": {"identitytoken": "o"}, "s.example": {}}"#);
        // As the kubelet mounts a secret: a link into a directory that is swapped.
        write(
            "mounted/..2024/.dockerconfigjson",
            r#"{"auths": {"r.example/team/b": {"auth": "bTpw"}}}"#,
        );
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join("mounted").join(name)).unwrap();
        };
        link("..2024", "..data");
        link("..data/.dockerconfigjson", ".dockerconfigjson");
        // None of these keeps the others from being found.
        write("broken.json", "{\"auths\": {\"r.example\": {\"auth\": 7");
        write("garbage.json", r#"{"auths": {"r.example": {"auth": "%"}}}"#);
        write("README", "no secret");
        assert_eq!(users(dir.path(), "r.example", "team/b"), ["m:p", "t:p", "o", "w:p"]);
        assert_eq!(users(dir.path(), "r.example", "team/a"), ["t:p", "o", "w:p"]);
        assert_eq!(users(dir.path(), "s.example", "team/a"), ["w:p"]);
        // A change is seen at once.
        write("team.json", r#"{"auths": {"r.example/team": {"auth": "bmV3OnA="}}}"#);
        assert_eq!(users(dir.path(), "r.example", "team/a")[0], "new:p");
        assert!(Secrets::new(vec!["/nonexistent".into()]).find("r.example", "a").is_empty());
    }
}
