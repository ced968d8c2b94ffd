//! How a registry says that it wants to be convinced (RFC 9110, section 11).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// How a registry wants to be convinced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Picks the best challenge out of the `WWW-Authenticate` fields: `Bearer` before `Basic`.
pub(super) fn parse_challenges(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    let (service, scope) = (param("service"), param("scope"));
                    return Some(Challenge::Bearer { realm, service, scope });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(fields: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, field.parse().unwrap());
        }
        parse_challenges(&headers)
    }

    #[test]
    fn bearer_goes_before_basic() {
        let bearer = challenge(&[
            "Basic realm=\"x\"",
            "bearer realm=\"https://auth.example/t\", Service=\"r\",scope=\"repository:a/b:pull\"",
        ]);
        let expected = Challenge::Bearer {
            realm: "https://auth.example/t".to_owned(),
            service: Some("r".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        assert_eq!(bearer, Some(expected));
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate realm=\"x\"", "Bearer scope=\"x\""]), None);
        assert_eq!(challenge(&[]), None);
    }
}
