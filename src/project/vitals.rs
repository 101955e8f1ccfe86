//! How the project does, for whoever watches the server.

use std::path::Path;

use super::{JobKind, Project, ProjectError, StoreError};

/// Numbers that cost little to ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Images that are there.
    pub images: usize,
    /// Images with an accepted label.
    pub labelled: usize,
    /// Revisions of labels that were ever added, deletions among them.
    pub revisions: i64,
    /// For each kind of work what waits and what runs.
    pub queue: Vec<Queue>,
}

/// The queue of one kind of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Which work.
    pub kind: JobKind,
    /// Jobs that wait for a worker.
    pub waiting: i64,
    /// Jobs that a worker has.
    pub running: i64,
    /// How long the oldest of those that wait has been waiting, milliseconds; 0 when none waits.
    pub oldest_ms: i64,
}

/// Disk space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What the data directory takes.
    pub used_bytes: u64,
    /// What its disk has left for this process.
    pub free_bytes: u64,
}

impl Project {
    /// Numbers for whoever watches.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn vitals(&self) -> Result<Vitals, ProjectError> {
        let counts = self.counts().await?;
        let now_ms = self.clock().now_ms();
        let live = self.jobs().live_counts().await?;
        let of = |kind: JobKind, running: bool| {
            live.iter()
                .find(|live| live.kind == kind && live.running == running)
        };
        let queue = JobKind::ALL.map(|kind| Queue {
            kind,
            waiting: of(kind, false).map_or(0, |live| live.count),
            running: of(kind, true).map_or(0, |live| live.count),
            oldest_ms: of(kind, false).map_or(0, |live| (now_ms - live.oldest_ms).max(0)),
        });
        Ok(Vitals {
            images: counts.total,
            labelled: counts.completed,
            revisions: self.store().database.labels_written().await?,
            queue: queue.to_vec(),
        })
    }

    /// Disk space; looks at every file of the data directory.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub async fn space(&self) -> Result<Space, ProjectError> {
        let dir = self.data_dir().to_owned();
        let measured = tokio::task::spawn_blocking(move || {
            Ok::<_, std::io::Error>(Space {
                used_bytes: bytes_in(&dir)?,
                free_bytes: free_bytes(&dir)?,
            })
        });
        Ok(measured.await.map_err(StoreError::from)??)
    }
}

/// Free space for this process on the disk of a directory. Blocks.
fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of all files below a directory; what goes away meanwhile counts nothing. Blocks.
fn bytes_in(dir: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(about) if about.is_dir() => folders.push(entry.path()),
                Ok(about) => total += about.len(),
                Err(_) => {}
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::Bench;
    use serde_json::json;

    #[tokio::test]
    async fn queue_and_space() {
        let bench = Bench::with(&[]).await;
        let idle = bench.project.vitals().await.unwrap();
        assert!(idle.queue.iter().all(|queue| queue.waiting == 0));
        let jobs = bench.project.jobs();
        for _ in 0..2 {
            jobs.enqueue(JobKind::Train, json!({}), json!({}))
                .await
                .unwrap();
        }
        bench.clock.advance_ms(1_500);
        jobs.claim("a", &[JobKind::Train], 60).await.unwrap();
        let busy = bench.project.vitals().await.unwrap();
        let train = busy
            .queue
            .iter()
            .find(|queue| queue.kind == JobKind::Train)
            .unwrap();
        assert_eq!(
            (train.waiting, train.running, train.oldest_ms),
            (1, 1, 1_500)
        );
        let space = bench.project.space().await.unwrap();
        assert!(space.used_bytes > 0 && space.free_bytes > 0);
    }
}
