//! Where model files may lie on this machine, and how far off it one may go,
//! read from the environment once.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How long a hub may take to answer before it counts as unreachable.
const FIRST_ANSWER: Duration = Duration::from_secs(6);
/// How long a started download may stand still.
const STALL: Duration = Duration::from_secs(60);

/// Folders and endpoints that models are looked for in.
#[derive(Debug, Clone)]
pub struct Places {
    /// `YARDSTICK_MODELS`: the user's own files, by card name.
    pub models: Option<PathBuf>,
    /// `YARDSTICK_CACHE`, else a `yardstick` folder in the user's cache.
    pub cache: PathBuf,
    /// The hub and its cache.
    pub hub: HubPlace,
    /// The interpreter whose pip fetches packages.
    pub python: PathBuf,
}

/// The hub, as the Hugging Face libraries find it.
#[derive(Debug, Clone)]
pub struct HubPlace {
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`; `None` is the public hub.
    pub endpoint: Option<String>,
    /// `HF_TOKEN`; without it a token file beside the cache is used.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: never ask it.
    pub offline: bool,
    /// After this long without a first answer it counts as unreachable
    /// (`HF_HUB_ETAG_TIMEOUT`, in seconds).
    pub first_answer: Duration,
    /// After this long without a byte a download is given up.
    pub stall: Duration,
}

impl Places {
    /// As the environment has them.
    #[must_use]
    pub fn from_env() -> Self {
        let home = path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let seconds = text("HF_HUB_ETAG_TIMEOUT").and_then(|s| s.parse().ok());
        Self {
            models: path("YARDSTICK_MODELS"),
            cache: path("YARDSTICK_CACHE").unwrap_or_else(|| caches.join("yardstick")),
            hub: HubPlace {
                cache: path("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
                endpoint: text("HF_ENDPOINT"),
                token: text("HF_TOKEN"),
                offline: text("HF_HUB_OFFLINE").is_some_and(|on| !matches!(&*on, "0" | "false")),
                first_answer: seconds.map_or(FIRST_ANSWER, Duration::from_secs),
                stall: STALL,
            },
            python: PathBuf::from("python3"),
        }
    }

    /// The folder of yardstick's own cache that holds a card's files.
    pub(super) fn own(&self, card: &str) -> PathBuf {
        self.cache.join("models").join(card)
    }
}

fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from)
}

fn text(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}
