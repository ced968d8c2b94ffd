//! One question to one host: authorization, redirects, and what the status means.
//!
//! Redirects are followed here and not by the HTTP client, because what convinced the registry is
//! nobody else's business: another origin gets neither `Authorization` nor the configured headers.

use std::ops::Range;
use std::time::{Instant, SystemTime};

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::auth::Visit;
use super::clients::is_loopback;
use super::endpoint::{Endpoint, authority, is_plain, without_user};
use super::{RegistryError, Shared, retry};

/// Redirects in a row that are followed.
const REDIRECTS_MOST: usize = 5;

/// How much of an error's body is shown.
const DETAIL_CHARS_MOST: usize = 300;

/// What is shorter stands in every answer.
const SECRET_CHARS_LEAST: usize = 4;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The repository.
    pub(super) repository: String,
    /// The rest of the path: `blobs/...` or `manifests/...`.
    pub(super) path: String,
    /// In words, for errors.
    pub(super) what: String,
    /// The media types that are understood.
    pub(super) accept: Option<&'static str>,
    /// A part of a blob; `None` asks for the whole.
    pub(super) range: Option<Range<u64>>,
    /// What the blob's ETag has to be still.
    pub(super) if_range: Option<String>,
}

/// An answer that may be read: status 200 or 206.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Where it came from in the end.
    pub(super) url: Url,
    /// When a challenge was answered on the way, if there was one.
    pub(super) challenged: Option<(Instant, Instant)>,
}

/// Asks `endpoint`, at the address that the specification gives it.
///
/// # Errors
/// By the status; where no answer comes in time; where authorization or a redirect fails.
pub(super) async fn ask(
    shared: &Shared,
    endpoint: &Endpoint,
    question: &Question,
) -> Result<Answer, RegistryError> {
    let scope = endpoint.scope(&question.repository, &question.what);
    let url = address(endpoint, &question.repository, &question.path)?;
    let mut visit = Visit::begin();
    let mut challenged: Option<(Instant, Instant)> = None;
    loop {
        let authorization = shared.authorizer.current(&shared.clients, scope, &mut visit).await?;
        let (response, origin) = {
            let mut hop = Hop { shared, endpoint, question, authorization: authorization.as_ref() };
            hop.follow(url.clone()).await?
        };
        let status = response.status();
        let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if !(refused && same_origin(&origin, &endpoint.config.base)) {
            shared.authorizer.accepted(scope, &visit);
            let answer = judge(response, origin, endpoint, question).await?;
            return Ok(Answer { challenged, ..answer });
        }
        let from = Instant::now();
        let headers = response.headers();
        let answer = shared.authorizer.refused(&shared.clients, scope, &mut visit, status, headers);
        let answer = answer.await;
        shared.settings.metrics.authorized(from.elapsed().as_secs_f64());
        challenged = Some((challenged.map_or(from, |(first, _)| first), Instant::now()));
        answer?;
    }
}

