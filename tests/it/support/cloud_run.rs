//! A stand-in for Google Cloud Run: the Admin API, the Monitoring API, the
//! metadata server and one service, at one port. The service really goes cold:
//! without requests its instance ends after a while, and the request that meets
//! none waits until one has started. Its metric is sampled, and shown late.
//!
//! Written after Google's documentation, and never compared with Google's own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::wire;

/// As long as an instance takes to start.
pub const BOOT: Duration = Duration::from_millis(400);
/// An instance that is asked nothing for as long ends.
const IDLE: Duration = Duration::from_secs(2);
/// Time between two samples.
const SAMPLED: Duration = Duration::from_millis(200);
/// Time until a sample can be seen.
const SHOWN_AFTER: SignedDuration = SignedDuration::from_millis(500);

/// How it behaves.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Laid over the service's description.
    pub service: Value,
    /// Instances never end.
    pub never_idle: bool,
    /// The metric has no sample of this service.
    pub no_metric: bool,
    /// So many answers of the Monitoring API are 503 first.
    pub num_busy: u32,
    /// What the Monitoring API answers instead, with its status.
    pub monitoring: Option<(u16, String)>,
    /// Life of an identity token in seconds.
    pub token_life: i64,
    /// The service lets everybody in.
    pub public: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            service: json!({}),
            never_idle: false,
            no_metric: false,
            num_busy: 0,
            monitoring: None,
            token_life: 3600,
            public: false,
        }
    }
}

/// A request to the service.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    /// It met no instance.
    pub was_cold: bool,
    /// The status of its answer.
    pub status: u16,
}

#[derive(Default)]
struct State {
    /// The instance of the revision with all traffic: until when it starts, and its last request.
    instance: Option<(Instant, Instant)>,
    /// Number of the latest revision.
    revision: u32,
    samples: Vec<(Timestamp, u32, u64)>,
    asked: Vec<Asked>,
    /// Every token that was handed out, with its end.
    identities: Vec<(String, Timestamp)>,
    patched: Vec<Value>,
    num_polls: u32,
}

/// The running stand-in.
pub struct CloudRun {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    behaviour: Behaviour,
    url: String,
    state: Mutex<State>,
    over: AtomicBool,
}

/// The access token that the APIs take.
pub const ACCESS_TOKEN: &str = "ya29.the-access-token-of-this-test-0123456789";

impl CloudRun {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Mutex::new(State { revision: 1, ..State::default() });
        let over = AtomicBool::new(false);
        let shared = Arc::new(Shared { behaviour, url: url.clone(), state, over });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.over.load(Ordering::Acquire) {
                    break;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        let sampling = Arc::clone(&shared);
        std::thread::spawn(move || {
            while !sampling.over.load(Ordering::Acquire) {
                sampling.sample();
                std::thread::sleep(SAMPLED);
            }
        });
        Self { url, shared }
    }

    /// Every request to the service.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().unwrap().asked.clone()
    }

    /// Every identity token that was handed out.
    pub fn identities(&self) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        state.identities.iter().map(|(token, _)| token.clone()).collect()
    }

    /// An identity token, as `gcloud auth print-identity-token` would print it.
    pub fn identity(&self) -> String {
        self.shared.mint()
    }

    /// The bodies of every PATCH.
    pub fn patched(&self) -> Vec<Value> {
        self.shared.state.lock().unwrap().patched.clone()
    }

    /// How often the metric was asked for.
    pub fn num_polls(&self) -> u32 {
        self.shared.state.lock().unwrap().num_polls
    }
}

