//! Bytes and certificates that no honest server sends, and answers that come
//! drop by drop: bounded, told as what they are.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use yardstick::engine::ErrorClass;
use yardstick::engine::EventKind::Content;

use super::{ADAPTERS, OLLAMA, VLLM, assert_ordered, chat, failure, kinds};
use crate::support::scripted::{self, Step, answer, chunk};

#[tokio::test]
async fn hundred_megabytes_in_one_line_are_not_taken_in() {
    const PART: usize = 1 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Counts what the client let the server send of 100 MiB without a line's end.
    let sent = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            if !request[..read].starts_with(b"POST") {
                let nothing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(nothing).await.unwrap();
                continue;
            }
            stream.write_all(&scripted::head("text/event-stream")).await.unwrap();
            let part = chunk(&"x".repeat(PART));
            let mut sent = 0;
            while sent < 100 * PART && stream.write_all(&part).await.is_ok() {
                sent += PART;
            }
            return sent;
        }
    });
    let engine = VLLM.engine(&url, "?timeout_s=20&model=m").unwrap();
    let prepared = engine.prepare(&chat()).await.unwrap();
    let exchange = prepared.run(tokio_util::sync::CancellationToken::new()).await;
    let error = failure(&exchange);
    assert_eq!(error.class, ErrorClass::Protocol);
    assert!(error.message.contains("line of more than 1048576 bytes"), "{error}");
    // What the buffers of both sides hold at most is far below what was to come.
    let sent = tokio::time::timeout(Duration::from_secs(20), sent).await.unwrap().unwrap();
    assert!(sent < 64 * PART, "{sent} bytes");
}

#[tokio::test]
async fn answer_that_comes_byte_by_byte_is_whole() {
    let drops = ADAPTERS.map(|adapter| async move {
        let body = adapter.text("Paris");
        let mut steps = vec![Step::Send(scripted::head(adapter.content_type))];
        for byte in chunk(&body) {
            steps.extend([Step::Send(vec![byte]), Step::Wait(Duration::from_millis(5))]);
        }
        steps.extend([Step::Send(chunk(adapter.tail)), Step::Send(scripted::END.to_vec())]);
        let exchange = adapter.exchange(steps).await;
        assert_eq!(exchange.outcome, Ok(()));
        assert_eq!(exchange.text, "Paris");
        assert_ordered(&exchange);
    });
    let [vllm, llama, ollama] = drops;
    tokio::join!(vllm, llama, ollama);
}

/// The limit of these servers is 1 s: none is ever silent that long.
#[tokio::test]
async fn answer_that_drips_and_never_says_anything_whole_ends_at_the_limit() {
    let drop_by_drop = |bytes: Vec<u8>| {
        let pause = Step::Wait(Duration::from_millis(100));
        let drops = bytes.into_iter().flat_map(move |byte| [Step::Send(vec![byte]), pause.clone()]);
        drops.collect::<Vec<_>>()
    };
    let servers = ADAPTERS.map(|adapter| async move {
        let head = scripted::head(adapter.content_type);
        let long = adapter.text(&"x".repeat(600));
        let mut in_an_event =
            vec![Step::Send(head.clone()), Step::Send(chunk(&adapter.text("Paris")))];
        in_an_event.extend(drop_by_drop(chunk(&long)));
        let mut refusal = b"HTTP/1.1 500 Oh\r\ncontent-length: 600\r\n\r\n".to_vec();
        refusal.resize(refusal.len() + 600, b'x');
        let in_a_refusal =
            [vec![Step::Send(refusal[..40].to_vec())], drop_by_drop(refusal[40..].to_vec())];
        let exchange = adapter.exchange(in_an_event).await;
        let error = failure(&exchange);
        assert_eq!((error.class, exchange.text.as_str()), (ErrorClass::Timeout, "Paris"));
        assert!(error.message.ends_with("sent no whole event for 1 s"), "{error}");
        let long_head = [head, format!("x: {}\r\n", "x".repeat(600)).into_bytes()].concat();
        let exchange = adapter.exchange(drop_by_drop(long_head)).await;
        assert_eq!(failure(&exchange).class, ErrorClass::Timeout);
        let exchange = adapter.exchange(in_a_refusal.concat()).await;
        assert_eq!(failure(&exchange).class, ErrorClass::Rejected);
    });
    let [vllm, llama, ollama] = servers;
    tokio::join!(vllm, llama, ollama);
}

