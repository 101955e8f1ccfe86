//! Requests to the one server, with time limits, and when they are repeated.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::address::Address;
use super::connection::{self, Connector};
use super::credentials::Credentials;
use super::error::WebError;

/// A body that is sent; it may be a stream.
pub type RequestBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// Idle connections that are kept.
const KEPT_CONNECTIONS: usize = 8;
/// A server may ask for a longer pause than this, but does not get it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// How long is waited, and how often is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How often a request is sent at most.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles from there on.
    pub first_pause: Duration,
    /// For a connection.
    pub connect: Duration,
    /// Until the first byte of an answer: an archive may have to fetch from tape.
    pub answer: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            attempts: 4,
            first_pause: Duration::from_millis(500),
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(120),
            idle: Duration::from_secs(30),
        }
    }
}

/// A client of one server.
pub(super) struct Client {
    pub address: Address,
    pool: Pool<Connector, RequestBody>,
    credentials: Credentials,
    pub pace: Pace,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(address: Address, credentials: Credentials, pace: Pace) -> Result<Self, WebError> {
        if address.is_open() && credentials.is_some() {
            tracing::warn!(
                "the login for the DICOMweb server and all patients are sent without encryption; use its https address"
            );
        }
        let connector = connection::connector(&address, pace.connect)?;
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(KEPT_CONNECTIONS)
            .build(connector);
        Ok(Self {
            address,
            pool,
            credentials,
            pace,
        })
    }

    /// Sends a request once and returns the answer, whatever its status, unless it leads elsewhere.
    ///
    /// # Errors
    /// No answer in time; a redirect.
    pub async fn once(
        &self,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: RequestBody,
    ) -> Result<Response<Incoming>, WebError> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(value) = self.credentials.header()? {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let answer = self.pool.request(request);
        let answer = tokio::time::timeout(self.pace.answer, answer)
            .await
            .map_err(|_| WebError::Silent(self.pace.answer.as_secs()))?
            .map_err(|error| match connection::certificate_fault(&error) {
                Some(fault) => WebError::Certificate(fault),
                None if error.is_connect() => WebError::Unreachable(innermost(&error)),
                None => WebError::Cut,
            })?;
        let status = answer.status();
        // 304 is an answer to a condition of the client.
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            return Err(WebError::Redirect(status.as_u16()));
        }
        Ok(answer)
    }

    /// GET, once; the answer is a success.
    ///
    /// # Errors
    /// As [`Client::once`], and every other status.
    pub async fn get(
        &self,
        uri: Uri,
        accept: &'static str,
    ) -> Result<Response<Incoming>, WebError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        succeeded(self.once(Method::GET, uri, headers, body).await?)
    }

    /// POST of bytes, once; the answer is a success.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(
        &self,
        uri: Uri,
        (content_type, body): (&str, Bytes),
        accept: &'static str,
    ) -> Result<Response<Incoming>, WebError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let content_type = HeaderValue::from_str(content_type)
            .map_err(|_| WebError::Answer("a content type that cannot be".to_owned()))?;
        headers.insert(CONTENT_TYPE, content_type);
        let body = Full::new(body)
            .map_err(|never| match never {})
            .boxed_unsync();
        succeeded(self.once(Method::POST, uri, headers, body).await?)
    }

    /// The next bytes of an answer; none at its end.
    ///
    /// # Errors
    /// [`WebError::Silent`] and [`WebError::Cut`].
    pub async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, WebError> {
        loop {
            let frame = tokio::time::timeout(self.pace.idle, body.frame())
                .await
                .map_err(|_| WebError::Silent(self.pace.idle.as_secs()))?;
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(WebError::Cut),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// A whole answer of at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`Client::next`]; a longer answer.
    pub async fn whole(&self, mut body: Incoming, limit_bytes: usize) -> Result<Vec<u8>, WebError> {
        let too_long = || WebError::Answer(format!("it has more than {limit_bytes} bytes"));
        if body.size_hint().lower() > limit_bytes as u64 {
            return Err(too_long());
        }
        let mut all = Vec::new();
        while let Some(bytes) = self.next(&mut body).await? {
            if all.len() + bytes.len() > limit_bytes {
                return Err(too_long());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// For a request that may be repeated.
    pub fn attempts(&self) -> Attempts {
        Attempts {
            left: self.pace.attempts.saturating_sub(1),
            pause: self.pace.first_pause,
        }
    }
}

/// Attempts that are left for a request.
#[derive(Debug)]
pub(super) struct Attempts {
    left: u32,
    pause: Duration,
}

impl Attempts {
    /// Waits until the next attempt.
    ///
    /// # Errors
    /// The failure itself, when it is there to stay or was met often enough.
    pub async fn after(&mut self, error: WebError) -> Result<(), WebError> {
        if !error.is_passing() || self.left == 0 {
            return Err(error);
        }
        tracing::debug!("asked again in a moment: {error}");
        let asked = match &error {
            WebError::Busy { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        tokio::time::sleep(self.pause.max(asked)).await;
        self.pause *= 2;
        self.left -= 1;
        Ok(())
    }
}

/// An answer with a status of success.
fn succeeded(answer: Response<Incoming>) -> Result<Response<Incoming>, WebError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let number = status.as_u16();
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => WebError::Login(number),
        StatusCode::NOT_FOUND | StatusCode::GONE => WebError::NotFound,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => busy(&answer),
        StatusCode::NOT_IMPLEMENTED => WebError::Refused(number),
        _ if status.is_server_error() => busy(&answer),
        _ => WebError::Refused(number),
    })
}

fn busy(answer: &Response<Incoming>) -> WebError {
    let seconds = answer.headers().get(RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    WebError::Busy {
        status: answer.status().as_u16(),
        retry_after: seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER)),
    }
}

/// The cause below all others: the system's words, without the address.
fn innermost(error: &dyn Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
