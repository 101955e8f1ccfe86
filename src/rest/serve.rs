//! The accept loop: who may connect, for how long, and how the server stops.
//!
//! One task per connection. A connection has to send a whole request head within the limit, also the
//! first one and also on a kept connection, so one without a request is closed after the same time; a
//! client that stops in the middle of a body or of an answer is let go ([`super::idle`]). Only so many
//! are open; more wait in the listen queue of the system.
//!
//! Stopping: the listener closes at once, requests in progress get the time of [`Limits::drain`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::idle::{IdleBody, IdleStream};

/// Pause after a failed accept, for example when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait to be taken; the system may allow fewer.
const BACKLOG: u32 = 4_096;
/// File descriptors that connections leave to files, the database and the worker.
const SPARE_FILES: u64 = 128;

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time to send a request head, and until the next request on a kept connection.
    pub head: Duration,
    /// Longest wait for the next byte of a body, and for the client to take more of an answer.
    pub idle: Duration,
    /// Time for requests in progress when the server stops.
    pub drain: Duration,
    /// Connections open at the same time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            connections: 4_096,
        }
    }
}

impl Limits {
    /// The same limits with no more connections than the system lets this process open. Asks it first
    /// for as many files as it may have at all: the usual limit is below what a server needs.
    #[must_use]
    pub fn within_files(mut self) -> Self {
        let allowed = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: allowed.maximum,
            maximum: allowed.maximum,
        };
        let current = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => allowed.maximum,
            Err(_) => allowed.current,
        };
        if let Some(files) = current {
            // A request may need a file of its own beside its connection.
            let connections = files.saturating_sub(SPARE_FILES).max(2) / 2;
            self.connections = self
                .connections
                .min(usize::try_from(connections).unwrap_or(usize::MAX));
        }
        self
    }
}

/// Listens on an address. Up to [`BACKLOG`] connections wait to be taken: with the usual 128, of 200 clients
/// that come at the same moment some would have to try again, after a second.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted server gets the address that its forerunner's connections still hold.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers requests on `listener` until `stop` is ready, then drains.
///
/// Returns true when every request in progress was answered within the time for draining.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> bool {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            // The semaphore is never closed, so this waits and cannot fail.
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, stream) = tokio::select! {
            (slot, accepted) = accepted => match accepted {
                Ok((stream, _)) => {
                    // Answers are written whole; waiting for more to send would only delay them.
                    let _ = stream.set_nodelay(true);
                    (slot, stream)
                }
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let routes = routes.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let routes = routes.clone();
            async move {
                let request = request.map(|body| Body::new(IdleBody::new(body, limits.idle)));
                let answer = routes.oneshot(request).await;
                answer.map_err(|never: Infallible| never)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .serve_connection(TokioIo::new(IdleStream::new(stream, limits.idle)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended early: {error}");
            }
            drop(slot);
        });
    }
    drop(listener);
    tokio::time::timeout(limits.drain, graceful.shutdown())
        .await
        .is_ok()
}

/// Ready when the process is asked to stop: SIGTERM or ctrl-c.
///
/// # Errors
/// When the signals cannot be watched.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        let terminated = async { terminate.recv().await };
        #[cfg(not(unix))]
        let terminated = std::future::pending::<Option<()>>();
        tokio::select! {
            _ = terminated => {}
            // An error here means that ctrl-c cannot be watched; SIGTERM still works.
            Ok(()) = tokio::signal::ctrl_c() => {}
        }
    })
}
