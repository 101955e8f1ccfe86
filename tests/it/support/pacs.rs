//! A small DICOMweb server that fails when it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{io, vec};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Sleep;

use super::dicom::{CANARIES, slice};

/// Below which path the service is.
const BASE: &str = "/dicom-web";
const BOUNDARY: &str = "a-boundary";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// This status instead of an answer.
    Status(u16),
    /// The connection ends after so many parts, inside of the next one.
    CutAfter(usize),
    /// To another server.
    Redirect,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Below the address, with the query.
    pub path: String,
    pub accept: String,
    pub authorization: String,
    pub has_cookie: bool,
}

#[derive(Default)]
pub struct Archive {
    /// Number of a series, and how many slices it has.
    pub series: BTreeMap<u32, usize>,
    /// The next request whose path holds the text, or ends with it where that ends with `$`, gets the fault.
    pub faults: Vec<(&'static str, Fault)>,
    /// Every request gets this status.
    pub down: Option<u16>,
    /// Whoever does not show this is refused.
    pub authorization: Option<&'static str>,
    pub asked: Vec<Asked>,
    /// Study, and the file that was stored there.
    pub stored: Vec<(String, Vec<u8>)>,
}

impl Archive {
    /// How many requests had such a path.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let fits = |asked: &&Asked| asked.method == method && asked.path.contains(part);
        self.asked.iter().filter(fits).count()
    }
}

/// The running server.
pub struct FakePacs {
    address: SocketAddr,
    archive: Arc<Mutex<Archive>>,
}

impl FakePacs {
    pub async fn start(series: &[(u32, usize)]) -> Self {
        let archive = Archive {
            series: series.iter().copied().collect(),
            ..Archive::default()
        };
        let archive = Arc::new(Mutex::new(archive));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new()
            .fallback(answer)
            .with_state(archive.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, archive }
    }

    pub fn url(&self) -> String {
        format!("http://{}{BASE}", self.address)
    }

    pub fn archive(&self) -> MutexGuard<'_, Archive> {
        self.archive.lock().unwrap()
    }
}

/// The Series Instance UID of a series of `support::dicom`.
pub fn series_uid(series: u32) -> String {
    format!("1.2.826.0.1.3680043.10.999.{series}.2")
}

