//! The hub's HTTP interface: what a model consists of, and the contents of its files.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::{Fault, RepoName};
use crate::{Error, Result};

/// The public hub; HF_ENDPOINT names another.
pub(super) const ENDPOINT: &str = "https://huggingface.co";

/// Time for a connection, and for the first byte of an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time in which at least something must arrive.
const SILENCE: Duration = Duration::from_secs(30);
/// A model's description is refused if it is longer.
const DESCRIPTION_LIMIT: u64 = 32 << 20;
/// A renamed model redirects to its new name; a loop must end.
const REDIRECTS: usize = 5;

/// A connection to a hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What the hub says about a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Remote {
    /// Names the content; safe as a file name.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

impl Remote {
    /// The content's SHA-256 in hex, which is the etag of a file in large-file storage.
    pub fn sha256(&self) -> Option<&str> {
        let is_hash = self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then_some(self.etag.as_str())
    }
}

/// The part of a model's description that is needed.
#[derive(Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    /// For the hub at `endpoint`; `certificates` is a PEM file to trust in place of Mozilla's root certificates.
    pub fn new(endpoint: &str, token: Option<String>, certificates: Option<&Path>) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/');
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::Usage(format!(
                "HF_ENDPOINT is {endpoint:?}, but an http(s):// address was expected"
            )));
        }
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Usage("the token for the hub holds characters that no token has".into()));
        }
        let roots = certificates.map(read_certificates).transpose()?.unwrap_or(RootCerts::WebPki);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("phi/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .new_agent();
        Ok(Self { agent, endpoint: endpoint.to_owned(), token })
    }

    /// The commit that "main" is at, and the names of its files, unchecked.
    pub fn describe(&self, repo: &RepoName) -> Result<(String, Vec<String>), Fault> {
        let url = format!("{}/api/models/{repo}/revision/main", self.endpoint);
        let request = self.agent.get(&url).header("accept", "application/json");
        let response = self.authorized(request).call().map_err(|error| self.unreachable(&error))?;
        let mut response = self.refused(repo, response)?;
        let body = response.body_mut().with_config().limit(DESCRIPTION_LIMIT).read_to_vec();
        let body = body.map_err(|error| self.unreachable(&error))?;
        let found: Description =
            serde_json::from_slice(&body).map_err(|error| Fault::Answer(error.to_string()))?;
        if !is_commit(&found.sha) {
            return Err(Fault::Answer(format!("{:?} is no commit", found.sha)));
        }
        Ok((found.sha, found.siblings.into_iter().map(|sibling| sibling.rfilename).collect()))
    }

    /// The etag and size of a file.
    pub fn head(&self, repo: &RepoName, commit: &str, file: &str) -> Result<Remote, Fault> {
        let mut url = self.url(repo, commit, file);
        for _ in 0..REDIRECTS {
            // What the hub itself says counts, not the storage that it redirects to.
            let request = self.agent.head(&url).header("accept-encoding", "identity");
            let request = request.config().max_redirects(0).max_redirects_will_error(false).build();
            let response = self.authorized(request).call().map_err(|error| self.unreachable(&error))?;
            let response = self.refused(repo, response)?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let linked = header("x-linked-etag").map(|etag| (etag, header("x-linked-size")));
            match linked.or_else(|| Some((header("etag")?, header("content-length")))) {
                Some((etag, size)) if linked.is_some() || !response.status().is_redirection() => {
                    return remote(etag, size);
                }
                _ => {}
            }
            let location = header("location").filter(|_| response.status().is_redirection());
            url = match location {
                Some(path) if path.starts_with('/') => format!("{}{path}", origin(&self.endpoint)),
                Some(other) if origin(other) == origin(&self.endpoint) => other.to_owned(),
                _ => return Err(Fault::Answer(format!("{file} has no etag"))),
            };
        }
        Err(Fault::Answer(format!("{file} redirects in a circle")))
    }

    /// A file's bytes from `offset` on; they begin at 0 if the server cannot do that.
    pub fn bytes(
        &self,
        repo: &RepoName,
        commit: &str,
        file: &str,
        offset: u64,
    ) -> Result<(u64, impl Read + use<>), Fault> {
        let request = self.agent.get(self.url(repo, commit, file)).header("accept-encoding", "identity");
        let request = match offset {
            0 => request,
            _ => request.header("range", format!("bytes={offset}-")),
        };
        let response = self.authorized(request).call().map_err(|error| self.unreachable(&error))?;
        let response = self.refused(repo, response)?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
                let start =
                    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                start.ok_or_else(|| Fault::Answer(format!("{file} is sent in part, without saying which")))?
            }
            _ => 0,
        };
        if start != 0 && start != offset {
            return Err(Fault::Answer(format!(
                "{file} was asked for from byte {offset}, and comes from {start}"
            )));
        }
        Ok((start, response.into_body().into_reader()))
    }

    fn url(&self, repo: &RepoName, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encoded(file))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Fault {
        let cause = match error {
            ureq::Error::Io(cause) => cause.to_string(),
            other => other.to_string(),
        };
        Fault::Unreachable { endpoint: self.endpoint.clone(), cause }
    }

    /// The fault that an answer's status stands for.
    fn refused(&self, repo: &RepoName, response: Response<Body>) -> Result<Response<Body>, Fault> {
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let page = || format!("{}/{repo}", self.endpoint);
        Err(match (status.as_u16(), code) {
            (401 | 403, Some("GatedRepo")) => Fault::Gated { page: page() },
            (404, Some("EntryNotFound")) => Fault::NoSuchFile,
            (401, None) if self.token.is_some() => Fault::TokenRefused,
            (401 | 404, _) => Fault::NoSuchRepo,
            (403, _) => Fault::Denied { page: page() },
            (other, _) => Fault::Status(other),
        })
    }
}

/// The root certificates in a PEM file.
fn read_certificates(path: &Path) -> Result<RootCerts> {
    let pem = std::fs::read(path)
        .map_err(|error| Error::io("read the certificates (SSL_CERT_FILE) in", path, error))?;
    // Entries that are no certificates are passed over, as OpenSSL does.
    let found = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(RootCerts::from(found))
}

/// An address up to its path.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[..end]
}

fn remote(etag: &str, size: Option<&str>) -> Result<Remote, Fault> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.bytes().all(is_name) {
        return Err(Fault::Answer(format!("{etag:?} is no etag")));
    }
    let size = size.and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| Fault::Answer("the size of a file is missing".into()))?;
    Ok(Remote { etag: etag.to_owned(), size })
}

/// A path as it is written in an address.
fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_safe_as_file_names() {
        let hash = "ab".repeat(32);
        let large = remote(&format!("\"{hash}\""), Some("7")).unwrap();
        assert_eq!((large.sha256(), large.size), (Some(hash.as_str()), 7));
        assert_eq!(remote("W/\"0a1b\"", Some("7")).unwrap().sha256(), None);
        let long = "a".repeat(200);
        for etag in ["", "\"\"", "../a", "a/b", "..", "a\\b", "a b", &long] {
            assert!(remote(etag, Some("7")).is_err(), "{etag:?}");
        }
        assert!(remote("a", None).is_err() && remote("a", Some("-1")).is_err());
    }

    #[test]
    fn addresses() {
        assert_eq!(encoded("a b/ü#?.gguf"), "a%20b/%C3%BC%23%3F.gguf");
        assert_eq!(origin("https://h:1/a/b"), "https://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert!(matches!(Client::new("ftp://h", None, None), Err(Error::Usage(_))));
        assert!(matches!(Client::new(ENDPOINT, Some("a\nb".into()), None), Err(Error::Usage(_))));
    }
}
