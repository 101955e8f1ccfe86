//! The accept loop: who may connect, for how long, and how the server stops.
//!
//! One task per connection. A connection has to send a whole request head within [`HEAD_LIMIT`],
//! also the first one and also on a kept connection; bodies have their own limit in `form`. At
//! most [`MAX_CONNECTIONS`] are open; more wait in the listen queue of the system.
//!
//! Stopping: the listener closes at once, requests in progress get [`DRAIN_LIMIT`].

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Time to send a request head.
pub const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// Time for requests in progress when the server stops.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// Connections open at the same time.
pub const MAX_CONNECTIONS: usize = 4_096;
/// Pause after a failed accept, for example when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers requests on `listener` until `stop` is ready, then drains.
///
/// Returns true when every request in progress was answered within [`DRAIN_LIMIT`].
pub async fn serve(listener: TcpListener, routes: Router, stop: impl Future<Output = ()>) -> bool {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
                let answer = routes.oneshot(request.map(Body::new)).await;
                answer.map_err(|never: Infallible| never)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended early: {error}");
            }
            drop(slot);
        });
    }
    drop(listener);
    tokio::time::timeout(DRAIN_LIMIT, graceful.shutdown())
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
