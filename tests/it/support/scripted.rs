//! A server that says exactly what its script says, byte for byte, with the
//! pauses and splits of the script, and keeps what it was asked.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Received {
    /// The body, which must be JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One step of an answer. The connection is closed after the last, unannounced.
#[derive(Debug, Clone)]
pub enum Step {
    /// Written with one call.
    Send(Vec<u8>),
    Wait(Duration),
    /// Nothing more, until the client goes away.
    Hang,
    /// The connection is reset.
    Reset,
    /// The answer has ended, and the next request is read from the same connection.
    KeepOpen,
}

type Script = dyn Fn(&Received) -> Vec<Step> + Send + Sync;

/// A running server on a port of its own.
pub struct Scripted {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
    num_connections: Arc<AtomicUsize>,
    num_hanging: Arc<AtomicUsize>,
    num_deserted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Serves `script` on a free loopback port, each connection on a task of its own.
    pub async fn start(script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let num_connections = Arc::new(AtomicUsize::new(0));
        let num_hanging = Arc::new(AtomicUsize::new(0));
        let num_deserted = Arc::new(AtomicUsize::new(0));
        let script: Arc<Script> = Arc::new(script);
        let task = tokio::spawn({
            let received = Arc::clone(&received);
            let counts = (Arc::clone(&num_hanging), Arc::clone(&num_deserted));
            let num_connections = Arc::clone(&num_connections);
            async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    num_connections.fetch_add(1, Ordering::AcqRel);
                    let script = Arc::clone(&script);
                    let (received, counts) = (Arc::clone(&received), counts.clone());
                    tokio::spawn(async move {
                        let counts = (&*counts.0, &*counts.1);
                        while serve(&mut stream, &*script, &received, counts).await {}
                    });
                }
            }
        });
        Self { url, received, num_connections, num_hanging, num_deserted, task }
    }

    /// Connections that were accepted.
    pub fn num_connections(&self) -> usize {
        self.num_connections.load(Ordering::Acquire)
    }

    /// Every request so far, in order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The last request to `path`.
    pub fn last(&self, path: &str) -> Received {
        let received = self.received();
        received.into_iter().rfind(|request| request.path == path).unwrap()
    }

    /// Waits until a connection hangs, and all before that is sent.
    pub async fn hanging(&self) {
        while self.num_hanging.load(Ordering::Acquire) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until a client has left a connection that hangs.
    pub async fn deserted(&self) {
        while self.num_deserted.load(Ordering::Acquire) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request. Returns whether another may follow.
async fn serve(
    stream: &mut TcpStream,
    script: &Script,
    received: &Mutex<Vec<Received>>,
    (num_hanging, num_deserted): (&AtomicUsize, &AtomicUsize),
) -> bool {
    stream.set_nodelay(true).unwrap();
    // A connection that is opened and never used is no request.
    let Some(request) = read_request(stream).await else { return false };
    received.lock().unwrap().push(request.clone());
    for step in script(&request) {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return false;
                }
            }
            Step::Wait(pause) => tokio::time::sleep(pause).await,
            Step::Hang => {
                num_hanging.fetch_add(1, Ordering::AcqRel);
                while matches!(stream.read(&mut [0; 64]).await, Ok(count) if count > 0) {}
                num_deserted.fetch_add(1, Ordering::AcqRel);
                return false;
            }
            Step::Reset => {
                stream.set_zero_linger().unwrap();
                return false;
            }
            Step::KeepOpen => return true,
        }
    }
    // The client may still be about to read: close only our side, then wait for its.
    if stream.shutdown().await.is_ok() {
        while matches!(stream.read(&mut [0; 64]).await, Ok(count) if count > 0) {}
    }
    false
}

async fn read_request(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = bytes.split_off(head_end);
    while body.len() < length {
        stream.read_buf(&mut body).await.ok()?;
    }
    Some(Received { method, path, headers, body })
}

/// A whole answer with a length.
pub fn answer(status: &str, content_type: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    vec![Step::Send(
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes(),
    )]
}

/// A whole JSON answer.
pub fn json(body: &str) -> Vec<Step> {
    answer("200 OK", "application/json", body)
}

/// The head of a chunked answer.
pub fn head(content_type: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n")
        .into_bytes()
}

/// One chunk of a chunked answer.
pub fn chunk(text: &str) -> Vec<u8> {
    [format!("{:x}\r\n", text.len()).as_bytes(), text.as_bytes(), b"\r\n"].concat()
}

/// The end of a chunked answer.
pub const END: &[u8] = b"0\r\n\r\n";

/// A whole chunked answer: the head, each part a chunk and a write of its own, the end.
pub fn chunked(content_type: &str, parts: &[&str]) -> Vec<Step> {
    let parts = parts.iter().map(|part| Step::Send(chunk(part)));
    let head = [Step::Send(head(content_type))];
    head.into_iter().chain(parts).chain([Step::Send(END.to_vec())]).collect()
}
