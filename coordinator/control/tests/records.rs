//! What the store is asked to keep, and what a new leader makes of it.

mod world;

use elastic_control::{Config, Machine, Millis, Record};
use elastic_spec::Term;
use elastic_spec::api::JobState;
use std::collections::BTreeMap;
use world::{Options, World, job};

fn options(pairs: &[(&str, &str)]) -> Options {
    Options(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>())
}

fn running() -> World {
    let mut world = World::new();
    world.cluster.join("a", 2, 1, 50);
    world.run(5);
    world.submit("j", &options(&[("min", "1"), ("max", "2"), ("every", "5")]));
    world.run(500);
    assert_eq!(world.status("j").expect("it was submitted").state, JobState::Running);
    world
}

fn stored(world: &World) -> Vec<Record> {
    world.store.iter().map(|(k, v)| Record { key: k.clone(), value: Some(v.clone()) }).collect()
}

#[test]
fn neither_steps_nor_checkpoints_nor_joins_cost_a_record() {
    let mut world = running();
    world.trace.clear();
    world.cluster.join("b", 2, 1, 50);
    world.run(20_000);
    assert!(world.status("j").expect("it runs").step.0 > 300);
    let stored: Vec<&String> = world.trace.iter().filter(|line| line.contains("stored")).collect();
    assert!(stored.is_empty(), "{stored:?}");
}

#[test]
fn a_record_that_cannot_be_read_is_named_and_the_others_are_taken() {
    let world = running();
    let mut records = stored(&world);
    let bad = |key: &str, value: &[u8]| Record { key: key.to_string(), value: Some(value.to_vec()) };
    records.push(bad("job/torn", b"{\"form\":1"));
    records.push(bad("job/NOT A NAME", b"{}"));
    records.push(bad("node/x", b"[]"));
    records.push(bad("leader", b"someone else's"));
    let (machine, mistakes) = Machine::new(Term(2), Millis(0), records, Config::default());
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    for key in ["job/torn", "job/NOT A NAME", "node/x"] {
        assert!(mistakes.iter().any(|m| m.contains(key)), "{key} in {mistakes:?}");
    }
    assert!(machine.job(Millis(0), &job("j")).is_some());
}

#[test]
fn a_record_of_a_newer_form_is_refused_and_not_guessed_at() {
    let world = running();
    let mut records = stored(&world);
    let value = records[0].value.take().expect("it was stored");
    let text = String::from_utf8(value).expect("records are text").replacen("\"form\":1", "\"form\":2", 1);
    records[0].value = Some(text.into_bytes());
    let (machine, mistakes) = Machine::new(Term(2), Millis(0), records, Config::default());
    assert!(mistakes[0].contains("form 2"), "{mistakes:?}");
    assert!(machine.jobs(Millis(0)).is_empty());
}

#[test]
fn what_a_job_came_to_is_told_by_every_later_leader() {
    let mut world = World::new();
    world.cluster.join("a", 2, 1, 50);
    world.run(5);
    world.submit("j", &options(&[("min", "1"), ("max", "2"), ("steps", "10")]));
    world.run(2_000);
    let mut before = world.status("j").expect("it was submitted");
    assert_eq!(before.state, JobState::Succeeded);
    world.lead();
    let after = world.status("j").expect("it was stored");
    before.epoch = None;
    assert_eq!(before, after);
}

#[test]
fn the_oldest_ended_jobs_are_forgotten_beyond_the_limit() {
    let config = Config { jobs_over_max: 2, ..Config::default() };
    let world = running();
    let (mut machine, _) = Machine::new(Term(9), Millis(0), stored(&world), config);
    let template = stored(&world).into_iter().find(|r| r.key == "job/j").expect("it was stored");
    let spec_json = {
        let value: serde_json::Value = serde_json::from_slice(&template.value.expect("set")).expect("JSON");
        value["spec_json"].as_str().expect("a text").to_string()
    };
    let mut deleted = Vec::new();
    for n in 0..4u64 {
        let id = job(&format!("k{n}"));
        let submit = elastic_spec::api::Submit { spec_json: spec_json.clone(), blobs: Vec::new(), resume: None };
        let request = elastic_control::RequestId(n);
        let event = elastic_control::Event::Submit {
            request,
            submit,
            job: id.clone(),
            secret: vec![1],
            run_dir: format!("/runs/{id}"),
            unix_ms: n,
        };
        let _ = machine.step(Millis(n), event);
        let effects = machine.step(Millis(n), elastic_control::Event::Cancel { request, job: id });
        deleted.extend(effects.persist.into_iter().filter(|r| r.value.is_none()).map(|r| r.key));
    }
    assert_eq!(deleted, ["job/k0", "job/k1"]);
}
