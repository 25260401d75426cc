//! The plans of all ranks fit each other for any view and layout, and what they deliver is the tree's sum, bit for bit.

use super::*;
use bytes::Bytes;
use elastic_spec::view::{Pace, Role, ViewMember};
use elastic_spec::{Epoch, JobId, NodeId, Shard};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

fn view(world: u16, shard_map: Vec<Rank>, learners: u16) -> View {
    let member = |i: u16| ViewMember {
        worker: WorkerId(100 + u64::from(i)),
        node: NodeId::parse("n").unwrap(),
        address: String::new(),
        role: if i < world { Role::Active } else { Role::Learner },
    };
    let view = View {
        job: JobId::parse("j").unwrap(),
        epoch: Epoch::new(1, 1),
        pace: Pace::Run,
        members: (0..world + learners).map(member).collect(),
        shard_map,
    };
    view.check().unwrap();
    view
}

fn draws(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state ^ state >> 29
    }
}

/// Shards as the coordinator maps them (intervals), and in any other way, some ranks without any.
fn any_map(world: u16, shards: u16, seed: u64) -> Vec<Rank> {
    let mut draw = draws(seed);
    match draw() % 3 {
        0 => (0..shards).map(|s| Rank((u32::from(s) * u32::from(world) / u32::from(shards)) as u16)).collect(),
        1 => (0..shards).map(|_| Rank((draw() % u64::from(world)) as u16)).collect(),
        _ => (0..shards).map(|_| Rank((draw() % u64::from(world).min(2)) as u16)).collect(),
    }
}

/// A rank's memories.
struct Memories {
    segments: Vec<Vec<u8>>,
    inbox: Vec<u8>,
    reduced: Vec<u8>,
}

impl Memories {
    fn at(&mut self, place: &Place) -> &mut [u8] {
        let region = match place.region {
            Region::Segment(segment) => &mut self.segments[segment],
            Region::Inbox => &mut self.inbox,
            Region::Reduced => &mut self.reduced,
        };
        &mut region[place.bytes.clone()]
    }
}

/// A chunk, the subtree that it is of, and its bytes.
type Sent = (u32, Option<TreeNode>, Vec<u8>);

struct World {
    layout: Layout,
    shards: u16,
    plans: Vec<Plan>,
    memories: Vec<Memories>,
    /// The tree's sum, as one vector of bytes.
    wanted: Vec<u8>,
}

fn world(view: &View, layout: Layout, spread: Spread, seed: u64) -> World {
    let mut draw = draws(seed);
    let shards = view.shards();
    let leaves: Vec<Vec<Bytes>> = (0..shards)
        .map(|_| {
            let floats: Vec<f32> = (0..layout.floats).map(|_| f32::from_bits((draw() >> 32) as u32)).collect();
            layout.cut(&floats, Tail { loss: f64::from_bits(draw()), count: draw(), correct: draw() })
        })
        .collect();
    let total = |node: TreeNode| -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in 0..layout.chunks() {
            let held: BTreeMap<TreeNode, Bytes> =
                (0..shards).map(|s| (TreeNode::leaf(Shard(s)), leaves[s as usize][chunk as usize].clone())).collect();
            out.extend_from_slice(&tree::fold(node, &held, &mut |a, b| layout.add(chunk, a, b)).unwrap());
        }
        out
    };
    let plans: Vec<Plan> = (0..view.world_size()).map(|r| plan(view, layout, Rank(r), spread)).collect();
    let memories = plans.iter().map(|plan| Memories {
        segments: plan.segments.iter().map(|node| total(*node)).collect(),
        // Poisoned: what is not delivered is seen.
        inbox: vec![0xa5; plan.inbox_bytes],
        reduced: vec![0xa5; plan.flat_bytes],
    });
    World { layout, shards, memories: memories.collect(), wanted: total(TreeNode::root(shards)), plans }
}

