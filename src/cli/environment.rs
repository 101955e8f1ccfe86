//! MONAI Label's environment variables, as far as they mean something to this server.
//!
//! Every variable of the release 0.8.5 is in [`USED`] or, with the reason, in [`IGNORED`]. One that asks for
//! protection that is not there ends the start instead of being ignored. Options of the command line win.

use std::collections::BTreeMap;

use axum::http::HeaderValue;

use super::Usage;
use crate::rest::Offers;

/// All of them begin with this, but those of [`OF_MODELS`].
const PREFIX: &str = "MONAI_LABEL_";
/// Where models are loaded from.
const OF_MODELS: [&str; 2] = ["MONAI_ZOO_", "MONAI_SAM_"];
/// The original takes an expiry of a minute or less for its default.
const SHORTEST_EXPIRY_S: u32 = 60;

/// What is read, by clap as another spelling of an option or by [`Settings::read`].
const USED: &[&str] = &[
    "API_STR",
    "AUTH_ENABLE",
    "CORS_ORIGINS",
    "DATASTORE_AUTO_RELOAD",
    "DICOMWEB_PASSWORD",
    "DICOMWEB_USERNAME",
    "SERVER_PORT",
    "SESSIONS",
    "SESSION_EXPIRY",
    "STUDIES",
    "TASKS_BATCH_INFER",
    "TASKS_SCORING",
    "TASKS_STRATEGY",
    "TASKS_TRAIN",
];

/// What does nothing here, by the reason why. A name that ends with `_` stands for all that begin so.
const IGNORED: &[(&str, &[&str])] = &[
    (
        "models are chosen with --model, and none is loaded from elsewhere",
        &["APP_DIR", "APP_CONF"],
    ),
    (
        "it is a title for the original's pages only",
        &["PROJECT_NAME"],
    ),
    (
        "sessions are kept in the data folder, see --data",
        &["SESSION_PATH"],
    ),
    (
        "scores are computed when they are asked for",
        &["AUTO_UPDATE_SCORING"],
    ),
    (
        "one worker computes; --infer-queue says how many may wait",
        &["INFER_CONCURRENCY"],
    ),
    (
        "an inference ends when its client leaves",
        &["INFER_TIMEOUT"],
    ),
    (
        "the studies folder is never written to",
        &["DATASTORE_READ_ONLY"],
    ),
    (
        "*.nii.gz, *.nii and *.nrrd are read",
        &["DATASTORE_FILE_EXT"],
    ),
    (
        "labels are kept in the data folder, see --data",
        &["DATASTORE", "DATASTORE_"],
    ),
    (
        "the course of a round is in /train/, and nothing is sent elsewhere",
        &["TRACKING_"],
    ),
    ("there is no login", &["AUTH_"]),
    (
        "what is taken from a DICOMweb server and kept is chosen with --filter, --poll-s and --cache-gib",
        &["DICOMWEB_"],
    ),
    (
        "--studies is the one address of all services of a DICOMweb server",
        &["QIDO_PREFIX", "STOW_PREFIX", "WADO_PREFIX"],
    ),
    (
        "DICOM objects are written by this program itself, see --store-as",
        &["USE_ITK_FOR_DICOM_SEG"],
    ),
];

/// Why a variable does nothing; `None` for those that are used.
fn reason(name: &str) -> Option<&'static str> {
    // What is of models has prefixes of its own.
    let name = name.strip_prefix(PREFIX).unwrap_or("APP_CONF");
    if USED.contains(&name) {
        return None;
    }
    let stands_for =
        |known: &&str| *known == name || (known.ends_with('_') && name.starts_with(*known));
    let found = IGNORED
        .iter()
        .find(|(_, names)| names.iter().any(stands_for));
    Some(found.map_or("this server does not know it", |(reason, _)| reason))
}

/// What the environment says, checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Prefix of the protocol's routes, empty or with a slash at its start and none at its end.
    pub prefix: String,
    /// More origins whose pages may use the server.
    pub cors_origins: Vec<HeaderValue>,
    /// What of the protocol is offered.
    pub offers: Offers,
    /// Whether the studies folder is followed.
    pub follow_studies: Option<bool>,
    /// What is set and does nothing, each with the reason.
    pub ignored: Vec<String>,
}

