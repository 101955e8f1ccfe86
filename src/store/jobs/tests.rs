use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::clock::ManualClock;

const ALL: [JobKind; 4] = [
    JobKind::Infer,
    JobKind::Score,
    JobKind::BatchInfer,
    JobKind::Train,
];
const LEASE_S: u32 = 30;

async fn queue() -> (tempfile::TempDir, Jobs, Arc<ManualClock>) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(1_000_000));
    let jobs = Jobs::new(
        Database::open(&dir.path().join("db")).await.unwrap(),
        clock.clone(),
    );
    (dir, jobs, clock)
}

async fn enqueue(jobs: &Jobs, kind: JobKind) -> Job {
    jobs.enqueue(kind, json!({"p": 1}), json!({"model": "m"}))
        .await
        .unwrap()
}

async fn claim(jobs: &Jobs) -> Claimed {
    jobs.claim("w", &ALL, LEASE_S).await.unwrap().unwrap()
}

async fn state(jobs: &Jobs, id: JobId) -> JobState {
    jobs.get(id).await.unwrap().unwrap().state
}

#[tokio::test]
async fn a_job_runs_reports_and_ends() {
    let (_dir, jobs, clock) = queue().await;
    let job = enqueue(&jobs, JobKind::Train).await;
    assert_eq!(
        (job.state, job.start_ts, &job.progress),
        (JobState::Submitted, 1_000_000, &Value::Null)
    );
    assert_eq!(JobId::parse(&job.id.to_string()), Some(job.id));
    assert_eq!(jobs.waiting(JobKind::Train).await.unwrap(), 1);

    let claimed = claim(&jobs).await;
    assert_eq!(
        (claimed.job.id, claimed.job.state, claimed.job.attempts),
        (job.id, JobState::Running, 1)
    );
    assert_eq!(
        jobs.running(JobKind::Train).await.unwrap().unwrap().id,
        job.id
    );
    let lines: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    assert!(
        !jobs
            .heartbeat(&claimed, Some(json!({"epoch": 1})), &lines)
            .await
            .unwrap()
            .cancel
    );
    assert!(
        !jobs
            .heartbeat(&claimed, None, &["last".to_owned()])
            .await
            .unwrap()
            .cancel
    );
    clock.advance_ms(5);
    jobs.finish(&claimed, Finish::Done(json!({"file": "x"})))
        .await
        .unwrap();

    let done = jobs.get(job.id).await.unwrap().unwrap();
    assert_eq!(
        (done.state, done.end_ts, done.error),
        (JobState::Done, Some(1_000_005), None)
    );
    assert_eq!(
        (done.progress, done.result),
        (json!({"epoch": 1}), json!({"file": "x"}))
    );
    assert_eq!(done.details.len(), MAX_DETAILS);
    assert_eq!(
        (done.details[0].as_str(), done.details[19].as_str()),
        ("6", "last")
    );
    assert!(matches!(
        jobs.finish(&claimed, Finish::Stopped).await,
        Err(StoreError::StaleFence(_))
    ));
    assert_eq!(jobs.running(JobKind::Train).await.unwrap(), None);
    assert_eq!(jobs.last(JobKind::Train).await.unwrap().unwrap().id, job.id);
    assert_eq!(jobs.last(JobKind::Infer).await.unwrap(), None);
}

#[tokio::test]
async fn inference_goes_before_everything_and_workers_take_only_their_kinds() {
    let (_dir, jobs, _) = queue().await;
    for kind in [
        JobKind::Train,
        JobKind::BatchInfer,
        JobKind::Infer,
        JobKind::Score,
        JobKind::Infer,
    ] {
        enqueue(&jobs, kind).await;
    }
    let only_train = jobs
        .claim("w", &[JobKind::Train], LEASE_S)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(only_train.job.kind, JobKind::Train);
    assert_eq!(
        jobs.claim("w", &[JobKind::Train], LEASE_S).await.unwrap(),
        None
    );
    let mut order = Vec::new();
    while let Some(claimed) = jobs.claim("w", &ALL, LEASE_S).await.unwrap() {
        order.push(claimed.job.kind);
    }
    assert_eq!(
        order,
        [
            JobKind::Infer,
            JobKind::Infer,
            JobKind::Score,
            JobKind::BatchInfer
        ]
    );
}

