//! One short question over HTTP/1.0 to an engine that may not be there yet, on
//! a blocking socket that looks up every few milliseconds. Knows no engine.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::engine::reply::{Piece, ReplyParser};

/// Longest time between two looks at whether to give up.
const LOOK: Duration = Duration::from_millis(5);
/// Longest wait for a connection on this machine.
const CONNECT: Duration = Duration::from_millis(500);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 1 << 20;

/// Where an engine listens, as far as it can be asked.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    /// Path before every route, without a slash at its end.
    pub(super) base: String,
    /// Value of an `authorization` header, where it wants one.
    pub(super) bearer: Option<String>,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody listens.
    Closed,
    /// Somebody listens, and did not answer like an HTTP server.
    Silent,
    /// An answer.
    Status(u16, Vec<u8>),
}

impl Address {
    /// Whether somebody accepts connections.
    pub(super) fn is_open(&self) -> bool {
        self.connect().is_some()
    }

    /// Asks, until there is an answer or `give_up`.
    pub(super) fn ask(&self, method: &str, path: &str, give_up: &dyn Fn() -> bool) -> Answer {
        let Some(mut stream) = self.connect() else { return Answer::Closed };
        // HTTP/1.0, so that the answer comes whole and ends with the connection.
        let bearer = self.bearer.as_ref();
        let bearer = bearer.map_or(String::new(), |it| format!("Authorization: Bearer {it}\r\n"));
        let request = format!(
            "{method} {}{path} HTTP/1.0\r\nHost: {}:{}\r\nAccept: application/json\r\n\
             Content-Length: 0\r\nConnection: close\r\n{bearer}\r\n",
            self.base, self.host, self.port
        );
        let sent =
            stream.set_read_timeout(Some(LOOK)).and_then(|()| stream.write_all(request.as_bytes()));
        if sent.is_err() {
            return Answer::Silent;
        }
        let mut reply = Reply { parser: ReplyParser::new(), answer: Answer::Silent };
        let mut buffer = [0; 16 << 10];
        loop {
            let over = match stream.read(&mut buffer) {
                Ok(0) => true,
                Ok(read) => reply.take(buffer.get(..read).unwrap_or_default()),
                Err(error) => !matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ),
            };
            if over || give_up() {
                return reply.answer;
            }
        }
    }

    fn connect(&self) -> Option<TcpStream> {
        let addresses = (self.host.as_str(), self.port).to_socket_addrs().ok()?;
        let open = |address: SocketAddr| TcpStream::connect_timeout(&address, CONNECT).ok();
        addresses.into_iter().find_map(open)
    }
}

/// An answer as far as it has come.
struct Reply {
    parser: ReplyParser,
    answer: Answer,
}

impl Reply {
    /// Takes bytes in; `true` if there is nothing more to wait for.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            // What is no HTTP will not become it.
            let Ok((taken, piece)) = self.parser.feed(bytes) else { return true };
            match (piece, &mut self.answer) {
                (Piece::More, _) => return false,
                (Piece::Head(head), answer) => {
                    *answer = Answer::Status(head.status.as_u16(), Vec::new());
                }
                (Piece::Data(len), Answer::Status(_, body)) => {
                    let from = taken.saturating_sub(len);
                    body.extend(bytes.get(from..taken).unwrap_or_default());
                    if body.len() > MAX_ANSWER {
                        return true;
                    }
                }
                (Piece::End | Piece::Data(_), _) => return true,
            }
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn address(port: u16) -> Address {
        Address { host: "127.0.0.1".to_owned(), port, base: String::new(), bearer: None }
    }

    /// What is made of a server that says `answer` and keeps the connection open for a while.
    fn asked(answer: &'static [u8]) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer).unwrap();
            // Until the other side has had enough.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        });
        let looks = std::cell::Cell::new(0);
        let answer = address(port).ask("GET", "/x", &|| {
            looks.set(looks.get() + 1);
            looks.get() > 20
        });
        server.join().unwrap();
        answer
    }

    #[test]
    fn answer_is_taken_as_soon_as_it_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(asked(whole), Answer::Status(200, b"ok".to_vec()));
        assert_eq!(asked(b"HTTP/1.0 503 Busy\r\n\r\n"), Answer::Status(503, Vec::new()));
    }

    #[test]
    fn what_is_no_http_is_silence_and_nobody_is_closed() {
        assert_eq!(asked(b"SSH-2.0-OpenSSH\r\n"), Answer::Silent);
        assert_eq!(asked(b""), Answer::Silent);
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(address(free).ask("GET", "/", &|| false), Answer::Closed);
    }
}
