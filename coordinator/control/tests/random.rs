//! Random lives of a cluster: the machine never panics, what must hold holds after every step (see
//! `world::invariants`), and once the faults stop the jobs go on.

mod world;

use elastic_spec::api::JobState;
use elastic_spec::facts::End;
use proptest::prelude::*;
use std::collections::BTreeMap;
use world::{Life, Options, World};

#[derive(Clone, Debug)]
enum Act {
    Run(u64),
    Join {
        node: u8,
        slots: u16,
        boot_ms: u64,
    },
    Submit {
        job: u8,
        min: u16,
        more: u16,
    },
    Scale {
        job: u8,
        min: u16,
        more: u16,
    },
    Drain(u8),
    Cancel(u8),
    /// What happens to the n-th process that there is.
    Process(u8, Life),
    Cut(u8),
    Lose(u8),
    Heal,
    Die(u8),
    Term(u8),
    Unlink(u8, u8),
    Lead {
        away_ms: u64,
    },
    Freeze(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let life = prop_oneof![
        4 => Just(Life::Ended(End::Signal(9))),
        1 => Just(Life::Ended(End::Code(70))),
        1 => Just(Life::Ended(End::Code(10))),
        2 => Just(Life::Stopped),
        2 => Just(Life::Runs),
        1 => Just(Life::Hangs),
    ];
    prop_oneof![
        8 => (1u64..4_000).prop_map(Act::Run),
        2 => (1u64..20_000).prop_map(Act::Run),
        4 => (0u8..5, 1u16..4, 0u64..2_000).prop_map(|(node, slots, boot_ms)| Act::Join { node, slots, boot_ms }),
        3 => (0u8..4, 1u16..4, 0u16..5).prop_map(|(job, min, more)| Act::Submit { job, min, more }),
        1 => (0u8..4, 1u16..4, 0u16..5).prop_map(|(job, min, more)| Act::Scale { job, min, more }),
        1 => (0u8..5).prop_map(Act::Drain),
        1 => (0u8..4).prop_map(Act::Cancel),
        8 => (any::<u8>(), life).prop_map(|(n, life)| Act::Process(n, life)),
        1 => (0u8..5).prop_map(Act::Cut),
        1 => (0u8..5).prop_map(Act::Lose),
        2 => Just(Act::Heal),
        1 => (0u8..5).prop_map(Act::Die),
        1 => (0u8..5).prop_map(Act::Term),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Act::Unlink(a, b)),
        2 => (0u64..5_000).prop_map(|away_ms| Act::Lead { away_ms }),
        1 => (0u64..12_000).prop_map(Act::Freeze),
    ]
}

fn options(min: u16, more: u16) -> Options {
    let pairs = [("min", min), ("max", min + more), ("restarts", 50), ("every", 10), ("v", 16)];
    Options(pairs.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>())
}

fn perform(world: &mut World, act: Act) {
    let name = |n: u8| format!("n{n}");
    let job = |j: u8| format!("j{j}");
    let has = |world: &World, n: u8| world.cluster.agents.contains_key(&world::node(&format!("n{n}")));
    match act {
        Act::Run(ms) => world.run(ms),
        Act::Join { node, slots, boot_ms } => world.cluster.join(&name(node), slots, 1, boot_ms),
        Act::Submit { job: j, min, more } if world.status(&job(j)).is_none() && world.machine.is_some() => {
            world.submit(&job(j), &options(min, more))
        }
        Act::Submit { .. } => {}
        Act::Scale { job: j, min, more } => world.scale(&job(j), min, min + more),
        Act::Drain(n) => world.drain(&name(n)),
        Act::Cancel(j) => world.cancel(&job(j)),
        Act::Process(n, life) => {
            let count = world.cluster.all_procs().count();
            let proc = world.cluster.all_procs().nth(usize::from(n) % count.max(1));
            proc.filter(|p| !p.is_over()).into_iter().for_each(|p| p.life = life.clone());
        }
        Act::Cut(n) | Act::Lose(n) | Act::Die(n) | Act::Term(n) if !has(world, n) => {}
        Act::Cut(n) => world.cluster.agent(&name(n)).is_cut = true,
        Act::Lose(n) => {
            let agent = world.cluster.agent(&name(n));
            agent.is_cut = true;
            let incarnation = agent.incarnation;
            world.step(elastic_control::Event::NodeLost { node: world::node(&name(n)), incarnation });
        }
        Act::Heal => heal(world),
        Act::Die(n) => world.cluster.agent(&name(n)).is_dead = true,
        Act::Term(n) => world.cluster.agent(&name(n)).is_draining = true,
        Act::Unlink(a, b) => {
            let ids: Vec<_> = world.cluster.all_procs().map(|p| p.id).collect();
            if let (Some(a), Some(b)) =
                (ids.get(usize::from(a) % ids.len().max(1)), ids.get(usize::from(b) % ids.len().max(1)))
            {
                world.cluster.broken_links.insert((*a.min(b), *a.max(b)));
            }
        }
        Act::Lead { away_ms } => {
            world.machine = None;
            world.run(away_ms);
            world.lead();
        }
        Act::Freeze(ms) => {
            world.is_stopped = true;
            world.run(ms);
            world.is_stopped = false;
        }
    }
}

fn heal(world: &mut World) {
    world.cluster.broken_links.clear();
    world.cluster.agents.values_mut().for_each(|a| a.is_cut = false);
    world.cluster.all_procs().filter(|p| p.life == Life::Stopped).for_each(|p| p.life = Life::Runs);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_rules_hold_and_jobs_go_on_after(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        world.cluster.join("n0", 2, 1, 50);
        world.submit("j0", &options(1, 3));
        for act in acts {
            perform(&mut world, act);
        }
        heal(&mut world);
        for n in 0..5 {
            world.cluster.join(&format!("n{n}"), 3, 1, 50);
        }
        world.run(90_000);
        prop_assert!(world.cluster.all_procs().all(|p| !p.is_over()), "every end is acknowledged in the end");
        let machine = world.machine.as_ref().expect("it leads");
        let jobs = machine.jobs(elastic_control::Millis(world.now));
        let room = 15;
        for job in jobs.iter().filter(|j| !j.state.is_over()) {
            let others: u16 = jobs.iter().filter(|o| !o.state.is_over() && o.job != job.job).map(|o| o.min_workers).sum();
            prop_assert!(
                job.state == JobState::Running || job.min_workers + others > room,
                "{} is {}: {}\n{}", job.job, job.state.as_str(), job.reason, world.trace.join("\n")
            );
        }
    }
}