impl Settings {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// [`Usage`] when a value cannot be read, and when a login is asked for.
    pub fn of_process() -> Result<Self, Usage> {
        Self::read(std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let belongs = [PREFIX, OF_MODELS[0], OF_MODELS[1]];
            let belongs = belongs.iter().any(|prefix| name.starts_with(prefix));
            belongs.then(|| (name, value.to_string_lossy().into_owned()))
        }))
    }

    fn read(variables: impl Iterator<Item = (String, String)>) -> Result<Self, Usage> {
        let set: BTreeMap<String, String> = variables.collect();
        let text = |name: &str| set.get(&format!("{PREFIX}{name}")).map(String::as_str);
        let flag = |name: &str| match text(name) {
            None | Some("") => Ok(None),
            Some(value) => truth(value)
                .map(Some)
                .ok_or_else(|| fault(name, value, "true or false")),
        };
        if flag("AUTH_ENABLE")? == Some(true) {
            return Err(Usage(format!(
                "{PREFIX}AUTH_ENABLE is set, but this server has no login: whoever reaches it can read and \
                 change everything. Unset it, and put a proxy with login before the server"
            )));
        }
        let prefix = text("API_STR").unwrap_or_default().trim_end_matches('/');
        if !prefix.is_empty() && !is_path(prefix) {
            return Err(fault("API_STR", prefix, "a path like /monai"));
        }
        let cors_origins = match text("CORS_ORIGINS") {
            None | Some("") => Vec::new(),
            Some(value) => serde_json::from_str::<Vec<String>>(value)
                .ok()
                .and_then(|origins| origins.iter().map(|origin| origin_of(origin)).collect())
                .ok_or_else(|| {
                    fault(
                        "CORS_ORIGINS",
                        value,
                        r#"a list like ["https://viewer.example.org"]"#,
                    )
                })?,
        };
        let all = Offers::default();
        let session_expiry_s = match text("SESSION_EXPIRY") {
            None | Some("") => all.session_expiry_s,
            Some(value) => match value.parse() {
                Ok(0..=SHORTEST_EXPIRY_S) => all.session_expiry_s,
                Ok(seconds) => seconds,
                Err(_) => return Err(fault("SESSION_EXPIRY", value, "a number of seconds")),
            },
        };
        let ignored = set
            .keys()
            .filter_map(|name| Some(format!("{name}: {}", reason(name)?)));
        Ok(Self {
            prefix: prefix.to_owned(),
            cors_origins,
            offers: Offers {
                sessions: flag("SESSIONS")?.unwrap_or(all.sessions),
                session_expiry_s,
                train: flag("TASKS_TRAIN")?.unwrap_or(all.train),
                strategies: flag("TASKS_STRATEGY")?.unwrap_or(all.strategies),
                scoring: flag("TASKS_SCORING")?.unwrap_or(all.scoring),
                batch_infer: flag("TASKS_BATCH_INFER")?.unwrap_or(all.batch_infer),
            },
            follow_studies: flag("DATASTORE_AUTO_RELOAD")?,
            ignored: ignored.collect(),
        })
    }
}

/// As pydantic reads it.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// `/a/b`, of letters, digits, and what needs no escape.
fn is_path(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        })
    })
}

/// Browsers send an origin without a slash at its end, where the original expects one.
fn origin_of(text: &str) -> Option<HeaderValue> {
    let text = text.trim_end_matches('/');
    let named = text.starts_with("http://") || text.starts_with("https://");
    named.then(|| HeaderValue::from_str(text).ok()).flatten()
}

fn fault(name: &str, value: &str, expected: &str) -> Usage {
    Usage(format!("{PREFIX}{name}={value}: this has to be {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let pairs = variables
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()));
        Settings::read(pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_used_is_read_and_the_rest_is_named() {
        assert_eq!(read(&[]).unwrap(), Settings::default());
        let settings = read(&[
            ("API_STR", "/monai/"),
            ("APP_DIR", "/apps/radiology"),
            ("CORS_ORIGINS", r#"["https://viewer.example.org/"]"#),
            ("DATASTORE_AUTO_RELOAD", "False"),
            ("NEW_IN_0_9", "1"),
            ("SESSION_EXPIRY", "120"),
            ("STUDIES", "/studies"),
            ("TASKS_TRAIN", "0"),
        ])
        .unwrap();
        assert_eq!(settings.prefix, "/monai");
        assert_eq!(settings.cors_origins, ["https://viewer.example.org"]);
        assert_eq!(settings.follow_studies, Some(false));
        assert_eq!(settings.offers.session_expiry_s, 120);
        assert!(!settings.offers.train && settings.offers.scoring);
        let [app, new] = settings.ignored.as_slice() else {
            panic!("{:?}", settings.ignored);
        };
        assert!(app.starts_with("MONAI_LABEL_APP_DIR: models are chosen with --model"));
        assert!(new.contains("NEW_IN_0_9: this server does not know it"));
        assert_eq!(
            reason("MONAI_LABEL_DATASTORE_FILE_EXT"),
            Some("*.nii.gz, *.nii and *.nrrd are read")
        );
        assert_eq!(
            reason("MONAI_LABEL_AUTH_REALM_URI"),
            Some("there is no login")
        );
        assert!(reason("MONAI_ZOO_SOURCE").unwrap().contains("--model"));
    }

    #[test]
    fn a_short_expiry_is_the_default() {
        for value in ["0", "60", ""] {
            let settings = read(&[("SESSION_EXPIRY", value)]).unwrap();
            assert_eq!(settings.offers, Offers::default(), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (name, value, word) in [
            ("AUTH_ENABLE", "true", "no login"),
            ("API_STR", "monai", "/monai"),
            ("API_STR", "/a b", "/monai"),
            ("API_STR", "/{x}", "/monai"),
            ("CORS_ORIGINS", "https://viewer.example.org", "a list"),
            ("CORS_ORIGINS", r#"["*"]"#, "a list"),
            ("SESSIONS", "perhaps", "true or false"),
            ("SESSION_EXPIRY", "-1", "seconds"),
        ] {
            let refused = read(&[(name, value)]).unwrap_err();
            assert!(
                refused.contains(word) && refused.contains(name),
                "{refused}"
            );
        }
    }
}
