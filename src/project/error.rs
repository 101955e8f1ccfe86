//! Why the project refused something.

use super::ids::IdError;
use crate::store::StoreError;

/// A refusal or failure. Whatever the variant, the state before the call is intact.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The named thing does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The request or the file in it cannot be accepted as it is.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else changed the same thing first, or a key was used for something else.
    #[error("{0}")]
    Conflict(String),
    /// More bytes than the limit.
    #[error("{0}")]
    TooLarge(String),
    /// Too little free disk space; reading still works.
    #[error("{0}")]
    NoSpace(String),
    /// The store does not answer now; repeating later is safe.
    #[error("{0}")]
    Unavailable(String),
    /// The store is damaged and read only, or cannot be read at all.
    #[error("{0}")]
    Damaged(String),
    /// A fault of this program or its disk.
    #[error("{0}")]
    Internal(String),
}

impl From<StoreError> for ProjectError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::NoSpace(_) => Self::NoSpace(text),
            StoreError::TooLarge { .. } => Self::TooLarge(text),
            StoreError::Unavailable(_) | StoreError::Held(_) => Self::Unavailable(text),
            StoreError::StaleFence(_) | StoreError::Conflict(_) => Self::Conflict(text),
            StoreError::NotFound(_) => Self::NotFound(text),
            StoreError::ReadOnly(_) | StoreError::Damaged(_) => Self::Damaged(text),
            StoreError::Newer(_) | StoreError::Internal(_) => Self::Internal(text),
        }
    }
}

impl From<IdError> for ProjectError {
    fn from(error: IdError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<std::io::Error> for ProjectError {
    fn from(error: std::io::Error) -> Self {
        StoreError::from(error).into()
    }
}