/// Asks at the address that an earlier redirect led to.
///
/// # Errors
/// As [`ask`]; any refusal means that the address is no longer good.
pub(super) async fn ask_at(
    shared: &Shared,
    endpoint: &Endpoint,
    question: &Question,
    url: Url,
) -> Result<Answer, RegistryError> {
    let mut hop = Hop { shared, endpoint, question, authorization: None };
    let (response, origin) = hop.follow(url).await?;
    judge(response, origin, endpoint, question).await
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// The address of `rest` in a repository's part of the API.
pub(super) fn address(
    endpoint: &Endpoint,
    repository: &str,
    rest: &str,
) -> Result<Url, RegistryError> {
    let mut url = endpoint.config.base.clone();
    let root = url.path().trim_end_matches('/');
    let path = format!("{root}/{repository}/{rest}");
    url.set_path(&path);
    if let Some(registry) = &endpoint.stands_for {
        // How containerd tells a mirror of several registries which one is meant.
        url.query_pairs_mut().append_pair("ns", registry);
    }
    // A repository of dots would leave the API's root.
    if url.path() == path {
        Ok(url)
    } else {
        Err(RegistryError::Reference {
            reference: repository.to_owned(),
            problem: "it is not the name of a repository".to_owned(),
        })
    }
}

/// Where an answer of `asked` sends the one who asked.
///
/// # Errors
/// Where that is no address, or leads from HTTPS to something else.
pub(super) fn location(
    shared: &Shared,
    response: &Response,
    asked: &Url,
    what: &str,
) -> Result<Url, RegistryError> {
    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let shown = target.map(|t| without_user(t.split('?').next().unwrap_or_default()));
    let refuse = |problem: &str| RegistryError::Redirect {
        host: authority(asked),
        what: what.to_owned(),
        target: shown.clone().unwrap_or_else(|| "nowhere".to_owned()),
        problem: problem.to_owned(),
    };
    let url = target.and_then(|target| asked.join(target).ok());
    let url = url.ok_or_else(|| refuse("it is not an address"))?;
    let open = asked.scheme() == "http" || is_loopback(&url) || is_plain(&shared.settings, &url);
    match url.scheme() {
        "https" => Ok(url),
        "http" if open => Ok(url),
        _ => Err(refuse("it leads from HTTPS to something else")),
    }
}

/// A request to `url` with the configured headers and the authorization, which only the endpoint's own
/// origin gets. A configured `Authorization` goes first.
pub(super) fn introduced(
    mut request: RequestBuilder,
    url: &Url,
    endpoint: &Endpoint,
    authorization: Option<&super::auth::Authorization>,
) -> RequestBuilder {
    if same_origin(url, &endpoint.config.base) {
        request = request.headers(endpoint.config.header.clone());
        if let Some(authorization) = authorization
            && !endpoint.config.header.contains_key(AUTHORIZATION)
        {
            request = authorization.apply(request);
        }
    }
    request
}

/// The secrets that a request carried, noted with its answer, which may repeat them.
#[derive(Clone)]
struct Secrets(Vec<String>);

/// Notes with an answer what its request was [`introduced`] with.
pub(super) fn note_secrets(
    response: &mut Response,
    endpoint: &Endpoint,
    authorization: Option<&super::auth::Authorization>,
) {
    let mut secrets = authorization.map(super::auth::Authorization::secrets).unwrap_or_default();
    for value in endpoint.config.header.values().filter_map(|value| value.to_str().ok()) {
        // A scheme before it is none: "Basic", "Bearer".
        secrets.push(value.rsplit(' ').next().unwrap_or(value).to_owned());
    }
    response.extensions_mut().insert(Secrets(secrets));
}

struct Hop<'a> {
    shared: &'a Shared,
    endpoint: &'a Endpoint,
    question: &'a Question,
    authorization: Option<&'a super::auth::Authorization>,
}

impl Hop<'_> {
    /// Asks at `url` and wherever it redirects to; returns where the answer came from.
    async fn follow(&mut self, mut url: Url) -> Result<(Response, Url), RegistryError> {
        for _ in 0..=REDIRECTS_MOST {
            let response = self.send(&url).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, url));
            }
            url = location(self.shared, &response, &url, &self.question.what)?;
        }
        Err(RegistryError::Redirect {
            host: self.endpoint.name.clone(),
            what: self.question.what.clone(),
            target: authority(&url),
            problem: format!("more than {REDIRECTS_MOST} redirects in a row"),
        })
    }

    async fn send(&self, url: &Url) -> Result<Response, RegistryError> {
        let client = self.shared.clients.client(url, Some(&self.endpoint.config))?;
        // The digest is that of the bytes as they lie in the registry.
        let request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        let mut request = introduced(request, url, self.endpoint, self.authorization);
        if let Some(accept) = self.question.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = &self.question.range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            if let Some(etag) = &self.question.if_range {
                request = request.header(IF_RANGE, etag);
            }
        }
        let what = || (authority(url), self.question.what.clone());
        let stall = self.shared.settings.stall_timeout;
        let asked = Instant::now();
        let patience = stall + self.shared.settings.connect_timeout;
        let answer = tokio::time::timeout(patience, request.send()).await;
        let code = match &answer {
            Ok(Ok(response)) => response.status().as_str().to_owned(),
            Ok(Err(_)) => "error".to_owned(),
            Err(_) => "timeout".to_owned(),
        };
        let metrics = &self.shared.settings.metrics;
        metrics.answered(&authority(url), &code, asked.elapsed().as_secs_f64());
        match answer {
            Ok(Ok(mut response)) => {
                note_secrets(&mut response, self.endpoint, self.authorization);
                Ok(response)
            }
            Ok(Err(source)) => {
                let (host, what) = what();
                Err(RegistryError::Send { host, what, source: source.without_url() })
            }
            Err(_) => {
                let (host, what) = what();
                Err(RegistryError::Stalled { host, what, after: stall })
            }
        }
    }
}