impl Drop for CloudRun {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

struct Request {
    method: String,
    path: String,
    headers: String,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (mut headers, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            headers.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let Some(request) = Request::read(&stream) else { return };
        let (status, kind, body) = self.answer(&request);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new();
        let date = date.timestamp_to_rfc9110_string(&Timestamp::now()).unwrap();
        let head = format!(
            "HTTP/1.1 {status} X\r\ndate: {date}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
    }

    fn answer(&self, request: &Request) -> (u16, &'static str, String) {
        let json = |status, value: Value| (status, "application/json", value.to_string());
        let path = request.path.split('?').next().unwrap();
        if path.starts_with("/computeMetadata/") {
            return self.metadata(request);
        }
        let is_api = path.starts_with("/v2/") || path.starts_with("/v3/");
        if is_api && request.header("authorization") != Some(&format!("Bearer {ACCESS_TOKEN}")) {
            let got = request.header("authorization").unwrap_or("no token");
            return json(401, json!({ "error": { "message": format!("bad credentials: {got}") } }));
        }
        if path == "/v2/projects/mine/locations/us-central1/services/llm" {
            let mut state = self.state.lock().unwrap();
            if request.method == "PATCH" {
                state.patched.push(serde_json::from_slice(&request.body).unwrap());
                state.revision += 1;
                // A new revision has no instance yet.
                state.instance = None;
                return json(200, json!({ "name": "operations/1", "done": false }));
            }
            return json(200, self.described(state.revision));
        }
        if path == "/v3/projects/mine/timeSeries" {
            return self.time_series(request);
        }
        if is_api {
            return json(404, json!({ "error": { "message": "Resource was not found" } }));
        }
        self.service(request)
    }

    fn described(&self, revision: u32) -> Value {
        let name =
            format!("projects/mine/locations/us-central1/services/llm/revisions/llm-{revision}");
        let mut service = json!({
            "uri": self.url,
            "latestReadyRevision": name,
            "latestCreatedRevision": name,
            "terminalCondition": { "type": "Ready", "state": "CONDITION_SUCCEEDED" },
            "template": { "containers": [{ "image": "engine" }], "scaling": { "maxInstanceCount": 1 } },
            "trafficStatuses": [
                { "type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100 }
            ],
        });
        for (name, value) in self.behaviour.service.as_object().unwrap() {
            service[name] = value.clone();
        }
        service
    }

    fn metadata(&self, request: &Request) -> (u16, &'static str, String) {
        if request.header("metadata-flavor") != Some("Google") {
            return (403, "text/html", "missing Metadata-Flavor".to_owned());
        }
        if request.path.ends_with("/default/token") {
            let token = json!({
                "access_token": ACCESS_TOKEN, "expires_in": 3599, "token_type": "Bearer",
            });
            return (200, "application/json", token.to_string());
        }
        let escaped: String = url::form_urlencoded::byte_serialize(self.url.as_bytes()).collect();
        if request.path.ends_with(&format!("/default/identity?audience={escaped}")) {
            return (200, "text/html", self.mint());
        }
        (404, "text/html", "no such metadata".to_owned())
    }

    fn mint(&self) -> String {
        let mut state = self.state.lock().unwrap();
        let until = Timestamp::now() + SignedDuration::from_secs(self.behaviour.token_life);
        let claims = json!({ "exp": until.as_second(), "n": state.identities.len() });
        let token = format!("eyJhbGciOiJSUzI1NiJ9.{}.signature", base64url(&claims.to_string()));
        state.identities.push((token.clone(), until));
        token
    }

    fn time_series(&self, request: &Request) -> (u16, &'static str, String) {
        let mut state = self.state.lock().unwrap();
        state.num_polls += 1;
        if state.num_polls <= self.behaviour.num_busy {
            return (503, "text/plain", "try again".to_owned());
        }
        if let Some((status, body)) = &self.behaviour.monitoring {
            return (*status, "application/json", body.clone());
        }
        let query = request.path.split_once('?').unwrap().1;
        let query: std::collections::BTreeMap<String, String> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        assert!(query["filter"].contains("resource.labels.service_name = \"llm\""), "{query:?}");
        let from: Timestamp = query["interval.startTime"].parse().unwrap();
        let to: Timestamp = query["interval.endTime"].parse().unwrap();
        assert!(from <= to, "{query:?}");
        let seen = Timestamp::now() - SHOWN_AFTER;
        let inside =
            |at: Timestamp| !self.behaviour.no_metric && from <= at && at <= to && at <= seen;
        let series: Vec<Value> = (1..=state.revision)
            .map(|revision| {
                let samples = state.samples.iter().filter(|it| it.1 == revision && inside(it.0));
                let point = |(at, _, count): &(Timestamp, u32, u64)| {
                    let interval =
                        json!({ "startTime": at.to_string(), "endTime": at.to_string() });
                    json!({ "interval": interval, "value": { "int64Value": count.to_string() } })
                };
                json!({
                    "metric": { "labels": { "state": "idle" } },
                    "resource": { "labels": { "revision_name": format!("llm-{revision}") } },
                    "points": samples.rev().map(point).collect::<Vec<_>>(),
                })
            })
            .collect();
        (200, "application/json", json!({ "timeSeries": series }).to_string())
    }

    fn sample(&self) {
        let mut state = self.state.lock().unwrap();
        let ended = state.instance.is_some_and(|(_, last)| last.elapsed() > IDLE);
        if ended && !self.behaviour.never_idle {
            state.instance = None;
        }
        let sample = (Timestamp::now(), state.revision, u64::from(state.instance.is_some()));
        state.samples.push(sample);
    }

    /// The engine, behind the door that only identity tokens open.
    fn service(&self, request: &Request) -> (u16, &'static str, String) {
        let bearer = request.header("authorization").and_then(|it| it.strip_prefix("Bearer "));
        let (ready, asked) = {
            let mut state = self.state.lock().unwrap();
            let now = Timestamp::now();
            let known =
                state.identities.iter().any(|(it, until)| Some(&**it) == bearer && now < *until);
            let path = request.path.clone();
            if !known && !self.behaviour.public {
                state.asked.push(Asked { path, was_cold: false, status: 403 });
                return (
                    403,
                    "text/html",
                    "<html>Your client does not have permission</html>".to_owned(),
                );
            }
            let was_cold = state.instance.is_none();
            let (ready, last) =
                state.instance.get_or_insert((Instant::now() + BOOT, Instant::now()));
            // It is not idle while it starts.
            *last = (*ready).max(Instant::now());
            let ready = *ready;
            (ready, Asked { path, was_cold, status: 200 })
        };
        std::thread::sleep(ready.saturating_duration_since(Instant::now()));
        let (status, kind, body) = match request.path.as_str() {
            "/health" => (200, "text/plain", String::new()),
            "/v1/models" => {
                let list = json!({ "data": [{ "id": "m", "object": "model" }] });
                (200, "application/json", list.to_string())
            }
            "/v1/chat/completions" => (200, "text/event-stream", wire::VLLM_CHAT.to_owned()),
            _ => (404, "text/plain", "no such route".to_owned()),
        };
        self.state.lock().unwrap().asked.push(Asked { status, ..asked });
        (status, kind, body)
    }
}

fn base64url(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let group = |three: &[u8]| {
        let bits = three.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        let letter = |at: usize| char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]);
        (0..=three.len()).map(letter).collect::<String>()
    };
    text.as_bytes().chunks(3).map(group).collect()
}
