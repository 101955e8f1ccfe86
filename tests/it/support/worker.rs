//! A worker that claims jobs and finishes them without computing.

use std::time::Duration;

use fewlabel::project::requests::{InferRequest, InferResult, TrainRequest};
use fewlabel::project::{Claimed, Finish, JobKind, Project};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinHandle;

const KINDS: [JobKind; 4] = [
    JobKind::Infer,
    JobKind::Score,
    JobKind::BatchInfer,
    JobKind::Train,
];

/// Runs until dropped. Training goes on until it is cancelled when its run is called `endless`.
pub struct FakeWorker(JoinHandle<()>);

impl FakeWorker {
    pub fn start(project: &Project) -> Self {
        let project = project.clone();
        Self(tokio::spawn(async move {
            loop {
                match project.jobs().claim("fake", &KINDS, 60).await.unwrap() {
                    Some(claimed) => work(&project, &claimed).await,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        }))
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn work(project: &Project, claimed: &Claimed) {
    let jobs = project.jobs();
    let finish = match claimed.job.kind {
        JobKind::Infer => infer(project, claimed),
        JobKind::Score => Finish::Done(json!({ "dice": 1.0 })),
        JobKind::BatchInfer => Finish::Done(json!({ "case_01": { "tag": "original" } })),
        JobKind::Train => {
            let request = TrainRequest::deserialize(&claimed.job.payload).unwrap();
            let progress = json!({
                "epoch": 1,
                "total_epochs": request.max_epochs,
                "best_metric": 0.5,
                "train": { "metrics": { "loss": 0.25 } },
            });
            let details = ["epoch 1 done".to_owned()];
            let mut beat = jobs
                .heartbeat(claimed, Some(progress), &details)
                .await
                .unwrap();
            while request.name == "endless" && !beat.cancel {
                tokio::time::sleep(Duration::from_millis(5)).await;
                beat = jobs.heartbeat(claimed, None, &[]).await.unwrap();
            }
            if beat.cancel {
                return;
            }
            Finish::Done(json!({ "total_time": "0:00:01" }))
        }
    };
    // Refused when the job was stopped meanwhile, as it should be.
    let _ = jobs.finish(claimed, finish).await;
}

fn infer(project: &Project, claimed: &Claimed) -> Finish {
    let request = InferRequest::deserialize(&claimed.job.payload).unwrap();
    let name = format!("{}{}", claimed.job.id, request.result_extension);
    let file = project.scratch_dir().join(name);
    let header = "NRRD0004\ntype: unsigned char\ndimension: 3\n\
                  space: left-posterior-superior\nsizes: 4 3 2\nencoding: raw\n\n";
    let mut bytes = header.as_bytes().to_vec();
    // Line ends and dashes in the voxels must not disturb the multipart answer.
    bytes.extend(b"\r\n--\r\n\x00\x01\x02\r\n--boundary--\r");
    bytes.truncate(header.len() + 24);
    bytes.resize(header.len() + 24, 1);
    std::fs::create_dir_all(project.scratch_dir()).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let result = InferResult {
        file: (request.result_extension != ".json").then_some(file),
        params: json!({
            "label_names": { "spleen": 1, "liver": 2 },
            "latencies": { "total": 0.0 },
            "centroids": {},
        }),
    };
    Finish::Done(serde_json::to_value(result).unwrap())
}
