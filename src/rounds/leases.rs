//! Who works on which image: two annotators who ask at once get different ones.
//!
//! The next sample is leased to the client that asked. Who asks again, for example after a crash, gets the same image. A
//! lease is over when the image is labelled, when it is given back, or when its time is over; then the image is offered
//! again. A lease is a promise about offers only: a label is taken from whoever submits it, at any time. The time is that
//! of the project's clock.

use std::collections::HashSet;

use serde_json::json;

use super::settings::Settings;
use super::strategy::{self, Choice, StrategyError};
use crate::project::{ImageId, Project, ProjectError, StoreError, Tag};
use crate::store::rows::{self, LeaseRecord};

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The image.
    pub image: ImageId,
    /// Who has it.
    pub client: String,
    /// The strategy that offered it.
    pub strategy: String,
    /// Since when, milliseconds since 1970-01-01 UTC.
    pub taken_ms: i64,
    /// Until when.
    pub until_ms: i64,
}

/// The answer to who asks for an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Offer {
    /// This one; the lease is that of the client, if it said who it is, and whether it had it before.
    Image(Box<Choice>, Option<(Lease, bool)>),
    /// So many are left, and all of them are leased to others.
    AllLeased(usize),
    /// Every image is labelled.
    Nothing,
}

/// The next image for a client, leased to it. A client without a name gets one that nobody has, and no lease. `skip`
/// gives back what the client has before.
///
/// # Errors
/// [`StrategyError::Unknown`] for a name that is no strategy.
pub async fn next(
    project: &Project,
    name: &str,
    client: Option<&str>,
    skip: bool,
) -> Result<Offer, StrategyError> {
    // Choosing and leasing are one act: of two clients at the same moment one comes second.
    let _turn = project.choosing().await;
    strategy::find(name)?;
    let now_ms = project.clock().now_ms();
    let held = project.store().database.leases(now_ms).await?;
    let mut skipped = None;
    for row in held
        .iter()
        .filter(|row| Some(row.client.as_str()) == client)
    {
        let id = ImageId::parse(&row.image).map_err(ProjectError::from)?;
        if skip {
            give_back(project, &id, &row.client).await?;
            skipped = Some(id);
        } else if let Some(choice) = still_open(project, &id).await? {
            return Ok(Offer::Image(
                Box::new(choice),
                Some((Lease::from_record(row.clone())?, true)),
            ));
        }
    }
    let mut taken: HashSet<String> = held
        .into_iter()
        .filter(|row| Some(row.client.as_str()) != client)
        .map(|row| row.image)
        .collect();
    let others = taken.len();
    taken.extend(skipped.as_ref().map(ImageId::to_string));
    let caller = client.unwrap_or("admin");
    let mut choice = strategy::next(project, name, caller, &taken).await?;
    if choice.is_none()
        && let Some(skipped) = skipped
    {
        // There is no other one.
        taken.remove(skipped.as_str());
        choice = strategy::next(project, name, caller, &taken).await?;
    }
    let Some(choice) = choice else {
        return Ok(if others > 0 {
            Offer::AllLeased(others)
        } else {
            Offer::Nothing
        });
    };
    let lease = match client {
        None => None,
        Some(client) => {
            let lease_s = Settings::of(project).await?.lease_s;
            let row = LeaseRecord {
                image: choice.image.id.to_string(),
                client: client.to_owned(),
                strategy: name.to_owned(),
                taken_ms: now_ms,
                until_ms: now_ms + i64::from(lease_s) * 1000,
            };
            let mut tx = project.store().database.begin().await?;
            rows::put_lease(&mut tx, &row).await?;
            tx.commit().await.map_err(StoreError::from)?;
            Some((Lease::from_record(row)?, false))
        }
    };
    Ok(Offer::Image(Box::new(choice), lease))
}

/// A leased image, when it still wants a label.
async fn still_open(project: &Project, id: &ImageId) -> Result<Option<Choice>, ProjectError> {
    let labelled = project.label(id, &Tag::accepted()).await?.is_some();
    let Some(image) = project.image(id).await?.filter(|_| !labelled) else {
        return Ok(None);
    };
    let look = strategy::where_to_look(project, &image).await?;
    Ok(Some(Choice {
        image,
        extras: look.into_iter().collect(),
        scores_missing: false,
    }))
}

/// The leases that are not over, the next to end first.
///
/// # Errors
/// When the store does not answer.
pub async fn list(project: &Project) -> Result<Vec<Lease>, ProjectError> {
    let rows = project
        .store()
        .database
        .leases(project.clock().now_ms())
        .await?;
    rows.into_iter().map(Lease::from_record).collect()
}

/// Lets a lease run from now on.
///
/// # Errors
/// [`ProjectError::NotFound`] when the image is not leased any more, [`ProjectError::Conflict`] when somebody else has it.
pub async fn renew(
    project: &Project,
    image: &ImageId,
    client: &str,
) -> Result<Lease, ProjectError> {
    let lease_s = Settings::of(project).await?.lease_s;
    let mut tx = project.store().database.begin().await?;
    let mut row = own(project, &mut tx, image, client).await?;
    row.until_ms = project.clock().now_ms() + i64::from(lease_s) * 1000;
    rows::put_lease(&mut tx, &row).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Lease::from_record(row)
}