impl World {
    /// Runs the plans as NCCL would at its strictest: ranks get to their steps in any order, pairs match in order, a group ends when
    /// each of its transfers has met its other end, sends too. Gives what is left undone.
    fn run(&mut self, seed: u64) -> Vec<String> {
        let ranks = self.plans.len();
        let mut draw = draws(seed);
        let mut at = vec![0usize; ranks];
        // What was sent from one rank to another and not yet received, and of each rank's step what is open.
        let mut sent: BTreeMap<(usize, usize), VecDeque<Sent>> = BTreeMap::new();
        let mut open: Vec<Option<Vec<Move>>> = vec![None; ranks];
        let mut idle = 0;
        while idle < 50 * ranks {
            let me = (draw() % ranks as u64) as usize;
            idle += 1;
            let Some(step) = self.plans[me].steps.get(at[me]).cloned() else { continue };
            if open[me].is_none() {
                idle = 0;
                let mut waiting = Vec::new();
                for m in step.group.clone() {
                    let to: Vec<usize> = match m.way {
                        Way::To(to) => vec![usize::from(to.0)],
                        Way::Broadcast(root) if usize::from(root.0) == me => (0..ranks).filter(|r| *r != me).collect(),
                        _ => {
                            waiting.push(m);
                            continue;
                        }
                    };
                    for to in to {
                        let bytes = self.memories[me].at(&m.place).to_vec();
                        sent.entry((me, to)).or_default().push_back((m.chunk, m.node, bytes));
                    }
                }
                open[me] = Some(waiting);
            }
            let waiting = open[me].take().expect("it was opened");
            let mut still = Vec::new();
            for m in waiting {
                let (Way::From(from) | Way::Broadcast(from)) = m.way else { unreachable!("sends do not wait here") };
                let queue = sent.entry((usize::from(from.0), me)).or_default();
                let is_first = still.iter().all(|other: &Move| other.way != m.way);
                match queue.front() {
                    Some((chunk, node, bytes)) if is_first => {
                        let (met, wanted) = ((*chunk, *node, bytes.len()), (m.chunk, m.node, m.place.bytes.len()));
                        if met != wanted {
                            return vec![format!("rank {me} meets {met:?} where {wanted:?} is due from {from}")];
                        }
                        let (.., bytes) = queue.pop_front().expect("it is there");
                        self.memories[me].at(&m.place).copy_from_slice(&bytes);
                        idle = 0;
                    }
                    _ => still.push(m),
                }
            }
            let is_sending = (0..ranks).any(|to| sent.get(&(me, to)).is_some_and(|queue| !queue.is_empty()));
            if is_sending || !still.is_empty() {
                open[me] = Some(still);
                continue;
            }
            if let Some(sum) = step.sum {
                self.add_up(me, &sum);
            }
            at[me] += 1;
            idle = 0;
        }
        let unread = sent.iter().filter(|(_, queue)| !queue.is_empty());
        let unread = unread.map(|((from, to), queue)| format!("{} sends of {from} to {to} meet nothing", queue.len()));
        let stuck = (0..ranks).filter(|r| at[*r] < self.plans[*r].steps.len());
        unread.chain(stuck.map(|r| format!("rank {r} waits in step {}", at[r]))).collect()
    }

    fn add_up(&mut self, me: usize, sum: &Sum) {
        let memory = &mut self.memories[me];
        let parts: BTreeMap<TreeNode, Bytes> =
            sum.parts.iter().map(|(node, place)| (*node, Bytes::copy_from_slice(memory.at(place)))).collect();
        let layout = self.layout;
        let root = TreeNode::root(self.shards);
        let whole = tree::fold(root, &parts, &mut |a, b| layout.add(sum.chunk, a, b)).expect("parts cover the tree");
        memory.at(&sum.to).copy_from_slice(&whole);
    }

