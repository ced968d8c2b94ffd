//! Credentials from a docker `config.json`.
//!
//! The file is read anew each time that credentials are needed, which is once a token: whoever
//! renews it need not tell the daemon. The `docker_credential` crate reads `auths`. Helpers
//! (`docker-credential-NAME get`, the host on their standard input, JSON on their output) are run
//! here instead, because the crate waits for them without a bound.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Credential, RegistryError, registry_of};

/// How long a helper may take; one that asks a cloud's API for a token needs a second or two.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Under which name docker keeps the credentials of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What a helper calls the user where the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// A docker `config.json`.
#[derive(Clone, Debug)]
pub(super) struct DockerConfig {
    file: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// The one in `file`, which need not be there.
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Where it is.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The credentials for `host`, if there are any.
    ///
    /// # Errors
    /// Where the file is there but cannot be read, or a helper fails.
    pub(super) async fn find(&self, host: &str) -> Result<Option<Credential>, RegistryError> {
        let file = &self.file;
        let problem = |problem: String| RegistryError::Credentials {
            file: file.clone(),
            host: host.to_owned(),
            problem,
        };
        let text = match tokio::fs::read(file).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(problem(error.to_string())),
        };
        let mut config: Value =
            serde_json::from_slice(&text).map_err(|error| problem(error.to_string()))?;
        let server = match registry_of(host) {
            "docker.io" => DOCKER_HUB_KEY,
            other => other,
        };
        if let Some(helper) = helper_for(&config, server) {
            return run_helper(&helper, server).await;
        }
        let store = config["credsStore"].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        // Without these the crate runs no program.
        if let Some(object) = config.as_object_mut() {
            object.remove("credsStore");
            object.remove("credHelpers");
        }
        match docker_credential::get_credential_from_reader(config.to_string().as_bytes(), server) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                Ok(Some(Credential::Password(user, password)))
            }
            Ok(DockerCredential::IdentityToken(token)) => {
                Ok(Some(Credential::IdentityToken(token)))
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => match store {
                Some(store) => run_helper(&store, server).await,
                None => Ok(None),
            },
            Err(error) => Err(problem(error.to_string())),
        }
    }
}

/// The helper that the file names for `server`.
fn helper_for(config: &Value, server: &str) -> Option<String> {
    let named = |name: &str| {
        config["credHelpers"][name].as_str().filter(|h| !h.is_empty()).map(str::to_owned)
    };
    named(server).or_else(|| {
        // People write the short name of Docker Hub too.
        (server == DOCKER_HUB_KEY)
            .then(|| named("docker.io").or_else(|| named("index.docker.io")))
            .flatten()
    })
}

/// Asks `docker-credential-NAME` for the credentials of `server`.
async fn run_helper(name: &str, server: &str) -> Result<Option<Credential>, RegistryError> {
    if name.contains('/') {
        return Err(RegistryError::CredentialHelper {
            helper: name.to_owned(),
            host: server.to_owned(),
            problem: "the name of a helper has no slash".to_owned(),
        });
    }
    let mut program = Command::new(format!("docker-credential-{name}"));
    program.arg("get");
    converse(program, name, server).await
}

/// The helper's protocol with `program`.
async fn converse(
    mut program: Command,
    name: &str,
    server: &str,
) -> Result<Option<Credential>, RegistryError> {
    let failed = |problem: String| RegistryError::CredentialHelper {
        helper: name.to_owned(),
        host: server.to_owned(),
        problem,
    };
    let ask = async {
        let mut child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().expect("stdin was asked for");
        // A helper may answer without reading its input.
        let _ = stdin.write_all(server.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_TIMEOUT, ask).await {
        Err(_) => return Err(failed(format!("no answer in {} s", HELPER_TIMEOUT.as_secs()))),
        Ok(Err(error)) => return Err(failed(format!("it cannot be run: {error}"))),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said);
        // The protocol's words for "none"; every helper built on docker's library says these.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("{}: {}", output.status, tellable(&said))));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout).map_err(|_| {
        failed("its answer is not the JSON of the docker-credential protocol".into())
    })?;
    Ok(Some(if answer.username == TOKEN_USER {
        Credential::IdentityToken(answer.secret)
    } else {
        Credential::Password(answer.username, answer.secret)
    }))
}

/// What may be told of a failed helper's words: their beginning, and nothing of an answer that holds
/// a secret.
fn tellable(said: &str) -> String {
    if said.contains("\"Secret\"") {
        return "it failed after an answer, which is not told here".to_owned();
    }
    said.trim().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find(json: &str, host: &str) -> Result<Option<Credential>, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, json).unwrap();
        DockerConfig::new(file).find(host).await
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password(user.to_owned(), password.to_owned()))
    }

    #[tokio::test]
    async fn auths_are_read_in_all_of_their_forms() {
        let json = r#"{"auths": {
            "a.example": {"auth": "dXNlcjpwYTpzcw=="},
            "https://b.example:5000/v1/": {"username": "u", "password": "p"},
            "c.example": {"identitytoken": "tok"},
            "d.example": {},
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"}
        }}"#;
        assert_eq!(find(json, "a.example").await.unwrap(), password("user", "pa:ss"));
        assert_eq!(find(json, "b.example:5000").await.unwrap(), password("u", "p"));
        let token = Credential::IdentityToken("tok".to_owned());
        assert_eq!(find(json, "c.example").await.unwrap(), Some(token));
        assert_eq!(find(json, "d.example").await.unwrap(), None);
        assert_eq!(find(json, "e.example").await.unwrap(), None);
        assert_eq!(find(json, "registry-1.docker.io").await.unwrap(), password("hub", "pw"));
    }

    #[tokio::test]
    async fn a_missing_file_is_no_error_and_a_broken_one_is() {
        let none = DockerConfig::new("/nonexistent/config.json".into());
        assert_eq!(none.find("a.example").await.unwrap(), None);
        let error = find("{", "a.example").await.unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("a.example"), "{error}");
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let json = r#"{"credHelpers": {"a.example": "hoist-test-missing"}}"#;
        let error = find(json, "a.example").await.unwrap_err().to_string();
        assert!(error.contains("docker-credential-hoist-test-missing"), "{error}");
        let json = r#"{"credsStore": "../../bin/sh"}"#;
        assert!(find(json, "a.example").await.is_err());
    }

    async fn helper(script: &str) -> Result<Option<Credential>, RegistryError> {
        let mut program = Command::new("sh");
        program.arg("-c").arg(script);
        converse(program, "test", "a.example").await
    }

    #[tokio::test]
    async fn a_helper_is_asked_by_its_protocol() {
        let found = helper(
            r#"read -r host; echo "{\"ServerURL\":\"$host\",\"Username\":\"u\",\"Secret\":\"$host\"}""#,
        );
        assert_eq!(found.await.unwrap(), password("u", "a.example"));
        let found = helper(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap();
        assert_eq!(found, Some(Credential::IdentityToken("t".to_owned())));
        let none = helper("echo credentials not found in native keychain; exit 1").await;
        assert_eq!(none.unwrap(), None);
        let error = helper("echo no session >&2; exit 3").await.unwrap_err().to_string();
        assert!(error.contains("no session") && error.contains('3'), "{error}");
        for stream in ["", " >&2"] {
            let answer = format!(r#"echo '{{"Username":"u","Secret":"pa55"}}'{stream}; exit 3"#);
            let error = helper(&answer).await.unwrap_err().to_string();
            assert!(error.contains('3') && !error.contains("pa55"), "{error}");
        }
        assert!(helper("echo rubbish").await.is_err());
    }
}
