//! What a page in a browser may not do to a server on the same machine: reach it under a name of its own
//! (DNS rebinding), or send it forms from elsewhere (cross-site request forgery). Clients that are no
//! browsers send no `Origin`, and the host that they were given.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// By which names clients may reach the server, and which pages may change something.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Besides the names of this machine; any name when `None`.
    hosts: Option<Arc<[String]>>,
    origins: Arc<[HeaderValue]>,
}

impl Guard {
    /// `hosts` are further names of this machine, or `None` when others may reach it by any name;
    /// `origins` are those of pages that may use the server.
    pub fn new(hosts: Option<Vec<String>>, origins: Arc<[HeaderValue]>) -> Self {
        Self {
            hosts: hosts.map(Into::into),
            origins,
        }
    }

    fn refusal(&self, method: &Method, headers: &HeaderMap) -> Option<ApiError> {
        let host = headers.get(HOST).map(|host| host.to_str().unwrap_or("?"));
        if let (Some(hosts), Some(host)) = (&self.hosts, host)
            && !is_known(name_of(host), hosts)
        {
            return Some(ApiError::new(
                StatusCode::FORBIDDEN,
                "wrong_host",
                "this server answers to the names of its own machine only; if it is meant to be reached by this name \
                 (through a proxy, say), start it with --allow-host NAME",
            ));
        }
        let origin = headers.get(ORIGIN)?;
        let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let own = origin.to_str().ok().and_then(|text| text.split_once("://"));
        let own = own.is_some_and(|(_, authority)| Some(authority) == host);
        (!reads && !own && !self.origins.contains(origin)).then(|| {
            ApiError::new(
                StatusCode::FORBIDDEN,
                "wrong_origin",
                "pages of this origin may not use this server; start it with --cors-origin ORIGIN to let them",
            )
        })
    }
}

/// Lets a request through or refuses it.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.refusal(request.method(), request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_known(name: &str, hosts: &[String]) -> bool {
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(guard: &Guard, method: Method, headers: &[(&'static str, &str)]) -> Option<StatusCode> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let refusal = guard.refusal(&method, &headers.collect());
        refusal.map(|refusal| refusal.into_response().status())
    }

    #[test]
    fn only_names_of_this_machine() {
        let guard = Guard::new(Some(vec!["labels.example.org".to_owned()]), [].into());
        for host in [
            "127.0.0.1:8000",
            "localhost",
            "LOCALHOST:8000",
            "[::1]:8000",
            "127.9.9.9",
            "Labels.example.org",
        ] {
            assert_eq!(code(&guard, Method::GET, &[("host", host)]), None, "{host}");
        }
        assert_eq!(code(&guard, Method::GET, &[]), None);
        for host in [
            "evil.example",
            "192.0.2.1:8000",
            "",
            "localhost.evil.example",
        ] {
            let refused = code(&guard, Method::GET, &[("host", host)]);
            assert_eq!(refused, Some(StatusCode::FORBIDDEN), "{host}");
        }
        let open = Guard::new(None, [].into());
        assert_eq!(code(&open, Method::GET, &[("host", "evil.example")]), None);
    }

    #[test]
    fn pages_from_elsewhere_change_nothing() {
        let viewer = HeaderValue::from_static("https://viewer.example.org");
        let guard = Guard::new(None, [viewer].into());
        let host = ("host", "127.0.0.1:8000");
        for origin in ["https://viewer.example.org", "http://127.0.0.1:8000"] {
            assert_eq!(code(&guard, Method::PUT, &[host, ("origin", origin)]), None);
        }
        for origin in ["https://evil.example", "http://127.0.0.1:9000", "null"] {
            let headers = [host, ("origin", origin)];
            assert_eq!(code(&guard, Method::GET, &headers), None);
            assert_eq!(
                code(&guard, Method::POST, &headers),
                Some(StatusCode::FORBIDDEN)
            );
        }
    }
}
