//! What others say, made fit for our messages: an error's cause, a server's own
//! words, foreign bytes.

use std::io;

/// Longest part of an engine's own words in one of our messages, in characters.
const MAX_QUOTE: usize = 300;

/// The cause of an I/O error in a few lower-case words, without its number.
pub(super) fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::BrokenPipe => "connection closed".to_owned(),
        io::ErrorKind::UnexpectedEof => "connection closed".to_owned(),
        _ => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let mut letters = text.chars();
            letters
                .next()
                .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
        }
    }
}

/// The server's own words in an error body: `{"error":{"message":..}}` (OpenAI),
/// `{"error":".."}` (Ollama), `{"message":..}` or `{"detail":..}` (FastAPI), else its text.
pub(super) fn server_message(body: &[u8]) -> String {
    let words = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|value| {
        let error = value.get("error").unwrap_or(&value);
        let found = [error.get("message"), error.get("detail"), Some(error)];
        found.into_iter().flatten().find_map(|text| text.as_str().map(str::to_owned))
    });
    words.map_or_else(|| quote(body), |words| quote(words.as_bytes()))
}

/// Foreign bytes made fit for one line of a message: bounded, no control characters.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_QUOTE)]);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return "nothing".to_owned();
    }
    match line.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_words_are_found_in_every_known_shape() {
        for (body, words) in [
            (r#"{"error":{"message":"too long","code":400}}"#, "too long"),
            (r#"{"error":"model 'nope' not found"}"#, "model 'nope' not found"),
            (r#"{"object":"error","message":"old vLLM"}"#, "old vLLM"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("plain\r\n text\x1b[31m", "plain text [31m"),
            (r#"{"error":{"code":3}}"#, r#"{"error":{"code":3}}"#),
            ("", "nothing"),
        ] {
            assert_eq!(server_message(body.as_bytes()), words);
        }
        assert_eq!(server_message(&[b'x'; 5000]).len(), MAX_QUOTE + 3);
    }
}