/// Turns every status but 200 and 206 into an error.
async fn judge(
    response: Response,
    url: Url,
    endpoint: &Endpoint,
    question: &Question,
) -> Result<Answer, RegistryError> {
    let status = response.status();
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
        return Ok(Answer { response, url, challenged: None });
    }
    let own = same_origin(&url, &endpoint.config.base);
    let host = authority(&url);
    let what = question.what.clone();
    if status == StatusCode::NOT_FOUND && own {
        return Err(RegistryError::NotFound { host, what });
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Err(RegistryError::Range {
            host,
            what,
            asked: question.range.as_ref().map(shown).unwrap_or_default(),
            answered: content_range(&response),
        });
    }
    Err(refusal(response, host, what, own).await)
}

/// An answer as the error that it is. Of an `own` host all that it says is shown, of the storage behind
/// one what may be.
pub(super) async fn refusal(
    mut response: Response,
    host: String,
    what: String,
    own: bool,
) -> RegistryError {
    let status = response.status().as_u16();
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = after.and_then(|v| retry::parse_retry_after(v, SystemTime::now()));
    // A word from the host is worth a short wait, not more.
    let wait = std::time::Duration::from_secs(1);
    let first = tokio::time::timeout(wait, response.chunk()).await;
    let first = first.ok().and_then(Result::ok).flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&first);
    let mut text = if own { text.into_owned() } else { of_storage(&text) };
    // Before it is cut, which could leave half of one.
    for secret in response.extensions().get::<Secrets>().iter().flat_map(|secrets| &secrets.0) {
        if secret.len() >= SECRET_CHARS_LEAST {
            text = text.replace(secret.as_str(), "…");
        }
    }
    let text = text.chars().take(DETAIL_CHARS_MOST);
    let text: String = text.map(|c| if c.is_control() { ' ' } else { c }).collect();
    let detail = if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) };
    RegistryError::Status { host, what, status, detail, retry_after }
}

/// What may be shown of an error of the storage that a registry redirects to: what it calls the
/// error, and its sentence. Around them stores repeat the request, with the presigned query that
/// let it in: S3 and GCS in `CanonicalRequest` and `StringToSign`, Azure in
/// `AuthenticationErrorDetail`. An answer of another form may do so anywhere.
fn of_storage(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
    };
    let said = [element("Code"), element("Message")];
    said.into_iter().flatten().collect::<Vec<_>>().join(": ")
}

/// A range as it stands in a request.
pub(super) fn shown(range: &Range<u64>) -> String {
    format!("{}-{}", range.start, range.end.saturating_sub(1))
}

/// The answer's Content-Range, for an error.
pub(super) fn content_range(response: &Response) -> String {
    let field = response.headers().get(reqwest::header::CONTENT_RANGE);
    field.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_quoted_without_the_request() {
        let s3 = "<?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>The signature does \
                  not match.</Message><StringToSign>X-Amz-Security-Token=secret</StringToSign></Error>";
        assert_eq!(of_storage(s3), "SignatureDoesNotMatch: The signature does not match.");
        assert_eq!(of_storage("<Error><Code>AccessDenied</Code>"), "AccessDenied");
        assert_eq!(of_storage("cannot serve /blob?sig=secret"), "");
    }
}
