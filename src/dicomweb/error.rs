//! What can go wrong with a DICOMweb server. No text names a patient, a path or a query.

use std::io;
use std::time::Duration;

/// A failure; nothing half-written is left after any of them.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address, the filter or the credentials cannot be.
    #[error("{0}")]
    Setup(String),
    /// Nobody answers.
    #[error("the DICOMweb server cannot be reached ({0}); look whether it runs, and repeat later")]
    Unreachable(String),
    /// It is not who it should be, or nobody vouches for it.
    #[error(
        "the DICOMweb server's certificate is not accepted ({0}); --studies has to name the host that the certificate is for, and SSL_CERT_FILE the certificates (PEM) of an authority that this system does not trust by itself"
    )]
    Certificate(String),
    /// It did not answer in time.
    #[error("the DICOMweb server did not answer within {0} s; repeat later")]
    Silent(u64),
    /// The connection ended inside of an answer.
    #[error("the DICOMweb server's answer was cut off; nothing of it was kept, repeat later")]
    Cut,
    /// 401 or 403.
    #[error(
        "the DICOMweb server refuses the login ({0}); see the environment variables for its credentials in the README"
    )]
    Login(u16),
    /// 404 or 410.
    #[error(
        "the DICOMweb server does not have it (any more), or --studies names another address than that of its DICOMweb service"
    )]
    NotFound,
    /// It is busy or failed; repeating may help.
    #[error("the DICOMweb server failed ({status}); repeat later")]
    Busy {
        /// The status.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Another status.
    #[error("the DICOMweb server refused the request ({0})")]
    Refused(u16),
    /// An answer that leads elsewhere.
    #[error(
        "the DICOMweb server redirects ({0}), which is not followed; give its final address as --studies"
    )]
    Redirect(u16),
    /// An answer that cannot be used.
    #[error("the DICOMweb server's answer cannot be used: {0}")]
    Answer(String),
    /// A path that is not passed on.
    #[error("this path is not passed on to the DICOMweb server: {0}")]
    Path(&'static str),
    /// The disk did not take a copy.
    #[error("the copy of a series could not be written or read: {0}")]
    Disk(#[from] io::Error),
}

impl WebError {
    /// Whether the same request may succeed a moment later.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Silent(_) | Self::Cut | Self::Busy { .. }
        )
    }
}