async fn answer(State(archive): State<Arc<Mutex<Archive>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 26).await.unwrap();
    let header = |name: HeaderName| {
        let value = parts.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap()).to_owned()
    };
    let full = parts.uri.path_and_query().unwrap().as_str();
    let path = full.strip_prefix(BASE).unwrap_or(full).to_owned();
    let asked = Asked {
        method: parts.method.to_string(),
        path: path.clone(),
        accept: header(ACCEPT),
        authorization: header(AUTHORIZATION),
        has_cookie: parts.headers.contains_key("cookie"),
    };
    let mut archive = archive.lock().unwrap();
    let refused = archive
        .authorization
        .is_some_and(|wanted| wanted != asked.authorization);
    archive.asked.push(asked);
    if refused {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Some(status) = archive.down {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let fault = archive
        .faults
        .iter()
        .position(|(part, _)| match part.strip_suffix('$') {
            Some(end) => path.ends_with(end),
            None => path.contains(part),
        });
    let mut cut = None;
    match fault.map(|at| archive.faults.remove(at).1) {
        Some(Fault::Status(status)) => {
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        Some(Fault::Redirect) => {
            let elsewhere = [(LOCATION, "http://elsewhere.invalid/")];
            return (StatusCode::FOUND, elsewhere).into_response();
        }
        Some(Fault::CutAfter(count)) => cut = Some(count),
        None => {}
    }
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let known = |uid: &str| {
        let number = uid.strip_prefix("1.2.826.0.1.3680043.10.999.")?;
        let number: u32 = number.strip_suffix(".2")?.parse().ok()?;
        archive.series.get(&number).map(|count| (number, *count))
    };
    match (parts.method.as_str(), segments.as_slice()) {
        ("GET", ["series"]) => {
            let rows = archive.series.iter().map(|(n, count)| row(*n, *count));
            page(rows.collect(), query)
        }
        ("GET", ["studies"]) => page(vec![json!({"query": query})], ""),
        ("GET", ["studies", _, "series", series, rest @ ..]) => match (known(series), rest) {
            (None, _) => StatusCode::NOT_FOUND.into_response(),
            (Some((n, count)), ["instances"]) => {
                let rows = (0..count).map(|k| {
                    json!({"00080018": {"vr": "UI", "Value": [sop_uid(n, k)]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": CANARIES[0]}]}})
                });
                page(rows.collect(), query)
            }
            (Some((n, count)), []) => parts_of((0..count).map(|k| slice(n, k)).collect(), cut),
            (Some((n, count)), ["instances", uid]) => {
                match (0..count).find(|k| sop_uid(n, *k) == *uid) {
                    Some(k) => parts_of(vec![slice(n, k)], cut),
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        },
        ("POST", ["studies", study]) => {
            let study = (*study).to_owned();
            archive.stored.push((study, body.to_vec()));
            let stored = json!({"00081199": {"vr": "SQ", "Value": [{}]}});
            json_answer(&stored)
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn sop_uid(series: u32, number: usize) -> String {
    format!("1.2.826.0.1.3680043.10.999.{series}.3.{}", number + 1)
}

fn row(series: u32, count: usize) -> Value {
    json!({
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": CANARIES[0]}]},
        "00100020": {"vr": "LO", "Value": [format!("{}-{series}", CANARIES[1])]},
        "00100030": {"vr": "DA", "Value": [CANARIES[2]]},
        "0020000D": {"vr": "UI", "Value": [format!("1.2.826.0.1.3680043.10.999.{series}.1")]},
        "0020000E": {"vr": "UI", "Value": [series_uid(series)]},
        "00201209": {"vr": "IS", "Value": [count]},
    })
}

/// At most 25 matches, whatever was asked for; 204 when there are none.
fn page(rows: Vec<Value>, query: &str) -> Response {
    let number = |name: &str| {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(name));
        pair.map(|value| value.trim_start_matches('=').parse::<usize>().unwrap())
    };
    let limit = number("limit").unwrap_or(25).min(25);
    let rows: Vec<Value> = rows
        .into_iter()
        .skip(number("offset").unwrap_or(0))
        .take(limit)
        .collect();
    if rows.is_empty() {
        return StatusCode::NO_CONTENT.into_response();
    }
    json_answer(&json!(rows))
}

fn json_answer(value: &Value) -> Response {
    let kind = [(CONTENT_TYPE, "application/dicom+json")];
    (kind, value.to_string()).into_response()
}

fn parts_of(files: Vec<Vec<u8>>, cut: Option<usize>) -> Response {
    let mut chunks = Vec::new();
    let whole = files.len();
    for (n, file) in files.into_iter().enumerate() {
        let mut chunk =
            format!("--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n").into_bytes();
        chunk.extend(file);
        chunk.extend(b"\r\n");
        if cut == Some(n) {
            chunk.truncate(chunk.len() / 2);
        }
        chunks.push(Ok(chunk));
        if cut == Some(n) {
            chunks.push(Err(io::Error::other("cut")));
            break;
        }
    }
    if cut.is_none_or(|cut| cut >= whole) {
        chunks.push(Ok(format!("--{BOUNDARY}--\r\n").into_bytes()));
    }
    let kind = format!("multipart/related; type=\"application/dicom\"; boundary=\"{BOUNDARY}\"");
    let pause = Box::pin(tokio::time::sleep(Duration::from_millis(100)));
    let body = Frames(chunks.into_iter(), pause);
    ([(CONTENT_TYPE, kind)], Body::new(body)).into_response()
}

/// Pieces of a body. Before the connection is cut there is a pause, in which what came before it is sent.
struct Frames(vec::IntoIter<io::Result<Vec<u8>>>, Pin<Box<Sleep>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Self(pieces, pause) = self.get_mut();
        if matches!(pieces.as_slice(), [Err(_), ..]) {
            ready!(pause.as_mut().poll(context));
        }
        let next = pieces.next();
        Poll::Ready(next.map(|piece| piece.map(|bytes| Frame::data(bytes.into()))))
    }
}