#[tokio::test]
async fn a_lost_lease_is_retried_twice_and_then_fails_with_the_reason() {
    let (_dir, jobs, clock) = queue().await;
    let job = enqueue(&jobs, JobKind::Infer).await;
    for attempt in 1..=MAX_ATTEMPTS {
        let claimed = claim(&jobs).await;
        assert_eq!(claimed.job.attempts, attempt);
        clock.advance_ms(29_000);
        assert_eq!(jobs.requeue_expired().await.unwrap(), 0);
        // A heartbeat renews the lease.
        jobs.heartbeat(&claimed, None, &[]).await.unwrap();
        clock.advance_ms(29_000);
        assert_eq!(jobs.requeue_expired().await.unwrap(), 0);
        clock.advance_ms(2_000);
        assert_eq!(jobs.requeue_expired().await.unwrap(), 1);
        // The worker that comes back is told to stop, and its result is refused.
        assert!(
            jobs.heartbeat(&claimed, Some(json!(1)), &[])
                .await
                .unwrap()
                .cancel
        );
        assert!(matches!(
            jobs.finish(&claimed, Finish::Done(json!(1))).await,
            Err(StoreError::StaleFence(_))
        ));
    }
    let failed = jobs.get(job.id).await.unwrap().unwrap();
    assert_eq!(
        (failed.state, failed.result),
        (JobState::Error, Value::Null)
    );
    assert!(failed.error.unwrap().contains("stopped answering, 3 times"));
    assert_eq!(jobs.claim("w", &ALL, LEASE_S).await.unwrap(), None);
}

#[tokio::test]
async fn stopping_ends_waiting_and_running_jobs_and_leaves_finished_ones() {
    let (_dir, jobs, _) = queue().await;
    let running = enqueue(&jobs, JobKind::Train).await;
    let claimed = claim(&jobs).await;
    let waiting = enqueue(&jobs, JobKind::Train).await;
    for id in [running.id, waiting.id] {
        assert_eq!(
            jobs.cancel(id).await.unwrap().unwrap().state,
            JobState::Stopped
        );
    }
    assert!(jobs.heartbeat(&claimed, None, &[]).await.unwrap().cancel);
    assert!(jobs.finish(&claimed, Finish::Done(json!(1))).await.is_err());
    assert_eq!(jobs.claim("w", &ALL, LEASE_S).await.unwrap(), None);
    let done = enqueue(&jobs, JobKind::Train).await;
    jobs.finish(&claim(&jobs).await, Finish::Error("why".to_owned()))
        .await
        .unwrap();
    assert_eq!(
        jobs.cancel(done.id)
            .await
            .unwrap()
            .unwrap()
            .error
            .as_deref(),
        Some("why")
    );
    assert_eq!(jobs.cancel(JobId(Uuid::nil())).await.unwrap(), None);
}

#[tokio::test]
async fn a_restart_puts_running_jobs_back_without_counting_the_attempt() {
    let (_dir, jobs, _) = queue().await;
    let job = enqueue(&jobs, JobKind::Train).await;
    for _ in 0..5 {
        let old = claim(&jobs).await;
        assert_eq!(old.job.attempts, 1);
        jobs.requeue_all().await.unwrap();
        assert_eq!(state(&jobs, job.id).await, JobState::Submitted);
        assert!(jobs.finish(&old, Finish::Done(json!(1))).await.is_err());
    }
}

#[tokio::test]
async fn waiting_ends_with_the_job() {
    let (_dir, jobs, clock) = queue().await;
    let job = enqueue(&jobs, JobKind::Infer).await;
    let waiter = tokio::spawn({
        let jobs = jobs.clone();
        async move { jobs.wait(job.id, Duration::from_secs(600)).await.unwrap() }
    });
    tokio::task::yield_now().await;
    jobs.finish(&claim(&jobs).await, Finish::Done(json!(7)))
        .await
        .unwrap();
    assert_eq!(waiter.await.unwrap().result, json!(7));
    assert!(matches!(
        jobs.wait(JobId(Uuid::nil()), Duration::from_secs(1)).await,
        Err(StoreError::NotFound(_))
    ));

    clock.advance_ms(1000);
    assert_eq!(jobs.prune(Duration::from_secs(2)).await.unwrap(), 0);
    assert_eq!(jobs.prune(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(jobs.get(job.id).await.unwrap(), None);
}

#[tokio::test]
async fn another_process_sees_the_same_queue() {
    let (dir, server, clock) = queue().await;
    let worker = Jobs::new(Database::open(&dir.path().join("db")).await.unwrap(), clock);
    let job = enqueue(&server, JobKind::Infer).await;
    let wait = server.wait(job.id, Duration::from_millis(5));
    let work = async {
        let claimed = claim(&worker).await;
        worker
            .finish(&claimed, Finish::Done(json!("seen")))
            .await
            .unwrap();
    };
    assert_eq!(tokio::join!(wait, work).0.unwrap().result, json!("seen"));
}

/// What may happen to the queue; the numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Enqueue(usize),
    Claim,
    Beat(usize),
    Finish(usize),
    Cancel(usize),
    Wait(i64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4usize).prop_map(Step::Enqueue),
        Just(Step::Claim),
        any::<usize>().prop_map(Step::Beat),
        any::<usize>().prop_map(Step::Finish),
        any::<usize>().prop_map(Step::Cancel),
        (1..40_000i64).prop_map(Step::Wait),
        Just(Step::Restart),
    ]
}

