//! Links over TCP: what arrives, what survives, who is let in.

#[path = "../../../tests/src/proxy.rs"]
mod proxy;

use bytes::Bytes;
use elastic_collectives::{LinkConfig, LinkError, LinkEvent, Links, Sent, TlsConfig, Transport};
use elastic_spec::frame::{Body, Frame, Need};
use elastic_spec::{Digest, Epoch, JobId, Round, WorkerId};
use proxy::{Mode, Proxy};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);
const C: WorkerId = WorkerId(3);
const BOUND: Duration = Duration::from_secs(20);

fn config(me: WorkerId) -> LinkConfig {
    LinkConfig::local(me, JobId::parse("job").unwrap(), Digest::of(b"config"), b"secret".to_vec())
}

struct Member {
    id: WorkerId,
    links: Links,
    events: mpsc::Receiver<LinkEvent>,
}

impl Member {
    async fn start(config: LinkConfig) -> Member {
        let (sender, events) = mpsc::channel(16);
        Member { id: config.me, links: Links::start(config, sender).await.unwrap(), events }
    }

    fn peer(&self) -> (WorkerId, String) {
        (self.id, self.links.address().to_string())
    }

    async fn next(&mut self) -> LinkEvent {
        timeout(BOUND, self.events.recv()).await.expect("an event within the bound").expect("links live")
    }

    async fn expect(&mut self, event: LinkEvent) {
        assert_eq!(self.next().await, event);
    }

    async fn until(&mut self, event: LinkEvent) {
        while self.next().await != event {}
    }

    fn send(&self, to: WorkerId, frame: Frame) {
        assert_eq!(self.links.send(to, frame), Sent::Queued);
    }
}

async fn pair() -> (Member, Member) {
    let (mut a, mut b) = (Member::start(config(A)).await, Member::start(config(B)).await);
    a.links.set_peers(vec![a.peer(), b.peer()]);
    b.links.set_peers(vec![a.peer(), b.peer()]);
    a.expect(LinkEvent::Up(B)).await;
    b.expect(LinkEvent::Up(A)).await;
    (a, b)
}

fn at(round: u64) -> Frame {
    Frame {
        epoch: Epoch::new(3, 4),
        body: Body::At { round: Round(round), published: Round(0), need: Need::default() },
    }
}

fn data(round: u64, bytes: usize) -> Frame {
    let payload: Vec<u8> = (0..bytes).map(|i| (i as u64 * 31 + round) as u8).collect();
    Frame {
        epoch: Epoch::new(3, 4),
        body: Body::Reduced { round: Round(round), chunk: 1, payload: Bytes::from(payload) },
    }
}

