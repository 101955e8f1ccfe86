//! Rounds that start by themselves: after so many new labels, or every day at a time.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::registry::Registry;
use super::round::{self, Cause};
use super::settings::Settings;
use crate::project::requests::TrainRequest;
use crate::project::{Job, JobKind, Project, ProjectError, Tag};

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Who asked for these rounds.
const ACTOR: &str = "server";

/// Starts rounds when they are due, for as long as it is polled.
pub async fn keep_going(project: Project) {
    let began_ms = project.clock().now_ms();
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error) = start_if_due(&project, began_ms, &TimeZone::system()).await {
            tracing::warn!("no round was started, which is tried again: {error}");
        }
    }
}

/// Starts a round if it is time to; `began_ms` is since when somebody looks.
async fn start_if_due(
    project: &Project,
    began_ms: i64,
    zone: &TimeZone,
) -> Result<Option<Job>, ProjectError> {
    if project.read_only().is_some() {
        return Ok(None);
    }
    let settings = Settings::of(project).await?;
    let Some(cause) = due(project, &settings, began_ms, zone).await? else {
        return Ok(None);
    };
    if project.jobs().running(JobKind::Train).await?.is_some() {
        return Ok(None);
    }
    let models = Registry::new(project).models().await?;
    let Some(live) = models.into_iter().find(|model| model.live) else {
        return Ok(None);
    };
    let request = TrainRequest {
        name: "by_itself".to_owned(),
        max_epochs: settings.max_epochs,
        steps: settings.steps,
        ..TrainRequest::of(&live.name)
    };
    let job = round::ask_for(project, &request, cause, ACTOR).await?;
    Ok(Some(job))
}

/// Whether there is a reason to start a round, and which.
async fn due(
    project: &Project,
    settings: &Settings,
    began_ms: i64,
    zone: &TimeZone,
) -> Result<Option<Cause>, ProjectError> {
    if settings.after_labels.is_none() && settings.daily_at.is_none() {
        return Ok(None);
    }
    let new = new_labels(project).await?;
    if new == 0 {
        return Ok(None);
    }
    if settings
        .after_labels
        .is_some_and(|wanted| new >= i64::from(wanted))
    {
        return Ok(Some(Cause::Labels));
    }
    let last = project.store().database.rounds(1).await?.into_iter().next();
    let at = settings.daily_at.as_deref().and_then(|at| at.parse().ok());
    let turn = at.and_then(|at| last_turn(project.clock().now_ms(), at, zone));
    let since_ms = last.map_or(began_ms, |round| round.created_ms.max(began_ms));
    Ok(turn
        .filter(|turn_ms| *turn_ms > since_ms)
        .map(|_| Cause::Schedule))
}

/// Images that were labelled, or labelled anew, since the last round began: what `after_labels` counts.
///
/// # Errors
/// When the store does not answer.
pub async fn new_labels(project: &Project) -> Result<i64, ProjectError> {
    let database = &project.store().database;
    let last = database.rounds(1).await?.into_iter().next();
    let seen = last.map_or(0, |round| round.labels_seq);
    Ok(database
        .labels_since(Tag::accepted().as_str(), seen)
        .await?)
}

