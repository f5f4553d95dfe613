//! Model folders from the hub, through its cache. The client runs on a thread
//! of its own: it has no time limits, and an air-gapped machine must get to
//! the next source within seconds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};
use serde::Deserialize;

use super::Progress;
use super::places::HubPlace;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Read where they are there.
const OPTIONAL: [&str; 3] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
/// Reports that may wait; the downloader waits when nobody reads them.
const CHANNEL: usize = 64;
/// Bytes between two reports.
const REPORT_EVERY: u64 = 1 << 20;

/// The repository's folder in the hub cache, if all of it is there.
pub(super) fn cached(place: &HubPlace, repo: &str) -> Option<PathBuf> {
    let folder = cached_file(place, repo, CONFIG)?.parent()?.to_owned();
    let weights = folder.join(SINGLE).exists()
        || shards(&folder.join(INDEX))
            .is_ok_and(|shards| shards.iter().all(|shard| folder.join(shard).exists()));
    (weights && folder.join(TOKENIZER).exists()).then_some(folder)
}

/// One file of the repository in the hub cache.
pub(super) fn cached_file(place: &HubPlace, repo: &str, file: &str) -> Option<PathBuf> {
    Cache::new(place.cache.clone()).repo(Repo::model(repo.to_owned())).get(file)
}

/// Downloads what is missing of the repository; returns its folder.
pub(super) fn download(
    place: &HubPlace,
    repo: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, String> {
    let (sender, receiver) = mpsc::sync_channel(CHANNEL);
    let (worker_place, worker_repo) = (place.clone(), repo.to_owned());
    thread::Builder::new()
        .name("hub download".to_owned())
        .spawn(move || {
            let result = fetch(&worker_place, &worker_repo, &sender);
            // Nobody listens any more once the time limit has passed.
            let _ = sender.send(Report::Done(result));
        })
        .map_err(|e| format!("no thread for the download: {e}"))?;
    let mut limit = place.first_answer;
    loop {
        match receiver.recv_timeout(limit) {
            Ok(Report::Answered) => limit = place.stall,
            Ok(Report::Bytes { file, done, total }) => {
                progress(Progress::Bytes { file, done, total: Some(total) });
            }
            Ok(Report::Done(result)) => return result,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("no answer within {} s", limit.as_secs_f32()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err("the hub's answer broke its client".to_owned());
            }
        }
    }
}

enum Report {
    /// The hub is there.
    Answered,
    Bytes {
        file: String,
        done: u64,
        total: u64,
    },
    Done(Result<PathBuf, String>),
}

/// Smallest files first, so that an unreachable or closed repository is known at once.
fn fetch(place: &HubPlace, repo: &str, reports: &SyncSender<Report>) -> Result<PathBuf, String> {
    let mut builder = ApiBuilder::from_cache(Cache::new(place.cache.clone())).with_progress(false);
    if let Some(endpoint) = &place.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if let Some(token) = &place.token {
        builder = builder.with_token(Some(token.clone()));
    }
    let api = builder.build().map_err(|e| e.to_string())?.model(repo.to_owned());
    let get = |file: &str| get(&api, place, repo, file, reports);

    let config = get(CONFIG).map_err(|e| explain(&e))?;
    let _ = reports.send(Report::Answered);
    get(TOKENIZER).map_err(|e| explain(&e))?;
    for file in OPTIONAL {
        match get(file) {
            Err(e) if !is_missing(&e) => return Err(explain(&e)),
            Ok(_) | Err(_) => {}
        }
    }
    match get(SINGLE) {
        Ok(_) => {}
        Err(e) if is_missing(&e) => {
            let index = get(INDEX).map_err(|e| explain(&e))?;
            for shard in shards(&index)? {
                get(&shard).map_err(|e| explain(&e))?;
            }
        }
        Err(e) => return Err(explain(&e)),
    }
    config.parent().map(Path::to_owned).ok_or_else(|| "the hub cache has no folders".to_owned())
}

fn get(
    api: &ApiRepo,
    place: &HubPlace,
    repo: &str,
    file: &str,
    reports: &SyncSender<Report>,
) -> Result<PathBuf, ApiError> {
    if let Some(path) = cached_file(place, repo, file) {
        return Ok(path);
    }
    let meter = Meter { file: file.to_owned(), done: 0, reported: 0, total: 0, reports };
    api.download_with_progress(file, meter)
}

/// Passes on what the client reports, a mebibyte at a time.
struct Meter<'a> {
    file: String,
    done: u64,
    reported: u64,
    total: u64,
    reports: &'a SyncSender<Report>,
}

impl Meter<'_> {
    fn report(&mut self) {
        self.reported = self.done;
        let (file, done, total) = (self.file.clone(), self.done, self.total);
        let _ = self.reports.send(Report::Bytes { file, done, total });
    }
}

impl hf_hub::api::Progress for Meter<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if self.done - self.reported.min(self.done) >= REPORT_EVERY {
            self.report();
        }
    }

    fn finish(&mut self) {
        self.report();
    }
}

/// Names of the weight files that an index lists.
fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(|e| format!("{INDEX}: {e}"))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| format!("{INDEX}: {e}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| shard.contains(['/', '\\']) || shard.starts_with('.')) {
        Some(odd) => Err(format!("{INDEX}: `{odd}` is not the name of a file beside it")),
        None => Ok(shards),
    }
}

/// The client keeps a status only in its text.
fn has_status(error: &ApiError, status: u16) -> bool {
    error.to_string().contains(&format!("status code {status}"))
}

fn is_missing(error: &ApiError) -> bool {
    has_status(error, 404)
}

fn explain(error: &ApiError) -> String {
    if has_status(error, 401) || has_status(error, 403) {
        "access refused: the repository is gated, private or unknown".to_owned()
    } else {
        error.to_string()
    }
}
