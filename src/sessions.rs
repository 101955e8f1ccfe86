//! Short-lived uploads: an image that a client wants segmented but not kept in the project.
//!
//! A session is a directory of its own and a row; the row is added when the files are in place and
//! synced, and both go when it is over. It survives a restart of the server.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::imaging::dicom;
use crate::project::{FileName, Project, ProjectError, Staged};
use crate::store::rows::SessionRecord;
use crate::store::{StoreError, remove_dir, sync_dir};

/// One short-lived upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id, a UUID.
    pub id: String,
    /// Name shown to clients.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// The one file, or the directory when there are several (a DICOM series).
    pub image: PathBuf,
    /// When it was made, seconds since 1970-01-01 UTC.
    pub create_ts: i64,
    /// When it was last used.
    pub last_access_ts: i64,
    /// How long after its last use it ends.
    pub expiry_s: i64,
}

impl Session {
    /// The client's name of its one file; of a directory, the directory's name.
    pub fn file_name(&self) -> String {
        let name = self.image.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What the protocol shows of it.
    pub fn info(&self) -> Value {
        json!({
            "name": self.name, "path": self.path, "image": self.image, "meta": {},
            "create_ts": self.create_ts, "last_access_ts": self.last_access_ts, "expiry": self.expiry_s,
        })
    }
}

/// The sessions of a project. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    project: Project,
}

impl Sessions {
    /// The sessions of this project.
    pub fn new(project: &Project) -> Self {
        Self {
            project: project.clone(),
        }
    }

    /// Makes a session of uploaded files, each with the client's name for it, that ends `expiry_s` seconds
    /// after its last use. One file keeps its base name; several become a directory of numbered files. With
    /// `archive` it has to be one zip file, which is kept as it is: a series is read out of it.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] without files, when the name of the one file is unusable, or when an archive is none.
    pub async fn create(
        &self,
        files: Vec<(String, Staged)>,
        expiry_s: u32,
        archive: bool,
    ) -> Result<Session, ProjectError> {
        let is_archive = matches!(files.as_slice(), [(_, one)] if dicom::is_archive(&one.path));
        if archive && !is_archive {
            return Err(ProjectError::Invalid(
                "uncompress=true is for one zip file, and this is none; send a zip file, or the files of the series as several fields 'files'".to_owned(),
            ));
        }
        let names: Vec<FileName> = match files.as_slice() {
            [] => {
                return Err(ProjectError::Invalid(
                    "a session needs at least one file".to_owned(),
                ));
            }
            [(name, _)] => vec![FileName::from_client(name)?],
            many => (0..many.len())
                .map(|number| FileName::parse(&format!("{number:06}")))
                .collect::<Result<_, _>>()?,
        };
        let id = Uuid::new_v4().to_string();
        let dir = self.root().join(&id);
        let (single, now_ms) = (names.len() == 1, self.project.clock().now_ms());
        let image = names
            .first()
            .filter(|_| single)
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default();
        let target = dir.clone();
        let moved = tokio::task::spawn_blocking(move || place(&target, &names, files))
            .await
            .map_err(StoreError::from)?;
        let row = SessionRecord {
            id: id.clone(),
            name: id,
            image,
            created_ms: now_ms,
            last_access_ms: now_ms,
            expiry_s: i64::from(expiry_s),
        };
        let added = match moved {
            Ok(()) => self.project.store().database.add_session(&row).await,
            Err(error) => Err(error),
        };
        if let Err(error) = added {
            remove_dir(&dir)?;
            return Err(error.into());
        }
        Ok(self.session(row))
    }

    /// The session, unless it is over. `touch` counts as a use.
    ///
    /// # Errors
    /// When the store does not answer; likewise below.
    pub async fn get(&self, id: &str, touch: bool) -> Result<Option<Session>, ProjectError> {
        let now_ms = self.project.clock().now_ms();
        let row = self.project.store().database.session(id).await?;
        let Some(mut row) = row.filter(|row| {
            now_ms
                <= row
                    .last_access_ms
                    .saturating_add(row.expiry_s.saturating_mul(1000))
        }) else {
            return Ok(None);
        };
        if touch {
            self.project
                .store()
                .database
                .touch_session(id, now_ms)
                .await?;
            row.last_access_ms = now_ms;
        }
        Ok(Some(self.session(row)))
    }

    /// Ends a session; what it was, if there was one.
    pub async fn remove(&self, id: &str) -> Result<Option<Session>, ProjectError> {
        let Some(row) = self.project.store().database.session(id).await? else {
            return Ok(None);
        };
        self.end(&row).await?;
        Ok(Some(self.session(row)))
    }

