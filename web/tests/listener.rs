//! The listener over real sockets: who may read, what every answer carries, and that TLS is spoken where a
//! certificate is given.

use elastic_proto::{Access, OwnCertificate};
use elastic_web::axum::Router;
use elastic_web::axum::routing::get;
use elastic_web::{Routes, serve};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn start(access: Access) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = Router::new().route("/", get(|| async { "page" }));
    let guarded = Router::new().route("/api/jobs", get(|| async { "jobs" }));
    tokio::spawn(async move { serve(listener, Routes { open, guarded }, &access, std::future::pending()).await });
    address
}

/// Everything that comes back for one request.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A listener that wants something else may reset the connection.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn read(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n")
}

#[tokio::test]
async fn with_a_token_only_the_page_itself_is_open() {
    let address = start(Access { token: Some("secret".into()), ..Access::default() }).await;
    assert!(ask(address, &read("/", "")).await.starts_with("HTTP/1.1 200"));
    assert!(ask(address, &read("/healthz", "")).await.starts_with("HTTP/1.1 200"));
    let refused = ask(address, &read("/api/jobs", "")).await;
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("www-authenticate: Bearer"), "{refused}");
    let wrong = ask(address, &read("/api/jobs", "authorization: Bearer wrong\r\n")).await;
    assert!(!wrong.starts_with("HTTP/1.1 200"), "{wrong}");
    let told = ask(address, &read("/api/jobs", "authorization: Bearer secret\r\n")).await;
    assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("jobs"), "{told}");
}

#[tokio::test]
async fn a_page_of_somebody_elses_reads_nothing_and_nothing_can_be_changed() {
    let address = start(Access::default()).await;
    let foreign = "GET /api/jobs HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert!(ask(address, foreign).await.starts_with("HTTP/1.1 403"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} /api/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert!(ask(address, &request).await.starts_with("HTTP/1.1 405"), "{method}");
    }
}

#[tokio::test]
async fn every_answer_keeps_the_browser_to_what_the_page_needs() {
    let address = start(Access::default()).await;
    for path in ["/", "/api/jobs", "/nothing", "/healthz"] {
        let answer = ask(address, &read(path, "")).await;
        for header in ["content-security-policy: default-src 'none';", "x-content-type-options: nosniff"] {
            assert!(answer.contains(header), "{path}: {answer}");
        }
        assert!(!answer.contains("unsafe-inline") && !answer.contains("access-control-allow-origin"), "{answer}");
    }
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_certificate_or_consent() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = serve(listener, Routes::default(), &Access::default(), std::future::pending()).await;
    assert!(refused.unwrap_err().to_string().contains("--tls-cert"));
}

#[tokio::test]
async fn where_there_is_a_certificate_tls_is_spoken_and_plain_text_is_not() {
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
    let certificate = OwnCertificate::from_pem(&made.cert.pem(), &made.signing_key.serialize_pem());
    let address = start(Access { certificate: Some(certificate), ..Access::default() }).await;
    assert!(!ask(address, &read("/", "")).await.contains("page"));
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client));
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    stream.write_all(read("/", "").as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("page"), "{answer}");
}