    /// No two places that one step writes overlap, nor one that it writes and one that it reads.
    fn check_places(&self) {
        for plan in &self.plans {
            for step in &plan.steps {
                let moves = || step.group.iter().enumerate();
                let writes = |m: &Move| matches!(m.way, Way::From(_) | Way::Broadcast(_));
                for (i, m) in moves().filter(|(_, m)| writes(m)) {
                    for (_, other) in moves().filter(|(j, _)| i != *j) {
                        let apart = m.place.region != other.place.region
                            || m.place.bytes.end <= other.place.bytes.start
                            || other.place.bytes.end <= m.place.bytes.start;
                        assert!(apart, "{m:?} and {other:?}");
                    }
                }
            }
        }
    }
}

fn check(view: &View, layout: Layout, spread: Spread, seed: u64) {
    let mut world = world(view, layout, spread, seed);
    world.check_places();
    let undone = world.run(seed);
    assert!(undone.is_empty(), "{undone:?}");
    for (rank, memory) in world.memories.iter().enumerate() {
        assert!(memory.reduced == world.wanted, "rank {rank} of {} has other bits", world.plans.len());
    }
}

#[test]
fn a_rank_alone_has_nobody_to_send_to() {
    let view = view(1, vec![Rank(0); 8], 1);
    for spread in [Spread::Sends, Spread::Broadcast] {
        let layout = Layout { floats: 100, block_floats: 8 };
        let plan = plan(&view, layout, Rank(0), spread);
        assert!(plan.steps.iter().all(|step| step.group.is_empty() && step.sum.is_some()));
        assert_eq!((plan.steps.len(), plan.inbox_bytes), (13, 0));
        check(&view, layout, spread, 1);
    }
}

#[test]
fn two_ranks_exchange_halves() {
    let layout = Layout { floats: 8, block_floats: 4 };
    let plan = plan(&view(2, vec![Rank(0), Rank(0), Rank(1), Rank(1)], 0), layout, Rank(0), Spread::Sends);
    let ways: Vec<Vec<(Way, u32)>> =
        plan.steps.iter().map(|step| step.group.iter().map(|m| (m.way, m.chunk)).collect()).collect();
    let (to, from) = (Way::To(Rank(1)), Way::From(Rank(1)));
    assert_eq!(ways, [vec![(to, 1), (from, 0)], vec![(to, 0), (from, 1)]]);
    assert_eq!(plan.steps[0].sum.as_ref().map(|sum| sum.chunk), Some(0));
}

#[test]
fn plans_that_do_not_fit_are_found() {
    let view = view(3, vec![Rank(0), Rank(1), Rank(2), Rank(0)], 0);
    let undone = |spoil: fn(&mut Vec<Step>)| {
        let mut world = world(&view, Layout { floats: 64, block_floats: 8 }, Spread::Sends, 1);
        spoil(&mut world.plans[1].steps);
        world.run(1)
    };
    assert!(undone(|_| {}).is_empty());
    let lost = undone(|steps| {
        steps[1].group.remove(0);
    });
    assert!(!lost.is_empty(), "a transfer that is taken out");
    let swapped = undone(|steps| steps[1].group.swap(0, 1));
    let late = undone(|steps| {
        let moved = steps[1].group.remove(0);
        steps[2].group.insert(0, moved);
    });
    assert!(!late.is_empty(), "a transfer whose ends are in different steps");
    // Two transfers to different ranks may change places, and do here.
    assert!(swapped.is_empty(), "{swapped:?}");
}

proptest! {
    #[test]
    fn the_plans_of_all_ranks_fit_and_deliver_the_trees_bits(
        world in 1u16..17, levels in 0u32..7, floats in 0usize..400, block in 1usize..40, learners in 0u16..3,
        broadcast in any::<bool>(), seed in any::<u64>(),
    ) {
        let view = view(world, any_map(world, 1 << levels, seed), learners);
        let spread = if broadcast { Spread::Broadcast } else { Spread::Sends };
        check(&view, Layout { floats, block_floats: block }, spread, seed);
    }

    #[test]
    fn a_round_of_the_tail_alone_is_a_round(world in 1u16..17, levels in 0u32..7, seed in any::<u64>()) {
        check(&view(world, any_map(world, 1 << levels, seed), 0), Layout::TAIL_ONLY, Spread::Sends, seed);
    }
}
