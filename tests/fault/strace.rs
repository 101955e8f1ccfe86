//! Kills, ENOSPC and EIO at every system call of a submit, by `strace --inject`; and the order of its syncs.
//!
//! strace counts calls per thread and name, so each thread of the helper is traced by itself, after it said that it is
//! ready: a plain run lists every call of every thread, and each of them is one point of the experiment.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::{Amount, site};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a helper may be silent before it counts as hung.
const SILENCE: Duration = PATIENCE;
/// Experiments at the same time.
const AT_A_TIME: usize = 4;

/// One system call of the plain run.
struct Call {
    /// Position of its thread in the order of their start.
    thread: usize,
    /// How many threads there were.
    of: usize,
    name: String,
    /// 1, 2, ... per thread and name.
    number: usize,
    /// Whether it works on a file of the store: a disk can fail at it.
    on_store: bool,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} of thread {}", self.name, self.number, self.thread)
    }
}

/// The helper, with what it said.
struct Helper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Helper {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("submit")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut helper = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(helper.line().as_deref(), Some("ready"));
        helper
    }

    /// Its threads in the order of their start.
    fn threads(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut threads: Vec<u32> = tasks
            .map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        threads.sort_unstable();
        threads
    }

    fn tell(&mut self) {
        // It may be dead.
        let _ = self.input.write_all(b"go\n");
    }

    /// The next line; none when it is dead.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| line.trim_end().to_owned())
    }

    fn end(mut self) {
        drop(self.input);
        self.child.wait().unwrap();
    }

    /// Kills it when the result has not been dropped after so long.
    fn watched(&self, patience: Duration) -> Sender<()> {
        let (alive, ended) = channel();
        let process = self.child.id().to_string();
        std::thread::spawn(move || {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-9", &process]).status();
            }
        });
        alive
    }
}

