//! Noticing files of the studies folder that appear, change or vanish.
//!
//! On Linux the system tells (inotify); on network file systems, where it cannot tell what other
//! machines do, and elsewhere, the folder is looked through every half minute. So are its subfolders, which may be
//! DICOM series that are still being copied.

use std::time::Duration;

use super::Project;

/// Between two looks when the system tells nothing.
const POLL: Duration = Duration::from_secs(30);
/// Between two looks all the same when it does: a missed event must not hide an image for ever.
const SAFETY: Duration = Duration::from_secs(300);
/// Longest wait for a folder that does not come to rest.
const PATIENCE: Duration = Duration::from_secs(20);
/// Shortest pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

impl Project {
    /// Keeps the list of images up to date; never returns. A DICOMweb server is asked again after each `poll`.
    pub async fn follow_studies(&self, poll: Duration) {
        if self.dicomweb().is_some() {
            return self.follow_pacs(poll).await;
        }
        let settle = self.inner.settle.max(PAUSE);
        let mut events = Events::of(self.studies());
        let mut next = SAFETY;
        loop {
            let idle = if events.is_some() {
                next
            } else {
                next.min(POLL)
            };
            // The end of the time is as good a reason to look as an event.
            let told = wait(&mut events, idle).await;
            if told {
                let rest = async { while wait(&mut events, settle).await {} };
                let _ = tokio::time::timeout(PATIENCE, rest).await;
            }
            next = match self.rescan().await {
                Ok(found) => {
                    if !found.is_unchanged() {
                        tracing::info!(
                            "studies folder: {} new, {} changed, {} gone",
                            found.added.len(),
                            found.changed.len(),
                            found.vanished.len()
                        );
                    }
                    match (found.unsettled.is_empty(), found.has_folders) {
                        (false, _) => settle,
                        (true, true) => POLL,
                        (true, false) => SAFETY,
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        "the studies folder could not be looked through and is tried again: {error}"
                    );
                    POLL
                }
            };
            if events.is_none() {
                events = Events::of(self.studies());
            }
        }
    }
}

/// Whether something happened within the time. Events that end are dropped.
async fn wait(events: &mut Option<Events>, time: Duration) -> bool {
    let Some(source) = events else {
        tokio::time::sleep(time).await;
        return false;
    };
    match tokio::time::timeout(time, source.next()).await {
        Err(_) => false,
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(
                "the studies folder is looked through every {} s from now on: {error}",
                POLL.as_secs()
            );
            *events = None;
            true
        }
    }
}

#[cfg(target_os = "linux")]
use linux::Events;

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    use rustix::io::Errno;
    use tokio::io::unix::AsyncFd;

    /// File systems that others change without this system knowing (statfs(2), linux/magic.h): NFS,
    /// SMB, CIFS, SMB2, FUSE, 9P, Ceph, AFS, Lustre, GPFS, VirtualBox.
    const REMOTE: [u32; 11] = [
        0x6969,
        0x517B,
        0xFF53_4D42,
        0xFE53_4D42,
        0x6573_5546,
        0x0102_1997,
        0x00C3_6400,
        0x5346_414F,
        0x0BD0_0BD0,
        0x4750_4653,
        0x786F_4256,
    ];

    /// What the system tells about a folder.
    pub struct Events(AsyncFd<OwnedFd>);

    impl Events {
        /// None when it would not tell everything, or not at all.
        pub fn of(folder: &Path) -> Option<Self> {
            let kind = rustix::fs::statfs(folder).ok()?.f_type;
            // The width of the field differs between machines; the numbers have 32 bits.
            if REMOTE.contains(&(kind as u32)) {
                return None;
            }
            let watch = || -> std::io::Result<Self> {
                let source = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
                let what = WatchFlags::CREATE
                    | WatchFlags::CLOSE_WRITE
                    | WatchFlags::MOVED_FROM
                    | WatchFlags::MOVED_TO
                    | WatchFlags::DELETE
                    | WatchFlags::ATTRIB
                    | WatchFlags::DELETE_SELF
                    | WatchFlags::MOVE_SELF;
                inotify::add_watch(&source, folder, what)?;
                #[expect(
                    deprecated,
                    reason = "its successor asks for a promise that a descriptor of our own keeps anyway"
                )]
                let source = AsyncFd::new(source)?;
                Ok(Self(source))
            };
            match watch() {
                Ok(events) => Some(events),
                Err(error) => {
                    tracing::debug!("the system cannot watch the studies folder: {error}");
                    None
                }
            }
        }

        /// Waits until something happened.
        pub async fn next(&mut self) -> std::io::Result<()> {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(ready.get_inner(), &mut buffer);
            let outcome = loop {
                match reader.next() {
                    Err(Errno::WOULDBLOCK) => break Ok(()),
                    Err(error) => break Err(error.into()),
                    Ok(event) if event.events().contains(ReadFlags::IGNORED) => {
                        break Err(std::io::Error::other("the folder is not there any more"));
                    }
                    Ok(_) => {}
                }
            };
            ready.clear_ready();
            outcome
        }
    }
}

/// Elsewhere nothing is told.
#[cfg(not(target_os = "linux"))]
enum Events {}

#[cfg(not(target_os = "linux"))]
impl Events {
    fn of(_: &std::path::Path) -> Option<Self> {
        None
    }

    async fn next(&mut self) -> std::io::Result<()> {
        match *self {}
    }
}
