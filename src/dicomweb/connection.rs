//! How a connection to the server is made: the proxy on the way, and the certificates that are trusted.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::Service;

use super::address::Address;
use super::error::WebError;

/// The way to the server, encrypted where its address says so.
pub(super) type Connector = HttpsConnector<Way>;

/// Bytes to the server, before encryption.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Direct(HttpConnector),
    /// Through a proxy that passes on what it cannot read (`CONNECT`).
    Tunnel(Tunnel<HttpConnector>),
}

/// The connector for an address; its proxy is that of the environment (`HTTPS_PROXY`, `NO_PROXY`).
///
/// # Errors
/// No certificates to trust, a proxy of another kind than `http://`.
pub(super) fn connector(address: &Address, connect: Duration) -> Result<Connector, WebError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect));
    tcp.set_nodelay(true);
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(trust(address)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(way(address, tcp)?))
}

fn way(address: &Address, tcp: HttpConnector) -> Result<Way, WebError> {
    // What is not encrypted is not shown to a proxy.
    if !address.is_encrypted() {
        return Ok(Way::Direct(tcp));
    }
    let Some(proxy) = Matcher::from_env().intercept(&address.of("/", None)?) else {
        return Ok(Way::Direct(tcp));
    };
    // Its address may hold a password, so it is not repeated.
    if proxy.uri().scheme_str() != Some("http") {
        return Err(WebError::Setup(
            "HTTPS_PROXY (or ALL_PROXY) has to begin with http://; name the DICOMweb server in NO_PROXY if it needs no proxy"
                .to_owned(),
        ));
    }
    let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
    Ok(Way::Tunnel(match proxy.basic_auth() {
        Some(login) => tunnel.with_auth(login.clone()),
        None => tunnel,
    }))
}

impl Service<Uri> for Way {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Direct(tcp) => tcp.poll_ready(context).map_err(Into::into),
            Self::Tunnel(tunnel) => tunnel.poll_ready(context).map_err(Into::into),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self {
            Self::Direct(tcp) => {
                let connecting = tcp.call(to);
                Box::pin(async { connecting.await.map_err(Into::into) })
            }
            Self::Tunnel(tunnel) => {
                let connecting = tunnel.call(to);
                Box::pin(async { connecting.await.map_err(Into::into) })
            }
        }
    }
}

/// Trusts what the system trusts. Where nothing is encrypted, no certificate is needed.
fn trust(address: &Address) -> Result<ClientConfig, WebError> {
    let fault = |error: &dyn Error| {
        WebError::Setup(format!(
            "no certificates to trust were found on this system (SSL_CERT_FILE may name a file with them): {error}"
        ))
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(&error))?;
    let config = match address.is_encrypted() {
        true => config.with_native_roots().map_err(|error| fault(&error))?,
        false => config.with_root_certificates(RootCertStore::empty()),
    };
    Ok(config.with_no_client_auth())
}

/// Why a certificate was not accepted, if that was the matter.
pub(super) fn certificate_fault(error: &(dyn Error + 'static)) -> Option<String> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(fault @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(fault.to_string());
        }
        // What an I/O error holds is not its source.
        at = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}