/// The rules in a few lines, to hold the queue to.
#[derive(Default)]
struct Model {
    order: Vec<JobId>,
    kind: HashMap<JobId, JobKind>,
    state: HashMap<JobId, JobState>,
    attempts: HashMap<JobId, i64>,
    /// The index of the only claim whose worker may still finish the job, and when its lease ends.
    holder: HashMap<JobId, (usize, i64)>,
}

impl Model {
    fn next(&self) -> Option<JobId> {
        let waits = |id: &&JobId| self.state[*id] == JobState::Submitted;
        ALL.iter()
            .find_map(|kind| {
                self.order
                    .iter()
                    .filter(waits)
                    .find(|id| self.kind[*id] == *kind)
            })
            .copied()
    }

    fn holds(&self, id: JobId, claim: usize) -> bool {
        self.state[&id] == JobState::Running
            && self
                .holder
                .get(&id)
                .is_some_and(|(holder, _)| *holder == claim)
    }
}

async fn follow(steps: Vec<Step>) {
    let (_dir, jobs, clock) = queue().await;
    let mut model = Model::default();
    let mut claims: Vec<Claimed> = Vec::new();
    for step in steps {
        let now_ms = clock.now_ms();
        let lease_end = now_ms + i64::from(LEASE_S) * 1000;
        match step {
            Step::Enqueue(kind) => {
                let job = enqueue(&jobs, ALL[kind]).await;
                model.order.push(job.id);
                model.kind.insert(job.id, ALL[kind]);
                model.state.insert(job.id, JobState::Submitted);
                model.attempts.insert(job.id, 0);
            }
            Step::Claim => {
                let claimed = jobs.claim("w", &ALL, LEASE_S).await.unwrap();
                assert_eq!(claimed.as_ref().map(|claimed| claimed.job.id), model.next());
                if let Some(claimed) = claimed {
                    let id = claimed.job.id;
                    model.state.insert(id, JobState::Running);
                    *model.attempts.get_mut(&id).unwrap() += 1;
                    assert_eq!(claimed.job.attempts, model.attempts[&id]);
                    model.holder.insert(id, (claims.len(), lease_end));
                    claims.push(claimed);
                }
            }
            Step::Beat(n) if !claims.is_empty() => {
                let n = n % claims.len();
                let id = claims[n].job.id;
                let holds = model.holds(id, n);
                assert_eq!(
                    jobs.heartbeat(&claims[n], None, &[]).await.unwrap().cancel,
                    !holds
                );
                if holds {
                    model.holder.insert(id, (n, lease_end));
                }
            }
            Step::Finish(n) if !claims.is_empty() => {
                let n = n % claims.len();
                let id = claims[n].job.id;
                assert_eq!(
                    jobs.finish(&claims[n], Finish::Done(json!(n)))
                        .await
                        .is_ok(),
                    model.holds(id, n)
                );
                if model.holds(id, n) {
                    model.state.insert(id, JobState::Done);
                }
            }
            Step::Cancel(n) if !model.order.is_empty() => {
                let id = model.order[n % model.order.len()];
                jobs.cancel(id).await.unwrap();
                if !model.state[&id].is_finished() {
                    model.state.insert(id, JobState::Stopped);
                }
            }
            Step::Wait(ms) => {
                clock.advance_ms(ms);
                jobs.requeue_expired().await.unwrap();
                for id in &model.order {
                    if model.state[id] == JobState::Running && model.holder[id].1 < clock.now_ms() {
                        let over = model.attempts[id] >= MAX_ATTEMPTS;
                        model.state.insert(
                            *id,
                            if over {
                                JobState::Error
                            } else {
                                JobState::Submitted
                            },
                        );
                    }
                }
            }
            Step::Restart => {
                jobs.requeue_all().await.unwrap();
                for id in &model.order {
                    if model.state[id] == JobState::Running {
                        model.state.insert(*id, JobState::Submitted);
                        *model.attempts.get_mut(id).unwrap() -= 1;
                    }
                }
            }
            Step::Beat(_) | Step::Finish(_) | Step::Cancel(_) => {}
        }
        for id in &model.order {
            assert_eq!(state(&jobs, *id).await, model.state[id]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_queue_keeps_its_rules(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(follow(steps));
    }
}

#[tokio::test]
async fn the_jobs_of_a_dead_worker_are_free_at_once() {
    let (_dir, jobs, _) = queue().await;
    enqueue(&jobs, JobKind::Train).await;
    let held = jobs.claim("dead", &ALL, LEASE_S).await.unwrap().unwrap();

    assert_eq!(jobs.abandon("another").await.unwrap(), 0);
    assert_eq!(state(&jobs, held.job.id).await, JobState::Running);
    assert_eq!(jobs.abandon("dead").await.unwrap(), 1);

    // Whatever the dead one still says is not heard, and the next one gets the job.
    assert!(jobs.heartbeat(&held, None, &[]).await.unwrap().cancel);
    let again = claim(&jobs).await;
    assert_eq!((again.job.id, again.job.attempts), (held.job.id, 2));
}
