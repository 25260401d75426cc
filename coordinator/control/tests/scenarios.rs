//! Runs `tests/scenarios/control/*.txt`: commands, and below each the whole trace that it must give.
//!
//! `UPDATE=1` rewrites the traces; the diff is what is reviewed. Commands (times in ms):
//!
//! ```text
//! node a slots=2 class=1 boot=50   submit j min=1 max=4 steps=10000 restarts=3 every=0 v=16
//! run 500                          scale j 1 2 · drain a · cancel j
//! kill j/0                         its process dies by signal 9
//! exit j/0 code=70 error=…         its process exits
//! stop j/0 · continue j/0          SIGSTOP, SIGCONT
//! hang j/0                         it beats and works no more
//! unlink j/0 j/1 · relink          their data link breaks; all links are well again
//! cut a · lose a · heal a          no messages; the same and its stream breaks; messages again
//! die a · term a · break a         the node is gone; its agent gets SIGTERM; programs do not start there
//! dir a 7                          the run directory that node a sees has this number
//! unwritten j/0 8 · written j/0    its checkpoint of round 8 fails; one was written
//! away · lead                      the coordinator dies; the next leader begins
//! freeze · thaw                    the coordinator is stopped; goes on
//! seen a 9                         node a reports that it has seen term 9
//! status j · nodes · want a        what the API says
//! ```

mod world;

use elastic_control::{Event, Millis};
use elastic_spec::facts::{End, NodeReport, Unpublished};
use elastic_spec::{Epoch, Round, api};
use std::fmt::Write;
use std::path::PathBuf;
use world::{Life, Options, World, node};

#[test]
fn every_scenario_gives_its_trace() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/control");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("the scenarios lie in tests/scenarios/control")
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 20, "only {} scenarios in {}", files.len(), dir.display());
    let update = std::env::var_os("UPDATE").is_some();
    let mut differing = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a scenario is text");
        let played = play(&text);
        if played != text && update {
            std::fs::write(&path, &played).expect("UPDATE=1 writes the traces");
        } else if played != text {
            let name = path.file_name().expect("a file").to_string_lossy();
            differing.push(format!("{name}:\n{}", first_difference(&text, &played)));
        }
    }
    assert!(differing.is_empty(), "run with UPDATE=1 and look at the diff\n{}", differing.join("\n"));
}

/// The commands and comments as they are, each command with the trace that it gives now.
fn play(text: &str) -> String {
    let mut world = World::new();
    let mut out = String::new();
    for line in text.lines().filter(|l| !l.starts_with(' ')) {
        writeln!(out, "{line}").expect("a string takes all");

        if !line.is_empty() && !line.starts_with('#') {
            command(&mut world, line);
            for said in world.trace.drain(..) {
                writeln!(out, "    {said}").expect("a string takes all");
            }
        }
    }
    out
}

fn first_difference(expected: &str, played: &str) -> String {
    let (mut a, mut b) = (expected.lines(), played.lines());
    let mut number = 0;
    loop {
        number += 1;
        let (expected, played) = (a.next(), b.next());
        if expected != played {
            return format!("  line {number}\n  - {}\n  + {}", expected.unwrap_or("(end)"), played.unwrap_or("(end)"));
        }
    }
}

fn command(world: &mut World, line: &str) {
    let mut words = line.split_whitespace();
    let verb = words.next().expect("the line is not empty");
    let (options, words): (Vec<&str>, Vec<&str>) = words.partition(|w| w.contains('='));
    let pairs = options.iter().filter_map(|w| w.split_once('=')).map(|(k, v)| (k.to_string(), v.to_string()));
    let options = Options(pairs.collect());
    let number = |i: usize| -> u64 { words[i].parse().unwrap_or_else(|_| panic!("{line}: a number is due")) };
    match verb {
        "node" => {
            let (slots, class, boot) =
                (options.number("slots", 1), options.number("class", 1), options.number("boot", 50));
            world.cluster.join(words[0], slots as u16, class, boot);
            world.run(5);
        }
        "submit" => world.submit(words[0], &options),
        "run" => world.run(number(0)),
        "scale" => world.scale(words[0], number(1) as u16, number(2) as u16),
        "drain" => world.drain(words[0]),
        "cancel" => world.cancel(words[0]),
        "kill" => end(world, words[0], End::Signal(9), None),
        "exit" => {
            let error = options.0.get("error").map(|e| e.replace('_', " "));
            end(world, words[0], End::Code(options.number("code", 70) as i32), error);
        }
        "stop" => live(world, words[0], Life::Stopped),
        "continue" => live(world, words[0], Life::Runs),
        "hang" => live(world, words[0], Life::Hangs),
        "unlink" => {
            let pair = [words[0], words[1]].map(|w| proc(world, w).id);
            world.cluster.broken_links.insert((pair[0].min(pair[1]), pair[0].max(pair[1])));
        }
        "relink" => world.cluster.broken_links.clear(),
        "cut" => world.cluster.agent(words[0]).is_cut = true,
        "lose" => {
            let agent = world.cluster.agent(words[0]);
            agent.is_cut = true;
            let incarnation = agent.incarnation;
            world.step(Event::NodeLost { node: node(words[0]), incarnation });
        }
        "heal" => world.cluster.agent(words[0]).is_cut = false,
        "die" => world.cluster.agent(words[0]).is_dead = true,
        "term" => world.cluster.agent(words[0]).is_draining = true,
        "break" => world.cluster.agent(words[0]).is_broken = true,
        "dir" => world.cluster.agent(words[0]).run_dir_id = Some(number(1)),
        "unwritten" => {
            let why = Unpublished { round: Round(number(1)), error: "no room".into(), since_unix_ms: 0 };
            proc(world, words[0]).status.as_mut().expect("it has booted").unpublished = Some(why);
        }
        "written" => proc(world, words[0]).status.as_mut().expect("it has booted").unpublished = None,
        "away" => world.machine = None,
        "lead" => world.lead(),
        "freeze" => world.is_stopped = true,
        "thaw" => world.is_stopped = false,
        "seen" => {
            let report = NodeReport {
                node: node(words[0]),
                incarnation: world.cluster.agent(words[0]).incarnation,
                slots: 1,
                host: String::new(),
                draining: false,
                log_address: String::new(),
                log_token: String::new(),
                seen: Epoch::new(number(1), 0),
                workers: Vec::new(),
            };
            world.step(Event::Report(report, 0));
        }
        "status" => {
            let status = world.status(words[0]);
            say_status(world, status);
        }
        "nodes" => say_nodes(world),
        "want" => say_want(world, words[0]),
        _ => panic!("{line}: no such command"),
    }
}

