//! Is everything that was acknowledged still there, byte for byte?
//!
//! The database: SQLite's own check of its structure, a hash of every row, the chain of the audit
//! log. Files: the hash of every blob and model version that a row names, and files that none names.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::lock;
use super::staging::sha256_of_file;
use super::{Store, StoreError, sha256_of_dir};

/// With a server at work, files without a row that are younger than this may be submits under way.
const UNDER_WAY: Duration = Duration::from_secs(3600);
/// Of a file whose bytes are not known to be wrong.
const UNREADABLE: &str = "it cannot be read";
/// What to do about a damaged database.
const RESTORE: &str = "stop the server, keep a copy of the data folder, then restore the last backup into a new folder (`fewlabel restore`) and serve that";

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All rows, the files of the live models; of other files only that they are there in full size.
    Quick,
    /// Every byte.
    Full,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `database`, `row`, `audit`, `blob` or `model`.
    pub area: &'static str,
    /// Which one.
    pub subject: String,
    /// What is wrong.
    pub what: String,
    /// What is not touched by it.
    pub safe: String,
    /// What to do.
    pub next: String,
    /// Whether it may be over at the next look, as a disk that does not answer.
    #[serde(skip)]
    pub transient: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            area,
            subject,
            what,
            safe,
            next,
            ..
        } = self;
        write!(f, "{area} {subject}: {what}; {safe}; {next}")
    }
}

/// A file or folder that no row names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// `blob` or `model`.
    pub area: &'static str,
    /// Its path in the data directory.
    pub path: String,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: no row names it, as after a submit that was cut short; all that was acknowledged is elsewhere; remove it with --repair-orphans, or wait: the server removes blobs after a day",
            self.area, self.path
        )
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of the schema in the file, and that of this release.
    pub schema: (i64, i64),
    /// Rows of the audit log.
    pub audit_rows: u64,
    /// Blobs that rows name.
    pub blobs: usize,
    /// Model versions that rows name.
    pub models: usize,
    /// Damage.
    pub problems: Vec<Problem>,
    /// Left-overs; harmless.
    pub orphans: Vec<Orphan>,
}

impl Report {
    /// That of a database in which nothing can be read.
    pub fn unreadable(error: &str) -> Self {
        let mut report = Self::default();
        report.add(
            "database",
            "file",
            error,
            "files are not touched by this",
            RESTORE,
        );
        report
    }

    /// The lasting damage in one sentence, when there is any.
    pub fn reason(&self) -> Option<String> {
        let mut lasting = self.problems.iter().filter(|problem| !problem.transient);
        let first = lasting.next()?;
        let more = match lasting.count() {
            0 => String::new(),
            more => format!(" (and {more} more, see `fewlabel check`)"),
        };
        Some(format!("{first}{more}"))
    }

    fn add(
        &mut self,
        area: &'static str,
        subject: &str,
        what: impl Into<String>,
        safe: &str,
        next: &str,
    ) {
        self.problems.push(Problem {
            area,
            subject: subject.to_owned(),
            what: what.into(),
            safe: safe.to_owned(),
            next: next.to_owned(),
            transient: false,
        });
    }

    fn last_is_transient(&mut self, transient: bool) {
        if let Some(last) = self.problems.last_mut() {
            last.transient = transient;
        }
    }

    /// The value, or its failure as a problem of the database.
    fn read<T: Default>(&mut self, part: &str, value: Result<T, StoreError>) -> T {
        value.unwrap_or_else(|error| {
            let what = format!("cannot be read: {error}");
            self.add(
                "database",
                part,
                what,
                "files are not touched by this",
                RESTORE,
            );
            self.last_is_transient(matches!(
                error,
                StoreError::Unavailable(_) | StoreError::NoSpace(_)
            ));
            T::default()
        })
    }
}

impl Store {
    /// Reads everything and says what is damaged or missing; empty when all is well. Changes nothing.
    ///
    /// # Errors
    /// When the database cannot be read at all.
    pub async fn check(&self) -> Result<Vec<String>, StoreError> {
        let report = self.examine(Depth::Full).await?;
        Ok(report.problems.iter().map(Problem::to_string).collect())
    }

    /// Reads rows and files and says what is not as it was written. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for data of a later release.
    pub async fn examine(&self, depth: Depth) -> Result<Report, StoreError> {
        let mut report = Report::default();
        self.examine_rows(&mut report).await?;
        if report.schema.0 == 0 && report.problems.is_empty() {
            // The program was stopped before it made the first table.
            return Ok(report);
        }
        self.examine_blobs(depth, &mut report).await?;
        self.examine_models(depth, &mut report).await?;
        Ok(report)
    }

