//! An exact all-reduce in a plain program: the same bits for any number of members, over any transport.

use bytes::Bytes;
use elastic_collectives::local::{Fate, Hub};
use elastic_collectives::reduce as sums_of;
use elastic_collectives::{Group, GroupConfig, Leaf, LinkConfig, LinkEvent, Links, ReduceError, Reducer, Transport};
use elastic_spec::frame::Body;
use elastic_spec::layout::{BLOCK_FLOATS, Layout, Tail};
use elastic_spec::tree::TreeNode;
use elastic_spec::{Digest, JobId, Round, Shard, WorkerId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const V: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(30);

fn leaf(layout: Layout, round: u64, shard: u16) -> (Vec<f32>, Tail) {
    let mut state = round * 1000 + u64::from(shard) + 1;
    let mut draw = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let floats = (0..layout.floats).map(|_| (draw() as f32 / 1e6 - 1000.0) * 1.7f32.powi((draw() % 40) as i32 - 20));
    (floats.collect(), Tail { loss: f64::from(shard) / 3.0, count: 2, correct: u64::from(shard) })
}

/// Uneven: member `i` of `members` gets every shard whose scrambled number says so.
fn owner(shard: u16, members: usize) -> usize {
    (shard as usize * 7 + shard as usize / 5) % members
}

/// What `rounds` reductions gave: the bits of all sums.
async fn member(mut group: Group, layout: Layout, me: usize, members: usize, rounds: u64) -> Digest {
    let mut bits = Vec::new();
    for round in 0..rounds {
        let mine: Vec<_> = (0..V).filter(|s| owner(*s, members) == me).map(|s| (s, leaf(layout, round, s))).collect();
        let leaves: Vec<_> =
            mine.iter().map(|(s, (floats, tail))| Leaf { shard: Shard(*s), floats, tail: *tail }).collect();
        let mut sum = vec![0.0; layout.floats];
        let tail = group.exact_all_reduce(&leaves, &mut sum).await.unwrap();
        bits.extend(sum.iter().flat_map(|x| x.to_bits().to_le_bytes()));
        bits.extend(tail.to_bytes());
    }
    group.leave().await;
    Digest::of(&bits)
}

fn config(me: WorkerId, members: &[(WorkerId, String)], layout: Layout) -> GroupConfig {
    GroupConfig { me, members: members.to_vec(), shards: V, layout, patience: PATIENCE }
}

/// A member's place, before it has joined a group.
type Place = (WorkerId, Arc<dyn Transport>, mpsc::Receiver<LinkEvent>);

async fn reduce(places: Vec<Place>, layout: Layout, rounds: u64) -> Vec<Digest> {
    let members: Vec<_> = places.iter().map(|(id, transport, _)| (*id, transport.address().to_string())).collect();
    let mut running = Vec::new();
    for (i, (me, transport, events)) in places.into_iter().enumerate() {
        let group = Group::join(transport, events, config(me, &members, layout)).unwrap();
        running.push(tokio::spawn(member(group, layout, i, members.len(), rounds)));
    }
    let mut bits = Vec::new();
    for member in running {
        bits.push(member.await.unwrap());
    }
    bits
}

fn local(hub: &Hub, members: u64) -> Vec<Place> {
    let place = |id| {
        let (events, heard) = mpsc::channel(64);
        let transport: Arc<dyn Transport> = Arc::new(hub.join(WorkerId(id), events));
        (WorkerId(id), transport, heard)
    };
    (0..members).map(place).collect()
}

async fn tcp(members: u64) -> Vec<(Place, Arc<Links>)> {
    let mut places = Vec::new();
    for id in 0..members {
        let (events, heard) = mpsc::channel(64);
        let job = JobId::parse("plain").unwrap();
        let links = Links::start(LinkConfig::local(WorkerId(id), job, Digest::of(b"c"), b"secret".to_vec()), events);
        let links = Arc::new(links.await.unwrap());
        let transport: Arc<dyn Transport> = links.clone();
        places.push(((WorkerId(id), transport, heard), links));
    }
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_to_eight_members_in_a_process_get_the_same_bits() {
    let layout = Layout { floats: 1001, block_floats: 64 };
    let alone = reduce(local(&Hub::new(), 1), layout, 3).await[0];
    for members in 2..=8 {
        let bits = reduce(local(&Hub::new(), members), layout, 3).await;
        assert_eq!(bits, vec![alone; members as usize], "{members} members");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_over_tcp_get_the_bits_of_one_alone() {
    let layout = Layout::new(BLOCK_FLOATS * 2 + 77);
    let alone = reduce(local(&Hub::new(), 1), layout, 2).await[0];
    for members in [2, 3, 5] {
        let (places, links): (Vec<_>, Vec<_>) = tcp(members).await.into_iter().unzip();
        assert_eq!(reduce(places, layout, 2).await, vec![alone; members as usize], "{members} members");
        for links in links {
            links.close(Duration::from_secs(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_repeated_and_overtaken_frames_change_no_bit() {
    let layout = Layout { floats: 300, block_floats: 32 };
    let alone = reduce(local(&Hub::new(), 1), layout, 4).await[0];
    for seed in 0..4u64 {
        let hub = Hub::new();
        let mut state = seed;
        hub.rule(move |_, _, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match state >> 60 {
                0..=2 => Fate::Drop,
                3..=5 => Fate::Twice,
                6 => Fate::Hold,
                _ => Fate::Deliver,
            }
        });
        let release = tokio::spawn({
            let hub = hub.clone();
            async move {
                let mut tick = tokio::time::interval(Duration::from_millis(7));
                loop {
                    tick.tick().await;
                    hub.release();
                }
            }
        });
        let bits = reduce(local(&hub, 3), layout, 4).await;
        release.abort();
        assert_eq!(bits, vec![alone; 3], "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reduction_that_was_given_up_is_taken_up_again_with_the_same_bits() {
    let layout = Layout::new(10);
    let alone = reduce(local(&Hub::new(), 1), layout, 1).await[0];
    let hub = Hub::new();
    let (a, b) = (WorkerId(0), WorkerId(1));
    hub.cut(a, b);
    let mut places = local(&hub, 2).into_iter();
    let members = [(a, String::new()), (b, String::new())];
    let (_, transport, events) = places.next().unwrap();
    let short = GroupConfig { patience: Duration::from_millis(60), ..config(a, &members, layout) };
    let mut first = Group::join(transport, events, short).unwrap();
    let (_, transport, events) = places.next().unwrap();
    let second = Group::join(transport, events, config(b, &members, layout)).unwrap();

    let mine: Vec<_> = (0..V).filter(|s| owner(*s, 2) == 0).map(|s| (s, leaf(layout, 0, s))).collect();
    let leaves: Vec<_> = mine.iter().map(|(s, (f, tail))| Leaf { shard: Shard(*s), floats: f, tail: *tail }).collect();
    let mut sum = vec![7.5; layout.floats];
    let late = first.exact_all_reduce(&leaves, &mut sum).await.unwrap_err();
    assert!(matches!(late, ReduceError::Late { .. }), "{late}");
    assert_eq!(sum, vec![7.5; layout.floats], "an abort leaves the sum as it was");

    let other = tokio::spawn(member(second, layout, 1, 2, 1));
    let dropped = tokio::time::timeout(Duration::from_millis(20), first.exact_all_reduce(&leaves, &mut sum)).await;
    assert!(dropped.is_err(), "the pair is still cut");
    hub.heal(a, b);
    let mut given_up = 0;
    let tail = loop {
        match tokio::time::timeout(
            Duration::from_micros(300 * (given_up + 1)),
            first.exact_all_reduce(&leaves, &mut sum),
        )
        .await
        {
            Ok(Ok(tail)) => break tail,
            _ => given_up += 1,
        }
        assert!(given_up < 1000, "the two are connected again");
    };
    let mut bits: Vec<u8> = sum.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
    bits.extend(tail.to_bytes());
    assert_eq!(Digest::of(&bits), alone);
    assert_eq!(other.await.unwrap(), alone);
    first.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_missing_is_named() {
    let layout = Layout::new(10);
    let hub = Hub::new();
    let (_, transport, events) = local(&hub, 1).remove(0);
    let members = [(WorkerId(0), String::new()), (WorkerId(1), String::new())];
    let short = GroupConfig { shards: 2, patience: Duration::from_millis(30), ..config(WorkerId(0), &members, layout) };
    let mut group = Group::join(transport, events, short).unwrap();
    let floats = vec![1.0; 10];
    let leaf = Leaf { shard: Shard(0), floats: &floats, tail: Tail::default() };
    let error = group.exact_all_reduce(&[leaf], &mut [0.0; 10]).await.unwrap_err().to_string();
    assert!(error.contains("the leaves of shards 1"), "{error}");
    let error = group.exact_all_reduce(&[leaf, leaf], &mut [0.0; 10]).await.unwrap_err().to_string();
    assert!(error.contains("shard 0 is named twice"), "{error}");
    let error = group.exact_all_reduce(&[leaf], &mut [0.0; 9]).await.unwrap_err().to_string();
    assert!(error.contains("9 floats where the group reduces 10"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_missed_the_last_sum_gets_it_from_one_who_is_about_to_leave() {
    let layout = Layout::new(5);
    let alone = reduce(local(&Hub::new(), 1), layout, 1).await[0];
    let hub = Hub::new();
    let mut dropped = 0;
    hub.rule(move |_, _, frame| match frame.body {
        Body::Reduced { round: Round(0), .. } if dropped < 3 => {
            dropped += 1;
            Fate::Drop
        }
        _ => Fate::Deliver,
    });
    assert_eq!(reduce(local(&hub, 4), layout, 1).await, vec![alone; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_of_subtrees_give_the_bits_of_their_leaves_and_others_are_refused() {
    let layout = Layout { floats: 300, block_floats: 32 };
    let alone = reduce(local(&Hub::new(), 1), layout, 1).await[0];
    let leaves: Vec<_> = (0..V)
        .map(|shard| {
            let (floats, tail) = leaf(layout, 0, shard);
            (TreeNode::leaf(Shard(shard)), layout.cut(&floats, tail))
        })
        .collect();
    let sum_of = |node: TreeNode, chunk: u32| {
        let parts: Vec<_> = leaves.iter().map(|(leaf, chunks)| (*leaf, chunks[chunk as usize].clone())).collect();
        sums_of::sum_under(layout, chunk, node, &parts).unwrap()
    };
    let (me, transport, events) = local(&Hub::new(), 1).remove(0);
    let mut group = Group::join(transport, events, config(me, &[(me, String::new())], layout)).unwrap();
    let halves = TreeNode::root(V).children().unwrap();
    let sums = |nodes: &[TreeNode]| -> Vec<Vec<_>> {
        (0..layout.chunks()).map(|chunk| nodes.iter().map(|node| (*node, sum_of(*node, chunk))).collect()).collect()
    };
    let whole = sums(&[halves.0, halves.1]);
    for (wrong, why) in [
        (whole[1..].to_vec(), "9 chunks where the group's layout has 10"),
        (
            whole.iter().cloned().rev().collect(),
            "the part at node (level 5, index 0) has 72 bytes, and chunk 0 has 128",
        ),
        (
            vec![vec![(TreeNode { level: 7, index: 0 }, Bytes::new())]; 10],
            "node (level 7, index 0) is not of the group's tree",
        ),
    ] {
        assert_eq!(group.reduce_sums(wrong, PATIENCE).await.unwrap_err().to_string(), why);
    }
    let chunks = group.reduce_sums(whole, PATIENCE).await.unwrap();
    assert_eq!(Digest::of(&chunks.concat()), alone);
}