    /// Ends the sessions whose time is over; how many.
    pub async fn sweep(&self) -> Result<usize, ProjectError> {
        let expired = self
            .project
            .store()
            .database
            .expired_sessions(self.project.clock().now_ms())
            .await?;
        for row in &expired {
            self.end(row).await?;
        }
        Ok(expired.len())
    }

    async fn end(&self, row: &SessionRecord) -> Result<(), ProjectError> {
        // The row goes last: a sweep finds it again when the files could not be removed.
        remove_dir(&self.root().join(&row.id))?;
        Ok(self
            .project
            .store()
            .database
            .remove_session(&row.id)
            .await?)
    }

    fn root(&self) -> PathBuf {
        self.project.data_dir().join("sessions")
    }

    fn session(&self, row: SessionRecord) -> Session {
        let path = self.root().join(&row.id);
        Session {
            image: if row.image.is_empty() {
                path.clone()
            } else {
                path.join(&row.image)
            },
            path,
            id: row.id,
            name: row.name,
            create_ts: row.created_ms.div_euclid(1000),
            last_access_ts: row.last_access_ms.div_euclid(1000),
            expiry_s: row.expiry_s,
        }
    }
}

fn place(dir: &Path, names: &[FileName], files: Vec<(String, Staged)>) -> Result<(), StoreError> {
    std::fs::create_dir(dir)?;
    for (name, (_, staged)) in names.iter().zip(files) {
        staged.move_to(&dir.join(name.as_str()))?;
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::Bench;

    #[tokio::test]
    async fn one_file_keeps_its_name_and_several_become_a_directory() {
        let bench = Bench::with(&[]).await;
        let sessions = Sessions::new(&bench.project);
        let one = sessions
            .create(
                vec![("C:\\me\\my scan.nrrd".to_owned(), bench.stage(b"1").await)],
                5,
                false,
            )
            .await
            .unwrap();
        assert_eq!(one.image, one.path.join("my scan.nrrd"));
        assert_eq!(std::fs::read(&one.image).unwrap(), b"1");
        let info = one.info();
        let keys: Vec<_> = info.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "name",
                "path",
                "image",
                "meta",
                "create_ts",
                "last_access_ts",
                "expiry"
            ]
        );
        assert_eq!(
            (info["expiry"].as_i64(), info["create_ts"].as_i64()),
            (Some(5), Some(1_700_000_000))
        );

        let files = vec![
            ("../x".to_owned(), bench.stage(b"1").await),
            ("..".to_owned(), bench.stage(b"2").await),
        ];
        let many = sessions.create(files, 3600, false).await.unwrap();
        assert_eq!((&many.image, many.expiry_s), (&many.path, 3600));
        assert_eq!(std::fs::read_dir(&many.path).unwrap().count(), 2);

        for bad in [vec![], vec![("..".to_owned(), bench.stage(b"1").await)]] {
            assert!(matches!(
                sessions.create(bad, 3600, false).await,
                Err(ProjectError::Invalid(_))
            ));
        }
        assert_eq!(std::fs::read_dir(sessions.root()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_session_ends_after_its_last_use() {
        let bench = Bench::with(&[]).await;
        let sessions = Sessions::new(&bench.project);
        let session = sessions
            .create(vec![("a".to_owned(), bench.stage(b"1").await)], 10, false)
            .await
            .unwrap();
        bench.clock.advance_ms(9_000);
        assert_eq!(
            sessions
                .get(&session.id, false)
                .await
                .unwrap()
                .unwrap()
                .last_access_ts,
            session.create_ts
        );
        assert_eq!(
            sessions
                .get(&session.id, true)
                .await
                .unwrap()
                .unwrap()
                .last_access_ts,
            session.create_ts + 9
        );
        bench.clock.advance_ms(9_000);
        // Another handle sees it, as the server after a restart would.
        let again = Sessions::new(&bench.project)
            .get(&session.id, false)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(again.last_access_ts, session.create_ts + 9);
        assert_eq!(sessions.sweep().await.unwrap(), 0);
        bench.clock.advance_ms(2_000);
        assert_eq!(sessions.get(&session.id, true).await.unwrap(), None);
        assert_eq!(sessions.sweep().await.unwrap(), 1);
        assert!(!session.path.exists());

        let session = sessions
            .create(vec![("a".to_owned(), bench.stage(b"1").await)], 3600, false)
            .await
            .unwrap();
        assert_eq!(
            sessions.remove(&session.id).await.unwrap().unwrap().id,
            session.id
        );
        assert_eq!(sessions.remove(&session.id).await.unwrap(), None);
        assert!(!session.path.exists());
    }
}
