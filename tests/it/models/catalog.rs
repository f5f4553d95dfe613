//! Where models are found, and what is said when they are not.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use safetensors::tensor::Dtype;
use tempfile::TempDir;
use yardstick::catalog::{
    CatalogError, DEFAULT_MODEL, HubPlace, LocateOptions, Located, Places, Progress, cards,
    find_card, locate_in,
};
use yardstick::infer::{ModelSource, weights};

use super::forms::{tiny_config, write_tiny_folder};

/// A machine of its own: nothing is there, nothing is reachable.
fn bare(root: &Path) -> Places {
    Places {
        models: None,
        cache: root.join("cache"),
        hub: HubPlace {
            cache: root.join("hub"),
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            token: None,
            offline: false,
            first_answer: Duration::from_secs(5),
            stall: Duration::from_secs(5),
        },
        python: root.join("no-python"),
    }
}

fn find(places: &Places, name: &str) -> Result<Located, CatalogError> {
    locate_in(places, name, &LocateOptions::default(), &mut |_| {})
}

fn dummy(places: &Places, name: &str) -> Result<Located, CatalogError> {
    let options = LocateOptions { dummy: Some(3), offline: false };
    locate_in(places, name, &options, &mut |_| {})
}

#[test]
fn when_every_source_fails_each_is_named_with_its_reason() {
    let root = tempfile::tempdir().unwrap();
    let error = find(&bare(root.path()), DEFAULT_MODEL).unwrap_err();
    let lines: Vec<&str> = error.message.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 6, "{error}");
    assert!(lines[0].contains(DEFAULT_MODEL));
    assert_eq!(lines[1], "YARDSTICK_MODELS: not set");
    assert!(lines[2].starts_with("yardstick cache: nothing whole in"));
    assert!(lines[3].starts_with("hub cache: HuggingFaceTB/SmolLM2-135M-Instruct is not whole"));
    assert!(lines[4].starts_with("hub HuggingFaceTB/SmolLM2-135M-Instruct: "), "{error}");
    assert!(lines[5].contains("no-python cannot be run"), "{error}");
    assert!(error.hint.unwrap().contains("--load-format dummy"));
}

#[test]
fn a_gated_model_is_explained() {
    let root = tempfile::tempdir().unwrap();
    let hint = find(&bare(root.path()), "llama-3.2-3b-instruct").unwrap_err().hint.unwrap();
    assert!(hint.contains("HF_TOKEN") && hint.contains("--load-format dummy"), "{hint}");
}

#[test]
fn offline_asks_nobody() {
    let root = tempfile::tempdir().unwrap();
    let options = LocateOptions { dummy: None, offline: true };
    let error =
        locate_in(&bare(root.path()), DEFAULT_MODEL, &options, &mut |p| panic!("tried {p:?}"))
            .unwrap_err();
    assert_eq!(error.message.matches("not asked: offline").count(), 2, "{error}");
    assert!(!root.path().join("cache").exists());
}

#[test]
fn an_unknown_name_lists_the_cards_and_a_missing_path_says_so() {
    let root = tempfile::tempdir().unwrap();
    let places = bare(root.path());
    let error = find(&places, "gpt-5").unwrap_err();
    for card in cards() {
        assert!(error.message.contains(&card.name), "{error}");
    }
    assert!(find(&places, "./nowhere/model").unwrap_err().message.contains("does not exist"));
    assert!(find(&places, "nowhere.gguf").unwrap_err().message.contains("does not exist"));
}

#[test]
fn paths_are_taken_for_what_they_hold() {
    let root = tempfile::tempdir().unwrap();
    let places = bare(root.path());
    let at = |path: &Path| find(&places, path.to_str().unwrap());
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(at(&empty).unwrap_err().message.contains("holds no model"));
    fs::write(empty.join("notes.txt"), "x").unwrap();
    assert!(at(&empty.join("notes.txt")).unwrap_err().message.contains("is not a GGUF file"));
    fs::write(empty.join("b.gguf"), "x").unwrap();
    assert_eq!(at(&empty).unwrap().source, ModelSource::Gguf(empty.join("b.gguf")));
    fs::write(empty.join("a.GGUF"), "x").unwrap();
    assert!(at(&empty).unwrap_err().message.contains("holds 2 GGUF files"));
    fs::write(empty.join("config.json"), "{}").unwrap();
    assert_eq!(at(&empty).unwrap().source, ModelSource::Folder(empty));
}

