//! `fewlabel serve`: the process from its first line to SIGTERM.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Stands for a patient's name: it may be in answers, never in a log.
const CANARY: &str = "DOE^JANE-19700101";

fn serve(studies: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .args(["serve", "--port", "0", "--studies"])
        .arg(studies)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn from_the_ready_line_to_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(
        folder.path(),
        &["--labels", "spleen,liver", "--log", "fewlabel=trace"],
    );
    let mut lines = BufReader::new(server.stdout.take().unwrap());
    let mut ready = String::new();
    lines.read_line(&mut ready).unwrap();
    let address = ready
        .split("http://")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .unwrap();
    for word in [
        env!("CARGO_PKG_VERSION"),
        ".fewlabel",
        "device",
        "pct-net-s",
        "not trained yet",
    ] {
        assert!(ready.contains(word), "{word} is missing in: {ready}");
    }
    assert!(ask(address, "GET /info/").starts_with("HTTP/1.1 200"));
    for request in [
        "GET /datastore/image?image=",
        "GET /session/",
        "POST /infer/pct-net-s?image=",
    ] {
        assert!(ask(address, &format!("{request}{CANARY}")).starts_with("HTTP/1.1 404"));
    }
    let log = ask(address, "GET /logs/?text=true");
    assert!(
        log.contains("GET /session/{session_id} answered 404"),
        "{log}"
    );
    let second = serve(folder.path(), &[]).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1), "the data folder is held");
    let terminated = Command::new("kill")
        .arg(server.id().to_string())
        .status()
        .unwrap();
    assert!(terminated.success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "one line is printed");
    let output = server.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("answered 404") && !errors.contains(CANARY),
        "{errors}"
    );
}

#[test]
fn labels_are_remembered_and_held() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = r#"{"labels":{"0":"background","1":"spleen","2":"liver"}}"#;
    std::fs::write(folder.path().join("dataset.json"), dataset).unwrap();
    for (arguments, code) in [(&["--labels", "liver"][..], Some(2)), (&[], None)] {
        let mut server = serve(folder.path(), arguments);
        let mut ready = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert_eq!(ready.is_empty(), code.is_some(), "{ready}");
        if code.is_none() {
            server.kill().unwrap();
            server.wait().unwrap();
        } else {
            assert_eq!(server.wait().unwrap().code(), code);
        }
    }
    std::fs::remove_file(folder.path().join("dataset.json")).unwrap();
    let refused = serve(folder.path(), &["--labels", "liver"])
        .wait_with_output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("spleen,liver"), "{text}");
}

#[test]
fn usage_errors_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&[][..], &["--model DIR", "dataset.json", "--labels"][..]),
        (&["--labels", "a,b", "--host", "0.0.0.0"], &["--insecure"]),
        (&["--labels", "a,a"], &["--labels"]),
        (
            &["--labels", "a", "--model", "none"],
            &["none", "manifest.json"],
        ),
        (&["--device", "abacus"], &["--device"]),
    ] {
        let output = serve(folder.path(), arguments).wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(output.stdout.is_empty());
    }
}
