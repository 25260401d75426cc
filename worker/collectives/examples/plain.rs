//! An exact all-reduce between plain programs, without any coordinator.
//!
//! `plain ME HOST:PORT HOST:PORT …` in as many terminals as there are addresses, ME counting from 0. Every
//! process prints the same digest, and a run with one address prints it, too.

use elastic_collectives::{Group, GroupConfig, Leaf, LinkConfig, Links, Reducer, Transport};
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::{Digest, JobId, Shard, WorkerId};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SHARDS: u16 = 64;
const LAYOUT: Layout = Layout::new(1 << 20);
const SUMS: u64 = 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let me: usize = words.next().ok_or("plain ME HOST:PORT …")?.parse()?;
    let addresses: Vec<String> = words.collect();
    let mine = addresses.get(me).ok_or("ME is the place of this process's own address")?;
    let (host, port) = mine.rsplit_once(':').ok_or("an address is HOST:PORT")?;
    let port: u16 = port.parse()?;
    let id = |place: usize| WorkerId(place as u64 + 1);

    let job = LinkConfig::local(id(me), JobId::parse("plain")?, Digest::of(b"plain 1"), b"not a secret".to_vec());
    let config = LinkConfig { bind: host.to_string(), advertise: host.to_string(), ports: Some(port..=port), ..job };
    let (events, heard) = tokio::sync::mpsc::channel(256);
    let links = Arc::new(Links::start(config, events).await?);
    let members = addresses.iter().enumerate().map(|(place, address)| (id(place), address.clone())).collect();
    let patience = Duration::from_secs(60);
    let shape = GroupConfig { me: id(me), members, shards: SHARDS, layout: LAYOUT, patience };
    let transport: Arc<dyn Transport> = links.clone();
    let mut group = Group::join(transport, heard, shape)?;

    let ours: Vec<u16> =
        (0..SHARDS).filter(|shard| usize::from(*shard) * addresses.len() / usize::from(SHARDS) == me).collect();
    let leaf =
        |shard: u16| (0..LAYOUT.floats).map(|i| (i as f32 * 0.001 + f32::from(shard)).sin()).collect::<Vec<f32>>();
    let floats: Vec<Vec<f32>> = ours.iter().map(|shard| leaf(*shard)).collect();
    let tail = Tail { loss: 0.1, count: 1, correct: 0 };
    let leaves: Vec<Leaf> =
        ours.iter().zip(&floats).map(|(shard, floats)| Leaf { shard: Shard(*shard), floats, tail }).collect();
    let mut sum = vec![0.0; LAYOUT.floats];
    group.exact_all_reduce(&leaves, &mut sum).await?;
    let start = Instant::now();
    for _ in 0..SUMS {
        group.exact_all_reduce(&leaves, &mut sum).await?;
    }
    let each = start.elapsed() / SUMS as u32;
    let bytes: Vec<u8> = sum.iter().flat_map(|x| x.to_le_bytes()).collect();
    println!("{} in {each:.1?} a sum of {} MiB", Digest::of(&bytes), bytes.len() >> 20);
    group.leave().await;
    links.close(Duration::from_secs(5)).await;
    Ok(())
}