#[test]
fn the_users_own_folder_goes_first_and_is_meant() {
    let root = tempfile::tempdir().unwrap();
    let mut places = bare(root.path());
    places.models = Some(root.path().join("mine"));
    let mine = root.path().join("mine").join(DEFAULT_MODEL);
    fs::create_dir_all(&mine).unwrap();
    assert!(find(&places, DEFAULT_MODEL).unwrap_err().message.contains("holds no model"));
    write_tiny_folder(&mine, Dtype::F32, false);
    let found = find(&places, DEFAULT_MODEL).unwrap();
    assert_eq!(found.source, ModelSource::Folder(mine.clone()));
    assert_eq!(found.card.map(|card| card.name.as_str()), Some(DEFAULT_MODEL));
    let ModelSource::Dummy { tokenizer, .. } = dummy(&places, DEFAULT_MODEL).unwrap().source else {
        panic!("dummy was asked for");
    };
    assert_eq!(tokenizer, Some(mine.join("tokenizer.json")));
}

#[test]
fn dummy_needs_no_file_and_has_the_cards_shapes() {
    let root = tempfile::tempdir().unwrap();
    let places = bare(root.path());
    let found = dummy(&places, "llama-3.2-3b-instruct").unwrap();
    let card = find_card("llama-3.2-3b-instruct").unwrap();
    let expected =
        ModelSource::Dummy { config: Box::new(card.config.clone()), seed: 3, tokenizer: None };
    assert_eq!(found.source, expected);
    assert!(found.origin.contains("dummy"));
    let folder = root.path().join("tiny");
    fs::create_dir(&folder).unwrap();
    write_tiny_folder(&folder, Dtype::F32, false);
    let ModelSource::Dummy { config, tokenizer, .. } =
        dummy(&places, folder.to_str().unwrap()).unwrap().source
    else {
        panic!("dummy was asked for");
    };
    assert_eq!(*config, tiny_config());
    assert_eq!(tokenizer, Some(folder.join("tokenizer.json")));
}

#[test]
fn a_hub_that_never_answers_is_left_for_the_next_source() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut places = bare(root.path());
    places.hub.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    places.hub.first_answer = Duration::from_millis(200);
    let error = find(&places, DEFAULT_MODEL).unwrap_err();
    assert!(error.message.contains("no answer within 0.2 s"), "{error}");
    assert!(error.message.contains("no-python"), "{error}");
}

#[test]
fn a_hub_that_refuses_is_quoted() {
    let root = tempfile::tempdir().unwrap();
    let hub = Hub::start(root.path().join("served"), "401 Unauthorized");
    let mut places = bare(root.path());
    places.hub.endpoint = Some(hub.endpoint.clone());
    let error = find(&places, "llama-3.2-1b-instruct").unwrap_err();
    assert!(error.message.contains("access refused: the repository is gated"), "{error}");
}

#[test]
fn the_hub_is_downloaded_once_and_found_in_its_cache_from_then_on() {
    for sharded in [false, true] {
        let root: TempDir = tempfile::tempdir().unwrap();
        let served = root.path().join("served");
        fs::create_dir(&served).unwrap();
        write_tiny_folder(&served, Dtype::F32, sharded);
        let hub = Hub::start(served, "404 Not Found");
        let mut places = bare(root.path());
        places.hub.endpoint = Some(hub.endpoint.clone());
        let mut bytes = 0;
        let found = locate_in(&places, DEFAULT_MODEL, &LocateOptions::default(), &mut |progress| {
            if let Progress::Bytes { done, .. } = progress {
                bytes += done;
            }
        })
        .unwrap();
        assert!(found.origin.starts_with("hub HuggingFaceTB/"), "{}", found.origin);
        assert!(bytes > 0);
        assert_eq!(weights::open(&found.source).unwrap().config, tiny_config());
        drop(hub);
        places.hub.endpoint = Some("http://127.0.0.1:1".to_owned());
        let again = find(&places, DEFAULT_MODEL).unwrap();
        assert_eq!(again.origin, "hub cache");
        assert_eq!(again.source, found.source);
    }
}

/// A hub that serves one folder as every repository, and `otherwise` for the rest.
struct Hub {
    endpoint: String,
    stop: Arc<AtomicBool>,
}

impl Hub {
    fn start(served: PathBuf, otherwise: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that went away is its own affair.
                let _ = answer(stream, &served, otherwise);
            }
        });
        Self { endpoint, stop }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
    }
}

/// One request a connection; ranges as the hub's client asks for them.
fn answer(mut stream: TcpStream, served: &Path, otherwise: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut path, mut start, mut end) = (String::new(), 0, usize::MAX);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap().to_owned();
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = range.trim().split_once('-').unwrap();
            (start, end) = (from.parse().unwrap(), to.parse().unwrap_or(usize::MAX));
        }
    }
    let name = path.rsplit('/').next().unwrap().to_owned();
    let Ok(bytes) = fs::read(served.join(&name)) else {
        return write!(
            stream,
            "HTTP/1.1 {otherwise}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    let part = &bytes[start..end.saturating_add(1).min(bytes.len())];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nETag: \"{name}-tag\"\r\nX-Repo-Commit: c0ffee\r\n\
         Content-Range: bytes {start}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        start + part.len().saturating_sub(1),
        bytes.len(),
        part.len()
    )?;
    stream.write_all(part)
}
