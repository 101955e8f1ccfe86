//! What `serve` was asked to do, checked: every later part can rely on it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// Why a server cannot be started like this. All of these are usage errors.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The studies folder is not there.
    #[error(
        "--studies {0}: this is not a folder; give the folder that holds the images (*.nii.gz, *.nii, *.nrrd, DICOM series), or the address of a DICOMweb server"
    )]
    Studies(PathBuf),
    /// The host name has no address.
    #[error("--host {0}: no address is known for this name")]
    Host(String),
    /// Everybody in the network could read and change the data.
    #[error(
        "--host {0} lets other machines in, and this server has no login: whoever reaches it can read \
         and change everything. Use 127.0.0.1 behind a proxy with login, or spell --insecure in a network you trust"
    )]
    Open(IpAddr),
}

/// What a user gave, as text.
#[derive(Clone, Debug)]
pub struct RawServeConfig {
    /// Folder with the images, or an address.
    pub studies: String,
    /// Folder for everything this server writes.
    pub data: Option<PathBuf>,
    /// Name or address to listen on.
    pub host: String,
    /// Port to listen on; 0 for any free one.
    pub port: u16,
    /// Listen beyond this machine without a login.
    pub insecure: bool,
    /// `/infer` requests that may wait at the same time.
    pub infer_slots: usize,
    /// Largest file that may be uploaded, in bytes.
    pub upload_limit_bytes: u64,
}

/// Where the images are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StudiesAt {
    /// Existing folder; never written to, except for the data folder when it is inside.
    Folder(PathBuf),
    /// Address of a DICOMweb server, unchecked.
    DicomWeb(String),
}

impl StudiesAt {
    /// The folder, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::DicomWeb(_) => None,
        }
    }
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where the images are.
    pub studies: StudiesAt,
    /// Folder for everything this server writes.
    pub data: PathBuf,
    /// Where to listen.
    pub address: SocketAddr,
    /// `/infer` requests that may wait at the same time.
    pub infer_slots: usize,
    /// Largest file that may be uploaded, in bytes.
    pub upload_limit_bytes: u64,
}

impl ServeConfig {
    /// Checks what a user gave. The data folder is `.fewlabel` in the studies folder unless given; with a DICOMweb server, in
    /// the current one.
    ///
    /// # Errors
    /// [`ConfigError`], with what to do instead.
    pub fn check(raw: RawServeConfig) -> Result<Self, ConfigError> {
        let is_address = ["http://", "https://"]
            .iter()
            .any(|scheme| raw.studies.starts_with(scheme));
        let studies = if is_address {
            StudiesAt::DicomWeb(raw.studies)
        } else {
            let folder = Path::new(&raw.studies);
            match folder.canonicalize() {
                Ok(folder) if folder.is_dir() => StudiesAt::Folder(folder),
                _ => return Err(ConfigError::Studies(folder.to_owned())),
            }
        };
        let ip = match raw.host.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) if raw.host == "localhost" => Ipv4Addr::LOCALHOST.into(),
            Err(_) => (raw.host.as_str(), raw.port)
                .to_socket_addrs()
                .ok()
                .and_then(|mut found| found.next())
                .ok_or(ConfigError::Host(raw.host))?
                .ip(),
        };
        if !ip.is_loopback() && !raw.insecure {
            return Err(ConfigError::Open(ip));
        }
        Ok(Self {
            data: raw.data.unwrap_or_else(|| {
                let beside = studies.folder().unwrap_or(Path::new("."));
                beside.join(".fewlabel")
            }),
            studies,
            address: SocketAddr::new(ip, raw.port),
            infer_slots: raw.infer_slots.max(1),
            upload_limit_bytes: raw.upload_limit_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(studies: &str, host: &str) -> RawServeConfig {
        RawServeConfig {
            studies: studies.to_owned(),
            data: None,
            host: host.to_owned(),
            port: 0,
            insecure: false,
            infer_slots: 4,
            upload_limit_bytes: 1 << 20,
        }
    }

    #[test]
    fn other_machines_need_a_spelled_permission() {
        let dir = tempfile::tempdir().unwrap();
        let studies = dir.path().to_str().unwrap();
        for host in ["127.0.0.1", "::1", "localhost", "127.9.9.9"] {
            let config = ServeConfig::check(raw(studies, host)).unwrap();
            assert!(config.address.ip().is_loopback(), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.0.2.1"] {
            let refused = ServeConfig::check(raw(studies, host)).unwrap_err();
            assert!(matches!(refused, ConfigError::Open(_)), "{host}");
            let insecure = RawServeConfig {
                insecure: true,
                ..raw(studies, host)
            };
            assert!(ServeConfig::check(insecure).is_ok());
        }
    }

    #[test]
    fn studies_have_to_be_a_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for studies in ["/no/such/folder", file.path().to_str().unwrap()] {
            let refused = ServeConfig::check(raw(studies, "127.0.0.1")).unwrap_err();
            assert!(matches!(refused, ConfigError::Studies(_)));
        }
        let config = ServeConfig::check(raw("https://pacs/dicom-web", "127.0.0.1")).unwrap();
        let address = "https://pacs/dicom-web".to_owned();
        assert_eq!(config.studies, StudiesAt::DicomWeb(address));
    }
}