/// Ends a lease; the image is offered again.
///
/// # Errors
/// As [`renew`].
pub async fn give_back(
    project: &Project,
    image: &ImageId,
    client: &str,
) -> Result<Lease, ProjectError> {
    let mut tx = project.store().database.begin().await?;
    let row = own(project, &mut tx, image, client).await?;
    rows::end_lease(&mut tx, image.as_str()).await?;
    let detail = json!({"leased_to": row.client});
    let entry = project.audit_entry("return-lease", image.as_str(), detail);
    rows::append_audit(&mut tx, entry).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Lease::from_record(row)
}

async fn own(
    project: &Project,
    tx: &mut rows::WriteTransaction,
    image: &ImageId,
    client: &str,
) -> Result<LeaseRecord, ProjectError> {
    match rows::lease(tx, image.as_str(), project.clock().now_ms()).await? {
        Some(row) if row.client == client => Ok(row),
        Some(row) => Err(ProjectError::Conflict(format!(
            "image {image} is leased to {:?}, not to {client:?}; nothing was changed",
            row.client
        ))),
        None => Err(ProjectError::NotFound(format!(
            "image {image} is not leased (any more); ask for the next sample again, and submit what you have: it is taken"
        ))),
    }
}

impl Lease {
    fn from_record(row: LeaseRecord) -> Result<Self, ProjectError> {
        Ok(Self {
            image: ImageId::parse(&row.image)?,
            client: row.client,
            strategy: row.strategy,
            taken_ms: row.taken_ms,
            until_ms: row.until_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::{Bench, id};

    const LEASE_MS: i64 = 4 * 3600 * 1000;

    async fn ask(bench: &Bench, client: &str) -> Option<(String, bool)> {
        match next(&bench.project, "first", Some(client), false)
            .await
            .unwrap()
        {
            Offer::Image(choice, lease) => Some((choice.image.id.to_string(), lease.unwrap().1)),
            _ => None,
        }
    }

    #[tokio::test]
    async fn sixteen_at_once_get_sixteen_images() {
        let names: Vec<String> = (0..16).map(|n| format!("c{n:02}.nii.gz")).collect();
        let bench = Bench::with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let asking = (0..16).map(|n| {
            let project = bench.project.clone();
            tokio::spawn(async move {
                let client = format!("annotator {n}");
                next(&project, "random", Some(&client), false)
                    .await
                    .unwrap()
            })
        });
        let mut images = HashSet::new();
        for offer in asking.collect::<Vec<_>>() {
            let Offer::Image(choice, Some((lease, false))) = offer.await.unwrap() else {
                panic!("everybody gets an image");
            };
            assert_eq!(lease.image, choice.image.id);
            assert!(images.insert(choice.image.id.to_string()), "leased twice");
        }
        assert_eq!(images.len(), 16);
        let more = next(&bench.project, "random", Some("late"), false)
            .await
            .unwrap();
        assert_eq!(more, Offer::AllLeased(16));
        // When the time of all is over, all are offered again.
        bench.clock.advance_ms(LEASE_MS);
        assert!(ask(&bench, "late").await.is_some());
        assert_eq!(list(&bench.project).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_lease_is_had_again_renewed_given_back_and_ended_by_the_submit() {
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz"]).await;
        let project = &bench.project;
        assert_eq!(ask(&bench, "ann").await, Some(("a".to_owned(), false)));
        assert_eq!(ask(&bench, "ann").await, Some(("a".to_owned(), true)));
        assert_eq!(ask(&bench, "bob").await, Some(("b".to_owned(), false)));
        // A client without a name takes none from anybody.
        let anonymous = next(project, "first", None, false).await.unwrap();
        assert_eq!(anonymous, Offer::AllLeased(2));

        bench.clock.advance_ms(LEASE_MS - 1);
        let renewed = renew(project, &id("a"), "ann").await.unwrap();
        assert_eq!(renewed.until_ms, project.clock().now_ms() + LEASE_MS);
        bench.clock.advance_ms(1);
        let gone = renew(project, &id("b"), "bob").await;
        assert!(matches!(gone, Err(ProjectError::NotFound(_))), "{gone:?}");
        let others = renew(project, &id("a"), "bob").await;
        assert!(
            matches!(others, Err(ProjectError::Conflict(_))),
            "{others:?}"
        );
        assert_eq!(ask(&bench, "eve").await, Some(("b".to_owned(), false)));

        give_back(project, &id("a"), "ann").await.unwrap();
        assert_eq!(ask(&bench, "bob").await, Some(("a".to_owned(), false)));
        // Whoever submits: the image is labelled, and nobody has it any more.
        bench.submit("a", "final", &[1]).await.unwrap();
        assert_eq!(ask(&bench, "bob").await, None);
        let left: Vec<_> = list(project)
            .await
            .unwrap()
            .into_iter()
            .map(|l| l.client)
            .collect();
        assert_eq!(left, ["eve"]);
        bench.submit("b", "original", &[1]).await.unwrap();
        assert_eq!(
            ask(&bench, "eve").await,
            Some(("b".to_owned(), true)),
            "no accepted label"
        );
    }

    #[tokio::test]
    async fn skipping_offers_another_one_if_there_is_any() {
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz"]).await;
        let skip = async || match next(&bench.project, "first", Some("ann"), true)
            .await
            .unwrap()
        {
            Offer::Image(choice, _) => choice.image.id.to_string(),
            offer => panic!("{offer:?}"),
        };
        assert_eq!(skip().await, "a");
        assert_eq!(skip().await, "b");
        assert_eq!(skip().await, "a");
        bench.submit("b", "final", &[1]).await.unwrap();
        assert_eq!(skip().await, "a", "the only one");
        assert_eq!(list(&bench.project).await.unwrap().len(), 1);
    }
}