#[tokio::test]
async fn bytes_that_are_no_utf_8_fail_the_request_or_are_replaced_and_never_more() {
    for adapter in ADAPTERS {
        let [before, after] = adapter.text;
        let body = [before.as_bytes(), b"\xff\xfe\xc3", after.as_bytes()].concat();
        let part = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
        let exchange = adapter
            .exchange(vec![
                Step::Send(scripted::head(adapter.content_type)),
                Step::Send(chunk(&adapter.text("Paris"))),
                Step::Send(part),
                Step::Send(chunk(adapter.tail)),
                Step::Send(scripted::END.to_vec()),
            ])
            .await;
        // What came before is kept either way; a failure says what it met.
        assert!(exchange.text.starts_with("Paris"), "{exchange:?}");
        assert_eq!(kinds(&exchange)[0], Content);
        if let Err(error) = &exchange.outcome {
            assert_eq!(error.class, ErrorClass::Protocol, "{error}");
        } else {
            assert!(exchange.text.contains('\u{fffd}'), "{exchange:?}");
        }
    }
}

#[tokio::test]
async fn error_status_without_a_body_says_so() {
    for adapter in ADAPTERS {
        for (status, class) in [
            ("429 Too Many Requests", ErrorClass::Busy),
            ("500 Internal Server Error", ErrorClass::Rejected),
            ("503 Service Unavailable", ErrorClass::Busy),
        ] {
            let exchange = adapter.exchange(answer(status, "text/plain", "")).await;
            let error = failure(&exchange);
            assert_eq!(error.class, class, "{error}");
            let words = format!("answered HTTP {}: nothing", &status[..3]);
            assert!(error.message.ends_with(&words), "{error}");
        }
    }
}

#[tokio::test]
async fn redirect_is_not_followed_and_says_what_to_do() {
    let moved = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/\r\n\
                 content-length: 0\r\n\r\n";
    for adapter in ADAPTERS {
        let exchange = adapter.exchange(vec![Step::Send(moved.into())]).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol);
        assert_eq!(error.hint.as_deref(), Some("redirects are not followed: give the final URL"));
    }
}

#[tokio::test]
async fn server_without_tls_behind_https_is_told_from_one_that_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for adapter in [VLLM, OLLAMA] {
        let engine = adapter.engine(&url, "").unwrap();
        let error = engine.describe().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Unreachable);
        assert!(error.hint.as_ref().unwrap().contains("http://"), "{error} {:?}", error.hint);
    }
}

#[tokio::test]
async fn certificate_that_nobody_vouches_for_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(file("key.pem"))
        .arg("-out")
        .arg(file("cert.pem"))
        .output();
    let made = match made {
        Ok(output) if output.status.success() => output,
        other => {
            eprintln!("skipped: no certificate without openssl: {other:?}");
            return;
        }
    };
    drop(made);
    let acceptor = acceptor(&file("cert.pem"), &file("key.pem"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let error = VLLM.engine(&url, "").unwrap().describe().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unreachable);
    assert!(error.message.contains("certificate"), "{error}");
    assert!(error.hint.as_ref().unwrap().contains("SSL_CERT_FILE"), "{:?}", error.hint);
}

fn acceptor(cert: &std::path::Path, key: &std::path::Path) -> tokio_rustls::TlsAcceptor {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certs = vec![CertificateDer::from_pem_file(cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    Arc::new(config).into()
}