/// When it was `at` last, milliseconds since 1970-01-01 UTC.
fn last_turn(now_ms: i64, at: Time, zone: &TimeZone) -> Option<i64> {
    let now = Timestamp::from_millisecond(now_ms).ok()?;
    let today = now.to_zoned(zone.clone()).date();
    let turn = |day: jiff::civil::Date| {
        let turn = day.to_datetime(at).to_zoned(zone.clone()).ok()?;
        Some(turn.timestamp())
    };
    let turn = match turn(today)? {
        turn if turn <= now => turn,
        _ => turn(today.checked_sub(1.day()).ok()?)?,
    };
    Some(turn.as_millisecond())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{PctNetConfig, create_untrained};
    use crate::project::tests::{Bench, schema};

    const HOUR_MS: i64 = 3_600_000;

    async fn bench() -> Bench {
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz", "c.nii.gz"]).await;
        let small = PctNetConfig::pct_net_s(schema().class_count(), [16, 32, 32], 1);
        let network = PctNetConfig {
            feature_chns: [4, 8, 16, 16, 16],
            num_heads: [2, 2, 2],
            ..small
        };
        let dir = bench.dir.path().join("model");
        create_untrained(&dir, "tiny", &network, &schema(), 1).unwrap();
        Registry::new(&bench.project)
            .import_initial(&dir)
            .await
            .unwrap();
        bench
    }

    async fn set(bench: &Bench, changes: serde_json::Value) {
        let changes = changes.as_object().unwrap().clone();
        Settings::change(&bench.project, changes).await.unwrap();
    }

    /// The cause of the round that is started now; it is over at once.
    async fn cause(bench: &Bench, began_ms: i64) -> Option<String> {
        let job = start_if_due(&bench.project, began_ms, &TimeZone::UTC)
            .await
            .unwrap()?;
        assert!(
            start_if_due(&bench.project, began_ms, &TimeZone::UTC)
                .await
                .unwrap()
                .is_none()
        );
        bench.project.jobs().cancel(job.id).await.unwrap();
        Some(
            round::list(&bench.project, 1).await.unwrap()[0]
                .cause
                .clone(),
        )
    }

    #[tokio::test]
    async fn enough_new_labels_start_a_round() {
        let bench = bench().await;
        for image in ["a", "b"] {
            bench.submit(image, "final", &[1]).await.unwrap();
        }
        assert_eq!(cause(&bench, 0).await, None, "off");
        set(&bench, json!({"after_labels": 2})).await;
        assert_eq!(cause(&bench, 0).await.as_deref(), Some("labels"));
        bench.submit("b", "final", &[2]).await.unwrap();
        bench.submit("c", "original", &[1]).await.unwrap();
        assert_eq!(cause(&bench, 0).await, None, "one image and a proposal");
        bench.submit("c", "final", &[1]).await.unwrap();
        assert_eq!(cause(&bench, 0).await.as_deref(), Some("labels"));
        let rounds = round::list(&bench.project, 10).await.unwrap();
        let numbers: Vec<_> = rounds
            .iter()
            .map(|round| (round.number, round.state))
            .collect();
        let stopped = round::RoundState::Stopped;
        assert_eq!(numbers, [(2, stopped), (1, stopped)]);
    }

    #[tokio::test]
    async fn a_round_a_day_if_there_are_new_labels() {
        let bench = bench().await;
        // 22:13 UTC.
        let began_ms = bench.project.clock().now_ms();
        set(&bench, json!({"daily_at": "02:30"})).await;
        bench.submit("a", "final", &[1]).await.unwrap();
        assert_eq!(cause(&bench, began_ms).await, None);
        bench.clock.advance_ms(5 * HOUR_MS);
        assert_eq!(cause(&bench, began_ms).await.as_deref(), Some("schedule"));
        bench.clock.advance_ms(24 * HOUR_MS);
        assert_eq!(cause(&bench, began_ms).await, None, "nothing new");
        bench.submit("b", "final", &[1]).await.unwrap();
        assert_eq!(cause(&bench, began_ms).await.as_deref(), Some("schedule"));
        bench.submit("c", "final", &[1]).await.unwrap();
        assert_eq!(cause(&bench, began_ms).await, None, "once a day");
    }

    #[test]
    fn the_last_turn_is_today_or_yesterday() {
        let at: Time = "02:30".parse().unwrap();
        let day_ms = 24 * HOUR_MS;
        let turn = |now_ms| last_turn(now_ms, at, &TimeZone::UTC).unwrap();
        assert_eq!(
            turn(10 * day_ms + 3 * HOUR_MS),
            10 * day_ms + 5 * HOUR_MS / 2
        );
        assert_eq!(
            turn(10 * day_ms + 2 * HOUR_MS),
            9 * day_ms + 5 * HOUR_MS / 2
        );
    }
}
