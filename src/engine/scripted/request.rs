//! Requests as the scripted server reads them: the head as far as it needs it,
//! and the name that the client gave. Bounded; knows no script.

use serde::Deserialize;
use serde_json::Value;

/// Longest request head, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// Longest request body, in bytes.
const MAX_BODY: usize = 8 << 20;
/// Longest label that is kept, in characters.
const MAX_LABEL: usize = 120;

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) wants: Wants,
    /// Bytes it took of the input.
    pub(super) len: usize,
    /// Whether the connection ends with the answer.
    pub(super) close: bool,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// A chat answer. The label is the first words of its last message.
    Chat {
        label: String,
        stream: bool,
    },
    Models,
    Health,
    /// Something this server does not have.
    Unknown,
}

/// A request that cannot be read on: the status line it is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) &'static str);

/// The request at the beginning of `input`; `None` while it is not whole.
///
/// # Errors
/// When it is none, or beyond the bounds.
pub(super) fn parse(input: &[u8]) -> Result<Option<Request>, Refused> {
    let Some(head_len) = input.windows(4).position(|four| four == b"\r\n\r\n") else {
        let too_long = input.len() > MAX_HEAD;
        return if too_long {
            Err(Refused("431 Request Header Fields Too Large"))
        } else {
            Ok(None)
        };
    };
    let bad = || Refused("400 Bad Request");
    let head = std::str::from_utf8(&input[..head_len]).map_err(|_| bad())?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(bad()) };
    let mut length = 0;
    let mut close = false;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse::<usize>().map_err(|_| bad())?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Refused("411 Length Required"));
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case("close");
        }
    }
    if length > MAX_BODY {
        return Err(Refused("413 Content Too Large"));
    }
    let start = head_len + 4;
    let Some(body) = input.get(start..start + length) else { return Ok(None) };
    let path = target.split('?').next().unwrap_or_default();
    let wants = match (method, path) {
        ("POST", "/v1/chat/completions") => chat(body)?,
        ("GET", "/v1/models") => Wants::Models,
        ("GET", "/health") => Wants::Health,
        _ => Wants::Unknown,
    };
    Ok(Some(Request { wants, len: start + length, close }))
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    stream: bool,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
}

fn chat(body: &[u8]) -> Result<Wants, Refused> {
    let body: Body = serde_json::from_slice(body).map_err(|_| Refused("400 Bad Request"))?;
    // Some clients send a list of parts; those need no label.
    let text = body.messages.last().and_then(|last| last.content.as_str()).unwrap_or_default();
    Ok(Wants::Chat { label: text.chars().take(MAX_LABEL).collect(), stream: body.stream })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_once_it_is_whole_and_what_follows_is_left() {
        let body = r#"{"stream":true,"messages":[{"role":"user","content":"one 7"}]}"#;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ";
        let text = format!("{head}{}\r\n\r\n{body}GET /health", body.len());
        let whole = text.len() - "GET /health".len();
        for cut in 0..whole {
            assert_eq!(parse(&text.as_bytes()[..cut]), Ok(None), "{cut}");
        }
        let request = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((request.len, request.close), (whole, false));
        assert_eq!(request.wants, Wants::Chat { label: "one 7".to_owned(), stream: true });
    }

    #[test]
    fn bad_requests_are_refused_and_bounded() {
        let refused = |text: &str| parse(text.as_bytes()).unwrap_err().0;
        assert!(refused("nonsense\r\n\r\n").starts_with("400"));
        assert!(refused("GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n").starts_with("400"));
        assert!(refused("GET / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n").starts_with("413"));
        assert!(
            refused("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n").starts_with("411")
        );
        assert!(refused(&"x".repeat(MAX_HEAD + 1)).starts_with("431"));
        let post = "POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}";
        assert!(refused(post).starts_with("400"));
    }
}