/// Attaches strace to threads and waits until it has them.
fn attach(threads: &[u32], arguments: &[&str]) -> Child {
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-y", "-s", "64"]).args(arguments);
    for thread in threads {
        strace.args(["-p", &thread.to_string()]);
    }
    let child = strace
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    for thread in threads {
        // A thread that is gone was reached by its fault.
        let traced = || match std::fs::read_to_string(format!("/proc/{thread}/status")) {
            Ok(status) => status.lines().any(|line| {
                line.strip_prefix("TracerPid:")
                    .is_some_and(|pid| pid.trim() != "0")
            }),
            Err(_) => true,
        };
        while !traced() {
            assert!(start.elapsed() < PATIENCE, "strace does not attach");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    child
}

/// Whether strace can do what is needed here.
fn usable() -> Result<(), String> {
    if Command::new("strace")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        return Err("there is no strace (apt-get install strace)".to_owned());
    }
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let traced = Command::new("timeout")
        .args([
            "1",
            "strace",
            "-qq",
            "-o",
            "/dev/null",
            "-p",
            &child.id().to_string(),
        ])
        .stderr(Stdio::piped())
        .output();
    child.kill().unwrap();
    child.wait().unwrap();
    match traced {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("attach") => Ok(()),
        _ => Err("processes cannot be traced here (kernel.yama.ptrace_scope)".to_owned()),
    }
}

/// Lines of a trace: thread, call with its arguments, and whether it is the end of a call that began before.
fn lines(text: &str) -> Vec<(u32, &str, bool)> {
    let parse = |line| {
        let (thread, call) = str::split_once(line, ' ')?;
        let call = call.trim_start();
        Some((thread.parse().ok()?, call, call.starts_with("<... ")))
    };
    text.lines().filter_map(parse).collect()
}

fn name(call: &str) -> &str {
    let call = call.strip_prefix("<... ").unwrap_or(call);
    call.split(['(', ' ']).next().unwrap_or_default()
}

/// A submit without faults: its calls, and the order of its syncs.
fn plain(template: &Path) -> (Vec<Call>, String) {
    let folder = site::folder();
    site::copy(template, folder.path());
    let trace = folder.path().join("trace");
    let mut helper = Helper::start(folder.path());
    let threads = helper.threads();
    let mut strace = attach(&threads, &["-o", trace.to_str().unwrap()]);
    helper.tell();
    assert_eq!(helper.line().as_deref(), Some("revision 2"));
    helper.end();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(&trace).unwrap();
    let text = &text[..text
        .find("\"revision 2\\n\"")
        .expect("the answer is in the trace")];
    let order = syncs(text);
    let store = format!("{}/", folder.path().display());
    let mut counts: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut waiting: BTreeSet<u32> = threads.iter().copied().collect();
    let mut calls = Vec::new();
    for (thread, call, resumed) in lines(text) {
        if resumed || !call.contains('(') {
            continue;
        }
        let position = threads.iter().position(|known| *known == thread);
        let position = position.expect("no thread starts during a submit");
        let count = counts.entry((position, name(call).to_owned())).or_default();
        *count += 1;
        // What each thread waited in before the submit began is no call of the submit.
        if waiting.remove(&thread) {
            continue;
        }
        calls.push(Call {
            thread: position,
            of: threads.len(),
            name: name(call).to_owned(),
            number: *count,
            on_store: call.contains(&store),
        });
    }
    (calls, order)
}

/// Which syncs were finished before the answer.
fn syncs(before_answer: &str) -> String {
    let mut begun: BTreeMap<u32, &str> = BTreeMap::new();
    let mut done: Vec<&str> = Vec::new();
    for (thread, call, resumed) in lines(before_answer) {
        if !matches!(name(call), "fsync" | "fdatasync") {
            continue;
        }
        if call.ends_with("<unfinished ...>") {
            begun.insert(thread, call);
        } else if !call.contains(" = 0") {
            panic!("a sync failed: {call}");
        } else if resumed {
            done.extend(begun.remove(&thread));
        } else {
            done.push(call);
        }
    }
    let count = |what: fn(&str) -> bool| done.iter().filter(|call| what(call)).count();
    let path = |call: &str| {
        let path = call.split(['<', '>']).nth(1).unwrap_or_default();
        path.to_owned()
    };
    let depth_below_blobs = |call: &&&str| {
        let path = path(call);
        path.split_once("/blobs/")
            .map(|(_, rest)| rest.split('/').count())
    };
    let files = done
        .iter()
        .filter(|call| depth_below_blobs(call) == Some(2))
        .count();
    let folders = done
        .iter()
        .filter(|call| depth_below_blobs(call) == Some(1))
        .count();
    let database = count(|call| call.contains("/fewlabel.db"));
    let last = done.last().map(|call| path(call)).unwrap_or_default();
    assert!(
        files >= 2 && folders >= 2 && database >= 1 && last.contains("/fewlabel.db"),
        "syncs before the answer: {done:#?}"
    );
    format!(
        "{files} blob files, {folders} directories and the database ({database}) synced before the answer, the database last"
    )
}

/// A helper on a copy of the template that has so many threads: now and then the pool of connections opens one more.
fn ready(template: &Path, threads: usize) -> (tempfile::TempDir, Helper) {
    let start = Instant::now();
    loop {
        let folder = site::folder();
        site::copy(template, folder.path());
        let helper = Helper::start(folder.path());
        if helper.threads().len() == threads {
            return (folder, helper);
        }
        helper.end();
        assert!(start.elapsed() < PATIENCE, "it never has {threads} threads");
    }
}

/// What an injected fault led to.
struct Outcome {
    folder: tempfile::TempDir,
    /// What the helper said before it ended.
    said: Vec<String>,
    /// Whether it hit something else than a file: strace counts calls by name alone, and where threads meet differently
    /// than in the plain run, the counted one may be what wakes another thread, which no disk can fail.
    beside: bool,
}

/// Injects one fault.
fn inject(template: &Path, call: &Call, fault: &str, again: bool) -> Outcome {
    let (folder, mut helper) = ready(template, call.of);
    let thread = helper.threads()[call.thread];
    let filter = format!("trace={}", call.name);
    let inject = format!("inject={}:{fault}:when={}", call.name, call.number);
    let trace = folder.path().join("trace");
    let log = trace.to_str().unwrap();
    let mut strace = attach(&[thread], &["-o", log, "-e", &filter, "-e", &inject]);
    let watched = helper.watched(SILENCE);
    helper.tell();
    let mut said: Vec<String> = helper.line().into_iter().collect();
    if again && !said.is_empty() {
        helper.tell();
        said.extend(std::iter::from_fn(|| helper.line()));
    }
    helper.end();
    drop(watched);
    strace.wait().unwrap();
    let text = std::fs::read_to_string(&trace).unwrap();
    let mut hit = text.lines().filter(|line| line.contains("(INJECTED)"));
    let beside = hit.any(|line| line.contains("<anon_inode:") || line.contains("<pipe:"));
    Outcome {
        folder,
        said,
        beside,
    }
}

/// After a fault: the store opens, is whole, and holds the old label and, if acknowledged, the new one.
fn check(runtime: &tokio::runtime::Runtime, dir: &Path, acknowledged: bool, at: &str) -> usize {
    runtime.block_on(async {
        let project = site::open(dir).await;
        let stored = site::revisions(&project, "case_1", "final").await;
        let whole = [(1, site::label(1)), (2, site::label(2))];
        assert!(
            stored == whole[..1] || stored == whole,
            "{at}: {} revisions, or other bytes",
            stored.len()
        );
        assert!(!acknowledged || stored.len() == 2, "{at}: lost");
        assert_eq!(project.check().await.unwrap(), Vec::<String>::new(), "{at}");
        project.close().await;
        stored.len()
    })
}

pub fn run(amount: &Amount) -> Result<String, String> {
    usable()?;
    let template = site::folder();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    site::make_studies(template.path());
    runtime.block_on(async {
        let project = site::open(template.path()).await;
        site::submit(&project, "case_1", "final", &site::label(1), "first")
            .await
            .unwrap();
        project.close().await;
    });
    let (calls, order) = plain(template.path());
    println!("fault: order: {order}");
    let started = Instant::now();
    let (mut unanswered, mut missed) = (0, 0);
    let killed = sample(calls.iter(), amount.every, 0);
    for (stored, answered) in at_each(&killed, |call| {
        let at = format!("kill at {call}");
        let Outcome { folder, said, .. } = inject(template.path(), call, "signal=SIGKILL", false);
        let answered = !said.is_empty();
        (check(&runtime, folder.path(), answered, &at), answered)
    }) {
        missed += usize::from(answered);
        unanswered += usize::from(stored == 2 && !answered);
    }
    let seconds = started.elapsed().as_secs();
    println!(
        "fault: kill -9 at {killed} of {n} system calls of a submit: 0 lost, 0 torn, all stores start ({missed} came after the answer or not at all, as threads meet differently in every run; {unanswered} labels were kept without an answer; {seconds} s)",
        killed = killed.len(),
        n = calls.len()
    );
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    // A lock is in memory: a disk cannot fail at fcntl.
    let disk = |call: &&Call| call.on_store && call.name != "fcntl";
    let on_store: Vec<&Call> = calls.iter().filter(disk).collect();
    let mut failing = 0;
    for (fault, error) in [(1, "ENOSPC"), (2, "EIO")] {
        let chosen = sample(on_store.iter().copied(), amount.every, fault);
        failing += chosen.len();
        for answer in at_each(&chosen, |call| {
            let at = format!("{error} at {call}");
            let fault = format!("error={error}");
            let Outcome {
                folder,
                said,
                beside,
            } = inject(template.path(), call, &fault, true);
            if beside {
                check(&runtime, folder.path(), false, &at);
                return "beside the store".to_owned();
            }
            assert_eq!(said.len(), 3, "{at}: the helper ended: {said:?}");
            let answer = said[0].split(' ').take(2).collect::<Vec<_>>().join(" ");
            assert!(
                ["revision 2", "refused 507", "refused 503"].contains(&answer.as_str()),
                "{at}: {}",
                said[0]
            );
            assert_eq!(said[2], "revision 2", "{at}: it goes on without a restart");
            check(&runtime, folder.path(), true, &at);
            if std::env::var_os("FEWLABEL_FAULT_VERBOSE").is_some() {
                println!("fault: {at}: {}", said[0]);
            }
            answer
        }) {
            *answers.entry(answer).or_default() += 1;
        }
    }
    Ok(format!(
        "kill -9 at {killed} of {n} calls, ENOSPC and EIO at {failing} of {points} calls on the store ({answers:?}): 0 lost, 0 torn, 0 stores that do not start, all go on without a restart",
        killed = killed.len(),
        n = calls.len(),
        points = 2 * on_store.len()
    ))
}

/// One call of `every`; for each fault other ones, so that a short form meets most calls in some way.
fn sample<'a>(calls: impl Iterator<Item = &'a Call>, every: usize, fault: usize) -> Vec<&'a Call> {
    calls.skip(fault % every).step_by(every).collect()
}

/// What `experiment` gives at each call, a few at a time. Every failure is told before the first one ends the test.
fn at_each<T: Send>(calls: &[&Call], experiment: impl Fn(&Call) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push(std::panic::catch_unwind(AssertUnwindSafe(|| {
                experiment(call)
            })));
        }
        found
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let failed = found.iter().filter(|outcome| outcome.is_err()).count();
    assert!(failed == 0, "{failed} of {} points failed", calls.len());
    found.into_iter().map(Result::unwrap).collect()
}