    pub(super) async fn examine_rows(&self, report: &mut Report) -> Result<(), StoreError> {
        let database = &self.database;
        report.schema = report.read("schema", database.schema_versions().await);
        let (stored, ours) = report.schema;
        if stored > ours {
            return Err(StoreError::Newer(format!("schema {stored}")));
        }
        if stored == 0 && report.problems.is_empty() {
            return Ok(());
        }
        for line in report.read("structure", database.integrity().await) {
            report.add(
                "database",
                "structure",
                line,
                "files are not touched by this",
                RESTORE,
            );
        }
        if stored == ours {
            for broken in report.read("rows", database.broken_seals().await) {
                let subject = format!("{} {}", broken.table, broken.key);
                let safe = "the other rows are as they were written";
                report.add("row", &subject, broken.what, safe, RESTORE);
            }
        }
        let audit = report.read("audit log", self.verify_audit().await);
        report.audit_rows = audit.rows;
        if let Some(fault) = audit.broken {
            report.add(
                "audit",
                &format!("row {}", fault.seq),
                fault.what,
                "labels are checked by their own hashes",
                "compare with the log in a backup, and find out who could write to the database",
            );
        }
        Ok(())
    }

    async fn examine_blobs(&self, depth: Depth, report: &mut Report) -> Result<(), StoreError> {
        let named = report.read("list of blobs", self.database.blob_sizes().await);
        let (blobs, dir) = (self.blobs.clone(), self.dir().to_owned());
        let names: HashSet<String> = named.iter().map(|(name, _)| name.clone()).collect();
        report.blobs = names.len();
        let look = move || {
            let (mut bad, mut done) = (Vec::new(), HashSet::new());
            for (name, size_bytes) in named {
                let path = blobs.path(&name);
                let what = match std::fs::metadata(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Some("it is missing".to_owned())
                    }
                    Err(error) => Some(format!("{UNREADABLE}: {error}")),
                    Ok(file) => match size_bytes {
                        Some(size) if i64::try_from(file.len()) != Ok(size) => {
                            Some(format!("it has {} bytes instead of {size}", file.len()))
                        }
                        _ if depth == Depth::Quick || done.contains(&name) => None,
                        _ => match sha256_of_file(&path) {
                            Ok(sha256) if sha256 == name => None,
                            Ok(_) => Some("its bytes are damaged".to_owned()),
                            Err(error) => Some(format!("{UNREADABLE}: {error}")),
                        },
                    },
                };
                if let Some(what) = what
                    && done.insert(name.clone())
                {
                    bad.push((name, what));
                } else {
                    done.insert(name);
                }
            }
            Ok::<_, StoreError>((bad, orphan_blobs(&blobs, &dir, &names)?))
        };
        let (bad, orphans) = tokio::task::spawn_blocking(look).await??;
        for (name, what) in bad {
            let transient = what.starts_with(UNREADABLE);
            report.add(
                "blob",
                &name,
                what,
                "every other label and image is not touched by this",
                "copy the file of this name from a backup to the same place below blobs/, then start again",
            );
            report.last_is_transient(transient);
        }
        report.orphans.extend(orphans);
        Ok(())
    }

    async fn examine_models(&self, depth: Depth, report: &mut Report) -> Result<(), StoreError> {
        let rows = report.read("list of models", self.database.listed_models().await);
        report.models = rows.len();
        let home = self.dir().join("models");
        let look = move || {
            let mut bad = Vec::new();
            let mut named = HashSet::new();
            for row in rows {
                let version = format!("{}/{}", row.name, row.version);
                let dir = home.join(&version);
                named.insert(version.clone());
                let what = if !dir.is_dir() {
                    Some("its folder is missing".to_owned())
                } else if depth == Depth::Quick && !row.live {
                    None
                } else {
                    match sha256_of_dir(&dir) {
                        Ok(sha256) if sha256 == row.sha256 => None,
                        Ok(_) => Some("its files are damaged".to_owned()),
                        Err(error) => Some(format!("{UNREADABLE}: {error}")),
                    }
                };
                if let Some(what) = what {
                    bad.push((version, what, row.live));
                }
            }
            Ok::<_, StoreError>((bad, orphan_models(&home, &named)?))
        };
        let (bad, orphans) = tokio::task::spawn_blocking(look).await??;
        for (version, what, live) in bad {
            let transient = what.starts_with(UNREADABLE);
            let what = if live {
                format!("{what}, and it is the live one")
            } else {
                what
            };
            report.add(
                "model",
                &version,
                what,
                "labels and images are not touched by this",
                "copy its folder from a backup to the same place below models/, then start again",
            );
            report.last_is_transient(transient);
        }
        report.orphans.extend(orphans);
        Ok(())
    }

    /// Removes what `examine` called orphans, unless a row names it by now.
    ///
    /// # Errors
    /// [`StoreError::Held`] when a server works on the data.
    pub async fn remove_orphans(&self, orphans: &[Orphan]) -> Result<usize, StoreError> {
        let mut removed = 0;
        for orphan in orphans {
            let path = self.dir().join(&orphan.path);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // Under the write lock nobody can commit a row for it meanwhile.
            let mut tx = self.database.begin().await?;
            if orphan.area == "model" {
                super::remove_dir(&path)?;
                removed += 1;
            } else if !super::rows::is_blob_referenced(&mut tx, &name).await? {
                self.blobs.remove(&name)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn orphan_blobs(
    blobs: &super::Blobs,
    dir: &Path,
    named: &HashSet<String>,
) -> Result<Vec<Orphan>, StoreError> {
    let age = if lock::is_held(&dir.join("server.lock")) {
        UNDER_WAY
    } else {
        Duration::ZERO
    };
    let names = blobs.older_than(age)?;
    Ok(names
        .into_iter()
        .filter(|name| !named.contains(name))
        .map(|name| Orphan {
            area: "blob",
            path: format!("blobs/{}/{name}", super::blobs::folder(&name)),
        })
        .collect())
}

fn orphan_models(home: &Path, named: &HashSet<String>) -> Result<Vec<Orphan>, StoreError> {
    let mut orphans = Vec::new();
    for (name, dir) in folders(home)? {
        for (version, _) in folders(&dir)? {
            let path = format!("{name}/{version}");
            if !named.contains(&path) {
                orphans.push(Orphan {
                    area: "model",
                    path: format!("models/{path}"),
                });
            }
        }
    }
    orphans.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(orphans)
}

fn folders(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>, StoreError> {
    let mut found = Vec::new();
    if !dir.is_dir() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push((
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::rows::{AuditEntry, append_audit};

    async fn store(dir: &Path) -> Store {
        let store = Store::open_server(dir, Arc::new(ManualClock::new(0)))
            .await
            .unwrap();
        for subject in ["a", "b", "c"] {
            let mut tx = store.database.begin().await.unwrap();
            let entry = AuditEntry {
                now_ms: 1,
                actor: "ann",
                action: "look",
                subject,
                detail: serde_json::json!({}),
            };
            append_audit(&mut tx, entry).await.unwrap();
            crate::store::rows::put_setting(&mut tx, subject, "value")
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
        store
    }

    #[tokio::test]
    async fn a_changed_audit_row_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        assert_eq!(store.check().await.unwrap(), [""; 0]);
        let mut tx = store.database.begin().await.unwrap();
        sqlx::query("UPDATE audit SET actor = 'bob' WHERE seq = 2")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let found = store.check().await.unwrap();
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("audit row 2: or a row before it"),
            "{found:?}"
        );
    }

    #[tokio::test]
    async fn rows_changed_behind_our_back_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        for (change, what) in [
            (
                "UPDATE settings SET value = 'other' WHERE key = 'a'",
                r#"row settings ["a"]: was changed"#,
            ),
            (
                "DELETE FROM settings WHERE key = 'b'",
                r#"row settings ["b"]: is gone"#,
            ),
            (
                "INSERT INTO settings VALUES ('d', 'x')",
                r#"row settings ["d"]: was added"#,
            ),
        ] {
            // Not through a write transaction, as a tool or a failing disk would.
            let file = dir.path().join("fewlabel.db");
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
            let mut other = sqlx::ConnectOptions::connect(&options).await.unwrap();
            sqlx::query(change).execute(&mut other).await.unwrap();
            let found = store.check().await.unwrap();
            assert!(found.iter().any(|line| line.starts_with(what)), "{found:?}");
        }
        // The same changes by the program itself are sealed.
        let mut tx = store.database.begin().await.unwrap();
        sqlx::query("UPDATE settings SET value = 'again'")
            .execute(&mut *tx)
            .await
            .unwrap();
        sqlx::query("DELETE FROM settings WHERE key = 'c'")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let found = store.check().await.unwrap();
        assert_eq!(found.len(), 1, "only the row that is gone: {found:?}");
        drop(store.database.begin().await.unwrap());
    }

    #[tokio::test]
    async fn orphans_are_told_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let name = "ab".repeat(32);
        std::fs::create_dir_all(dir.path().join("blobs/ab")).unwrap();
        std::fs::create_dir_all(dir.path().join("models/ct/7")).unwrap();
        let file = dir.path().join("blobs/ab").join(&name);
        std::fs::write(&file, "x").unwrap();
        let report = store.examine(Depth::Full).await.unwrap();
        assert_eq!(
            report.orphans.len(),
            1,
            "the young blob may be a submit under way"
        );
        let long_ago = std::time::SystemTime::now() - 2 * UNDER_WAY;
        let opened = std::fs::File::options().append(true).open(&file).unwrap();
        opened.set_modified(long_ago).unwrap();
        let report = store.examine(Depth::Full).await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.orphans.len(), 2);
        assert_eq!(store.remove_orphans(&report.orphans).await.unwrap(), 2);
        assert!(!file.exists() && !dir.path().join("models/ct/7").exists());
    }
}