fn proc<'a>(world: &'a mut World, name: &str) -> &'a mut world::Proc {
    let (job, slot) = name.split_once('/').unwrap_or_else(|| panic!("{name}: job/slot is due"));
    let slot = slot.parse().unwrap_or_else(|_| panic!("{name}: job/slot is due"));
    world.cluster.proc(job, slot).unwrap_or_else(|| panic!("{name}: no process runs there"))
}

fn end(world: &mut World, name: &str, end: End, error: Option<String>) {
    let proc = proc(world, name);
    proc.life = Life::Ended(end);
    if let (Some(status), Some(error)) = (&mut proc.status, error) {
        status.error = Some(error);
    }
    world.cluster.reconnect_all();
}

fn live(world: &mut World, name: &str, life: Life) {
    proc(world, name).life = life;
}

fn say_status(world: &mut World, status: Option<api::JobStatus>) {
    let Some(s) = status else { return world.say("no such job".to_string()) };
    let epoch = s.epoch.map_or("-".to_string(), |e| e.to_string());
    world.say(format!("{} {}: {}", s.job, s.state.as_str(), s.reason));
    let rate = s.samples_per_second;
    world.say(format!(
        "  view {epoch}, {} views, round {}, step {} of {}, {rate:.0} samples/s",
        s.views, s.round, s.step, s.steps_total
    ));
    world.say(format!("  {} to {} workers, {} restarts", s.min_workers, s.max_workers, s.restarts));
    for m in s.members {
        let role = m.role.map_or("-".to_string(), |r| format!("{r:?}").to_lowercase());
        let round = m.round.map_or("-".to_string(), |r| r.to_string());
        let rank = m.rank.map_or("-".to_string(), |r| r.to_string());
        world.say(format!(
            "  slot {} {} on {}: {role} rank {rank}, round {round}, {} shards, silent {} ms",
            m.slot, m.worker, m.node, m.shards, m.silent_ms
        ));
    }
    if let Some(f) = s.last_fault {
        world.say(format!("  last fault: {} on {}: {}", f.worker, f.node, f.cause));
    }
    if let Some(p) = s.published {
        world.say(format!("  published round {}", p.round));
    }
    if let Some(differs) = s.run_dir_differs {
        let on = s.published_on.map_or("-".to_string(), |node| node.to_string());
        world.say(format!("  {differs}; the newest checkpoint is on {on}"));
    }
    if let Some((node, why)) = s.unpublished {
        world.say(format!("  unpublished round {} on {node}: {}", why.round, why.error));
    }
}

fn say_nodes(world: &mut World) {
    let nodes = world.machine.as_ref().map(|m| m.nodes(Millis(world.now))).unwrap_or_default();
    for n in nodes {
        let draining = if n.draining { ", drains" } else { "" };
        world.say(format!(
            "{} {} of {} slots, {} strikes, silent {} ms{draining}",
            n.node, n.used, n.slots, n.strikes, n.silent_ms
        ));
    }
}

fn say_want(world: &mut World, name: &str) {
    let want = world.machine.as_ref().and_then(|m| m.want(&node(name)));
    let Some(want) = want else { return world.say("nothing was wanted yet".to_string()) };
    world.say(format!("order {}.{}", want.term, want.revision));
    for job in want.jobs {
        let epoch = job.view.map_or("-".to_string(), |v| v.epoch.to_string());
        for slot in job.slots {
            let leave = if slot.leave { ", leave" } else { "" };
            world.say(format!("  {}/{} attempt {}, view {epoch}{leave}", job.job, slot.slot, slot.attempt));
        }
    }
    let acknowledged: Vec<String> = want.acknowledged.iter().map(|w| w.to_string()).collect();
    if !acknowledged.is_empty() {
        world.say(format!("  acknowledged {}", acknowledged.join(" ")));
    }
}
