//! `kill -9` of a server at random moments, while eight clients submit and repeat what was not answered.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fewlabel::rng::Rng;
use tokio::sync::watch;

use crate::http::{Http, multipart};
use crate::{Amount, site};

const WRITERS: u32 = 8;

fn start(dir: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("serve")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().parse();
    (child, address.expect("the server starts after every kill"))
}

/// Submits one label after the other until `stop`; returns the revision that each got.
async fn write(
    writer: u32,
    address: watch::Receiver<SocketAddr>,
    stop: Arc<AtomicBool>,
) -> (Vec<(i64, Vec<u8>)>, usize) {
    let (mut acknowledged, mut repeats) = (Vec::new(), 0);
    let study = site::STUDIES[writer as usize % site::STUDIES.len()];
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let label = site::label(writer << 20 | n);
        let (content_type, body) = multipart(&[("label", "label.nii.gz", &label)]);
        let key = format!("{writer}-{n}");
        let headers = [
            ("Content-Type", content_type.as_str()),
            ("Idempotency-Key", key.as_str()),
        ];
        let path = format!("/datastore/label?image={study}&tag=w{writer}");
        let reply = loop {
            let server = Http {
                address: *address.borrow(),
            };
            match server.try_send("PUT", &path, &headers, &body).await {
                Ok(reply) if reply.status == 503 => {}
                Ok(reply) => break reply,
                Err(_) => repeats += 1,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(reply.status, 200, "{}", reply.text());
        let revision = reply.header("etag").unwrap().trim_matches('"');
        acknowledged.push((revision.parse().unwrap(), label));
    }
    (acknowledged, repeats)
}

pub fn run(amount: &Amount) -> Result<String, String> {
    let folder = site::folder();
    let dir = folder.path();
    site::make_studies(dir);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut rng = Rng::new(1).named("kills");
    let (mut child, address) = start(dir);
    let (sender, receiver) = watch::channel(address);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| runtime.spawn(write(writer, receiver.clone(), stop.clone())))
        .collect();
    for _ in 0..amount.kills {
        std::thread::sleep(Duration::from_secs_f64(rng.range(0.005, 0.15)));
        child.kill().unwrap();
        child.wait().unwrap();
        let address;
        (child, address) = start(dir);
        sender.send(address).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (mut kept, mut asked_again) = (0, 0);
    let outcomes: Vec<_> = writers
        .into_iter()
        .map(|writer| runtime.block_on(writer).unwrap())
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    runtime.block_on(async {
        let project = site::open(dir).await;
        for (writer, (acknowledged, repeats)) in outcomes.into_iter().enumerate() {
            let study = site::STUDIES[writer % site::STUDIES.len()];
            // Every acknowledged label once, under the number that was answered, and none besides.
            let stored = site::revisions(&project, study, &format!("w{writer}")).await;
            assert_eq!(stored.len(), acknowledged.len(), "writer {writer}");
            assert!(stored == acknowledged, "writer {writer} has other labels");
            kept += stored.len();
            asked_again += repeats;
        }
        assert_eq!(project.check().await.unwrap(), Vec::<String>::new());
        project.close().await;
    });
    assert!(asked_again > 0, "the kills came during submits");
    Ok(format!(
        "{n} of {n} kills -9 under {WRITERS} writers: {kept} submits acknowledged ({asked_again} requests unanswered and repeated), 0 lost, 0 duplicated",
        n = amount.kills
    ))
}