fn frame(from: WorkerId, frame: Frame) -> LinkEvent {
    LinkEvent::Frame { from, frame }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_all_sizes_arrive_whole_and_in_order() {
    let (mut a, mut b) = pair().await;
    let sizes = [0, 1, 16 << 10, (16 << 10) + 1, 256 << 10, 24, 9 << 20, 100, (256 << 10) + 24];
    for (round, bytes) in (0u64..).zip(sizes) {
        a.send(B, data(round, bytes));
        b.send(A, at(round));
    }
    for (round, bytes) in (0u64..).zip(sizes) {
        b.expect(frame(A, data(round, bytes))).await;
        a.expect(frame(B, at(round))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_change_touches_only_links_that_come_or_go() {
    let (mut a, mut b) = pair().await;
    let mut c = Member::start(config(C)).await;
    let all = vec![a.peer(), b.peer(), c.peer()];
    for member in [&a, &b, &c] {
        member.links.set_peers(all.clone());
    }
    a.expect(LinkEvent::Up(C)).await;
    b.expect(LinkEvent::Up(C)).await;
    c.next().await;
    c.next().await;
    drop(c);
    a.expect(LinkEvent::Down(C)).await;
    b.expect(LinkEvent::Down(C)).await;
    a.links.set_peers(vec![a.peer(), b.peer()]);
    b.links.set_peers(vec![a.peer(), b.peer()]);
    a.send(B, at(7));
    b.expect(frame(A, at(7))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_in_our_view_yet_is_heard() {
    let (a, mut b) = (Member::start(config(A)).await, Member::start(config(B)).await);
    a.links.set_peers(vec![b.peer()]);
    a.send(B, at(1));
    b.expect(LinkEvent::Up(A)).await;
    b.expect(frame(A, at(1))).await;
    assert_eq!(b.links.send(C, at(1)), Sent::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_leaves_the_view_gets_its_last_frames_and_then_the_link_ends() {
    let (mut a, mut b) = pair().await;
    a.links.set_peers(vec![]);
    a.send(B, at(9));
    b.expect(frame(A, at(9))).await;
    a.expect(LinkEvent::Down(B)).await;
    b.expect(LinkEvent::Down(A)).await;
    while a.links.send(B, at(10)) != Sent::Unknown {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_lets_the_last_frames_out() {
    let (a, mut b) = pair().await;
    b.send(A, data(0, 3 << 20));
    for round in 0..50 {
        a.send(B, data(round, 100_000));
    }
    let closing = tokio::spawn(async move { a.links.close(Duration::from_secs(10)).await });
    for round in 0..50 {
        b.expect(frame(A, data(round, 100_000))).await;
    }
    b.expect(LinkEvent::Down(A)).await;
    closing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_what_was_taken_arrives() {
    let mut small = config(A);
    small.queue_bytes_max = 1 << 20;
    let (mut a, mut b) = (Member::start(small).await, Member::start(config(B)).await);
    a.links.set_peers(vec![b.peer()]);
    b.links.set_peers(vec![a.peer()]);
    a.expect(LinkEvent::Up(B)).await;
    b.expect(LinkEvent::Up(A)).await;
    // B reads 16 events and no more; the sockets' buffers fill, then the queue does.
    let mut taken = 0;
    while a.links.send(B, data(taken, 300_000)) == Sent::Queued {
        taken += 1;
        if taken % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(taken < 2_000, "the queue has a bound");
    }
    a.send(B, at(99));
    for round in 0..taken {
        b.expect(frame(A, data(round, 300_000))).await;
    }
    b.expect(frame(A, at(99))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_cut_comes_back_by_itself() {
    let (mut a, mut b) = (Member::start(config(A)).await, Member::start(config(B)).await);
    let proxy = Proxy::start(b.links.address()).await.unwrap();
    a.links.set_peers(vec![(B, proxy.address().to_string())]);
    b.links.set_peers(vec![a.peer()]);
    a.expect(LinkEvent::Up(B)).await;
    b.expect(LinkEvent::Up(A)).await;
    proxy.set(Mode::Cut);
    a.expect(LinkEvent::Down(B)).await;
    b.expect(LinkEvent::Down(A)).await;
    a.send(B, at(5));
    proxy.set(Mode::Forward);
    b.until(frame(A, at(5))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_noticed_by_both_ends_and_left_when_it_closes() {
    let (mut a, mut b) = (Member::start(config(A)).await, Member::start(config(B)).await);
    let proxy = Proxy::start(b.links.address()).await.unwrap();
    a.links.set_peers(vec![(B, proxy.address().to_string())]);
    b.links.set_peers(vec![a.peer()]);
    a.expect(LinkEvent::Up(B)).await;
    b.expect(LinkEvent::Up(A)).await;
    proxy.set(Mode::BlackHole);
    a.expect(LinkEvent::Down(B)).await;
    b.expect(LinkEvent::Down(A)).await;
    proxy.set(Mode::Forward);
    a.until(LinkEvent::Up(B)).await;
    a.send(B, at(6));
    b.until(frame(A, at(6))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_delays_and_does_not_reorder() {
    let (a, mut b) = (Member::start(config(A)).await, Member::start(config(B)).await);
    let proxy = Proxy::start(b.links.address()).await.unwrap();
    proxy.set(Mode::Delay(Duration::from_millis(20)));
    a.links.set_peers(vec![(B, proxy.address().to_string())]);
    b.expect(LinkEvent::Up(A)).await;
    let start = Instant::now();
    (0..30).for_each(|round| a.send(B, data(round, 70_000)));
    for round in 0..30 {
        b.expect(frame(A, data(round, 70_000))).await;
    }
    assert!(start.elapsed() >= Duration::from_millis(20));
}

async fn never_up(mut dialled: Member, dialling: Member) {
    dialling.links.set_peers(vec![dialled.peer()]);
    dialled.links.set_peers(vec![dialling.peer()]);
    assert!(timeout(Duration::from_millis(400), dialled.events.recv()).await.is_err(), "a stranger was let in");
    let mut friend = Member::start(config(WorkerId(0))).await;
    friend.links.set_peers(vec![dialled.peer()]);
    friend.expect(LinkEvent::Up(dialled.id)).await;
    dialled.expect(LinkEvent::Up(WorkerId(0))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_another_secret_is_refused() {
    let other = LinkConfig { secret: b"guess".to_vec(), ..config(A) };
    never_up(Member::start(config(B)).await, Member::start(other).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_config_is_refused() {
    let other = LinkConfig { config_digest: Digest::of(b"changed"), ..config(A) };
    never_up(Member::start(config(B)).await, Member::start(other).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_job_is_refused() {
    let other = LinkConfig { job: JobId::parse("other").unwrap(), ..config(A) };
    never_up(Member::start(config(B)).await, Member::start(other).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_another_worker_has_now_is_no_link() {
    let (a, mut b) = (Member::start(config(A)).await, Member::start(config(B)).await);
    a.links.set_peers(vec![(C, b.links.address().to_string())]);
    assert!(timeout(Duration::from_millis(300), b.events.recv()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_talk_nonsense_or_nothing_hinder_nobody() {
    let (mut a, mut b) = pair().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(b.links.address()).await.unwrap());
        let mut rude = TcpStream::connect(b.links.address()).await.unwrap();
        rude.write_all(&[b'G'; 400]).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(BOUND, rude.read_to_end(&mut answer)).await.expect("nonsense is answered at once");
        assert!(answer.len() <= 1, "nothing is said to a stranger but that it is refused");
    }
    a.send(B, at(3));
    b.expect(frame(A, at(3))).await;
    let mut c = Member::start(config(C)).await;
    c.links.set_peers(vec![b.peer()]);
    b.links.set_peers(vec![a.peer(), c.peer()]);
    c.expect(LinkEvent::Up(B)).await;
    b.send(A, at(4));
    a.expect(frame(B, at(4))).await;
}

async fn refused(config: LinkConfig) -> LinkError {
    match Links::start(config, mpsc::channel(1).0).await {
        Ok(links) => panic!("started at {}", links.address()),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_bind_that_the_network_can_read_needs_certificates_or_consent() {
    let open = LinkConfig { bind: "0.0.0.0".to_string(), advertise: "node-7".to_string(), ..config(A) };
    let error = refused(open.clone()).await;
    assert!(matches!(error, LinkError::Exposed(_)));
    assert!(error.to_string().contains("--insecure"), "{error}");
    let links = Links::start(LinkConfig { insecure: true, ..open }, mpsc::channel(1).0).await.unwrap();
    assert!(links.address().starts_with("node-7:"), "{}", links.address());
}

#[tokio::test]
async fn what_cannot_be_bound_is_named() {
    let error = refused(LinkConfig { bind: "256.1.1.1".to_string(), ..config(A) }).await;
    assert!(matches!(error, LinkError::Host { .. }), "{error}");
    let taken = Links::start(config(A), mpsc::channel(1).0).await.unwrap();
    let port: u16 = taken.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let error = refused(LinkConfig { ports: Some(port..=port), ..config(B) }).await;
    assert!(error.to_string().contains(&format!("no free port in {port}-{port}")), "{error}");
    assert!(matches!(refused(LinkConfig { secret: vec![], ..config(B) }).await, LinkError::NoSecret));
}

fn certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let worker = CertificateParams::new(vec!["localhost".to_string(), "127.0.0.1".to_string()]).unwrap();
    let worker = worker.signed_by(&key, &authority).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), worker.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

fn tls(me: WorkerId, dir: &Path) -> LinkConfig {
    LinkConfig { tls: Some(TlsConfig::from_dir(dir).unwrap()), bind: "0.0.0.0".to_string(), ..config(me) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_links_carry_frames() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let (mut a, mut b) = (Member::start(tls(A, dir.path())).await, Member::start(tls(B, dir.path())).await);
    a.links.set_peers(vec![b.peer()]);
    b.links.set_peers(vec![a.peer()]);
    a.expect(LinkEvent::Up(B)).await;
    for (round, bytes) in [(0, 10), (1, 2 << 20), (2, 0)] {
        a.send(B, data(round, bytes));
        b.send(A, data(round, bytes));
    }
    b.expect(LinkEvent::Up(A)).await;
    for (round, bytes) in [(0, 10), (1, 2 << 20), (2, 0)] {
        b.expect(frame(A, data(round, bytes))).await;
        a.expect(frame(B, data(round, bytes))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_authority_and_plain_peers_are_refused() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(ours.path());
    certificates(theirs.path());
    let mut b = Member::start(tls(B, ours.path())).await;
    let (foreign, plain) = (Member::start(tls(A, theirs.path())).await, Member::start(config(WorkerId(0))).await);
    foreign.links.set_peers(vec![b.peer()]);
    plain.links.set_peers(vec![b.peer()]);
    assert!(timeout(Duration::from_millis(500), b.events.recv()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_addresses_come_and_go_peers_must_carry_the_one_name() {
    for (name, links) in [("localhost", true), ("another-name", false)] {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        std::fs::write(dir.path().join("peer-name"), format!("{name}\n")).unwrap();
        let (a, mut b) = (Member::start(tls(A, dir.path())).await, Member::start(tls(B, dir.path())).await);
        a.links.set_peers(vec![b.peer()]);
        b.links.set_peers(vec![a.peer()]);
        let heard = timeout(Duration::from_millis(500), b.events.recv()).await;
        assert_eq!(heard.is_ok(), links, "{name}: {heard:?}");
    }
}

#[test]
fn a_certificate_file_that_is_missing_or_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| TlsConfig::from_dir(dir).err().expect("refused").to_string();
    assert!(error(dir.path()).contains("ca.pem"));
    certificates(dir.path());
    std::fs::write(dir.path().join("key.pem"), "nonsense").unwrap();
    assert!(error(dir.path()).contains("key.pem"));
    std::fs::write(dir.path().join("cert.pem"), "").unwrap();
    assert!(error(dir.path()).contains("cert.pem: it holds no certificate"), "{}", error(dir.path()));
}

/// The figure is printed; the bound is loose, since other work may share the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_frame_goes_there_and_back_quickly() {
    let (mut a, mut b) = pair().await;
    let echo = tokio::spawn(async move {
        while let Some(event) = b.events.recv().await {
            if let LinkEvent::Frame { from, frame } = event {
                b.send(from, frame);
            }
        }
    });
    let mut times = Vec::new();
    for round in 0..3000 {
        let start = Instant::now();
        a.send(B, at(round));
        a.expect(frame(B, at(round))).await;
        times.push(start.elapsed());
    }
    echo.abort();
    times.sort();
    println!("round trip: median {:?}, p99 {:?}", times[1500], times[2970]);
    assert!(times[1500] < Duration::from_millis(5), "median {:?}", times[1500]);
}
