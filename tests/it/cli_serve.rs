//! `fewlabel serve`: the process from its first line to SIGTERM.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Stands for a patient's name: it may be in answers, never in a log.
const CANARY: &str = "DOE^JANE-19700101";

fn serve(studies: &Path, arguments: &[&str]) -> Child {
    serve_with(studies, arguments, &[])
}

fn serve_with(studies: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .arg("serve")
        .args(if arguments.contains(&"--port") {
            &[][..]
        } else {
            &["--port", "0"]
        })
        .arg("--studies")
        .arg(studies)
        .args(arguments)
        .env_remove("RUST_LOG")
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
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
    let mut stream = TcpStream::connect(address).unwrap();
    let rebound = "GET /info/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    stream.write_all(rebound.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
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
        (
            &["--labels", "a", "--host", "no.such.host.invalid"],
            &["--host"],
        ),
    ] {
        let output = serve(folder.path(), arguments).wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn addresses_that_cannot_be_taken_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, words) in [
        (
            &["--labels", "a", "--port", port.as_str()][..],
            &["in use", "--port"][..],
        ),
        (
            &["--labels", "a", "--host", "192.0.2.1", "--insecure"],
            &["192.0.2.1", "--host"],
        ),
    ] {
        let output = serve(folder.path(), arguments).wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn variables_of_monai_label_are_used_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let set = [
        ("MONAI_LABEL_API_STR", "/monai"),
        ("MONAI_LABEL_TASKS_TRAIN", "false"),
        ("MONAI_LABEL_APP_DIR", "/apps/radiology"),
        ("MONAI_LABEL_STUDIES", "/overruled/by/the/option"),
    ];
    let mut server = serve_with(folder.path(), &["--labels", "a"], &set);
    let mut lines = BufReader::new(server.stdout.take().unwrap());
    let mut ready = String::new();
    lines.read_line(&mut ready).unwrap();
    let address = ready.split("http://").nth(1).unwrap();
    let address = address.split(',').next().unwrap();
    let info = ask(address, "GET /monai/info/");
    assert!(
        info.starts_with("HTTP/1.1 200") && info.contains("\"trainers\":{}"),
        "{info}"
    );
    server.stdout = None;
    server.kill().unwrap();
    let mut log = String::new();
    server
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    server.wait().unwrap();
    assert!(
        log.contains("MONAI_LABEL_APP_DIR: models are chosen with --model"),
        "{log}"
    );
    assert!(!log.contains("MONAI_LABEL_API_STR"), "{log}");

    let login = [("MONAI_LABEL_AUTH_ENABLE", "true")];
    let refused = serve_with(folder.path(), &[], &login)
        .wait_with_output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "no login is pretended");
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("no login"), "{text}");
}
