//! Swaps as they go well and as they go wrong, by a clock of the test's own; and any history at all.

use super::*;
use proptest::prelude::*;

struct World {
    machine: Machine,
    now_ms: u64,
    files: BTreeMap<u64, u64>,
    labels: Result<BTreeMap<String, u64>, String>,
    loading: Vec<Load>,
}

impl World {
    fn new(keep: usize) -> World {
        let (machine, labels) = (Machine::new(keep), Ok(BTreeMap::new()));
        World { machine, now_ms: 0, files: BTreeMap::new(), labels, loading: Vec::new() }
    }

    /// Version → mark.
    fn files(mut self, files: &[(u64, u64)]) -> World {
        self.files = files.iter().copied().collect();
        self.look()
    }

    fn labels(mut self, labels: &[(&str, u64)]) -> World {
        self.labels = Ok(labels.iter().map(|(label, version)| (label.to_string(), *version)).collect());
        self.look()
    }

    fn look(mut self) -> World {
        let version =
            |(number, mark): (&u64, &u64)| (*number, FoundVersion { dir: format!("m/{number}").into(), mark: *mark });
        let model = FoundModel { versions: self.files.iter().map(version).collect(), labels: self.labels.clone() };
        self.event(Event::Found(Found { models: [("m".to_string(), model)].into() }));
        self
    }

    fn event(&mut self, event: Event) {
        for effect in self.machine.step(self.now_ms, event) {
            match effect {
                Effect::Load(load) => self.loading.push(load),
                Effect::Show => {}
            }
        }
    }

    fn loads(&self) -> Vec<u64> {
        self.loading.iter().map(|load| load.version).collect()
    }

    fn finish(mut self) -> World {
        while let Some(load) = self.loading.pop() {
            self.event(Event::Loaded(load));
        }
        self
    }

    fn fail(mut self, reason: &str) -> World {
        let load = self.loading.pop().expect("something is being loaded");
        self.event(Event::Failed(load, reason.into()));
        self
    }

    fn wait(mut self, ms: u64) -> World {
        self.now_ms += ms;
        self.event(Event::Tick);
        self
    }

    fn answering(&self) -> Vec<u64> {
        self.machine.shown().remove("m").map(|shown| shown.versions.into_iter().collect()).unwrap_or_default()
    }

    /// The version that answers who names none, or why none does.
    fn default(&self) -> Result<u64, String> {
        let Some(shown) = self.machine.shown().remove("m") else { return Err("there is no such model".into()) };
        shown.default.ok_or_else(|| shown.unready.expect("there is a reason"))
    }

    /// What is told of labels.
    fn told(&self) -> Vec<String> {
        self.machine.labels_amiss().into_iter().map(|(_, why)| why).collect()
    }

    fn label(&self, label: &str) -> u64 {
        self.machine.shown()["m"].labels[label]
    }
}

#[test]
fn the_old_version_answers_until_the_new_one_does() {
    let world = World::new(1).files(&[(1, 0)]);
    assert!(!world.machine.has_settled());
    let world = world.finish().files(&[(1, 0), (2, 0)]);
    assert_eq!((world.answering(), world.loads()), (vec![1], vec![2]));
    let world = world.finish();
    assert_eq!(world.answering(), [2]);
    assert!(world.machine.has_settled());
}

#[test]
fn a_version_that_cannot_be_loaded_leaves_the_old_one_and_is_tried_again_ever_later() {
    let mut world = World::new(1).files(&[(1, 0)]).finish().files(&[(1, 0), (2, 0)]);
    for wait_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        world = world.fail("damaged");
        assert_eq!((world.answering(), world.loads()), (vec![1], vec![]));
        let row = world.machine.index().into_iter().find(|row| row.version == "2").unwrap();
        assert_eq!((row.state, row.reason.as_str()), ("UNAVAILABLE", "damaged"));
        world = world.wait(wait_ms - 1);
        assert_eq!(world.loads(), Vec::<u64>::new());
        world = world.wait(1);
        assert_eq!(world.loads(), [2]);
    }
    assert_eq!(world.finish().answering(), [2]);
}

#[test]
fn new_files_or_somebodys_wish_are_tried_at_once() {
    let world = World::new(1).files(&[(1, 0)]).fail("damaged").files(&[(1, 7)]);
    assert_eq!(world.loads(), [1]);
    let mut world = world.fail("still damaged");
    world.event(Event::On("m".into()));
    assert_eq!(world.loads(), [1]);
    assert_eq!(world.machine.outcome("m"), None);
    assert_eq!(world.fail("for good").machine.outcome("m"), Some(Err("version 1: for good".into())));
}

#[test]
fn files_that_are_written_anew_replace_those_that_answer() {
    let world = World::new(1).files(&[(1, 0)]).finish().files(&[(1, 5)]);
    assert_eq!((world.answering(), world.loads()), (vec![1], vec![1]));
    let world = world.fail("damaged");
    assert_eq!(world.answering(), [1]);
    assert_eq!(world.machine.index()[0].state, "READY");
    assert_eq!(world.machine.index()[0].reason, "damaged");
}

#[test]
fn a_load_of_files_that_changed_meanwhile_is_followed_by_another() {
    let world = World::new(1).files(&[(1, 0)]).files(&[(1, 5)]);
    assert_eq!(world.loads(), [1]);
    let mut world = world;
    let load = world.loading.pop().unwrap();
    world.event(Event::Loaded(load));
    assert_eq!((world.answering(), world.loads()), (vec![1], vec![1]));
    assert_eq!(world.loading[0].mark, 5);
}

#[test]
fn a_directory_that_is_being_written_keeps_what_answers_and_one_that_is_gone_does_not() {
    let mut world = World::new(1).files(&[(1, 0)]).finish().files(&[]);
    assert_eq!(world.answering(), [1]);
    world.event(Event::Found(Found::default()));
    assert_eq!(world.answering(), Vec::<u64>::new());
    assert!(!world.machine.knows("m"));
}

#[test]
fn the_newest_and_the_labelled_answer() {
    let world = World::new(2).files(&[(1, 0), (2, 0), (3, 0), (4, 0)]).labels(&[("stable", 1)]).finish();
    assert_eq!((world.answering(), world.label("stable")), (vec![1, 3, 4], 1));
}

#[test]
fn a_label_goes_on_when_its_new_version_answers() {
    let world = World::new(1).files(&[(1, 0), (2, 0), (3, 0)]).labels(&[("stable", 1)]).finish();
    let world = world.labels(&[("stable", 2)]);
    assert_eq!((world.answering(), world.label("stable")), (vec![1, 3], 1));
    let world = world.finish();
    assert_eq!((world.answering(), world.label("stable")), (vec![2, 3], 2));
}

#[test]
fn who_names_none_gets_the_newest_and_with_a_label_live_that_version() {
    let world = World::new(1).files(&[(1, 0), (2, 0)]).finish();
    assert_eq!(world.default(), Ok(2));
    // Another label changes nothing.
    let world = world.labels(&[("canary", 1)]).finish();
    assert_eq!(world.default(), Ok(2));
    // The labelled version is loaded aside; the newest answers until it does.
    let world = World::new(1).files(&[(1, 0), (2, 0)]).finish().labels(&[("live", 1)]);
    assert_eq!((world.default(), world.loads()), (Ok(2), vec![1]));
    let world = world.finish();
    assert_eq!((world.default(), world.answering()), (Ok(1), vec![1, 2]));
    // A newer version is loaded, and answers who names it.
    let world = world.files(&[(1, 0), (2, 0), (3, 0)]).finish();
    assert_eq!((world.default(), world.answering()), (Ok(1), vec![1, 3]));
    let world = world.labels(&[("live", 3)]);
    assert_eq!((world.default(), world.answering()), (Ok(3), vec![3]));
    let world = world.labels(&[("live", 2)]);
    assert_eq!(world.default(), Ok(3));
    let world = world.finish();
    assert_eq!((world.default(), world.told()), (Ok(2), vec![]));
    // Without the label the newest is the default again.
    assert_eq!(world.labels(&[]).default(), Ok(3));
}

#[test]
fn at_the_start_nobody_answers_for_the_labelled_version_before_it_was_tried() {
    let world = World::new(3).files(&[(1, 0), (2, 0), (3, 0)]).labels(&[("live", 2)]);
    let mut world = world;
    let others = std::mem::take(&mut world.loading);
    let (labelled, others): (Vec<Load>, Vec<Load>) = others.into_iter().partition(|load| load.version == 2);
    others.into_iter().for_each(|load| world.event(Event::Loaded(load)));
    assert_eq!(world.answering(), [1, 3]);
    assert_eq!(world.default(), Err("version 2, named 'live', is being loaded".into()));
    world.loading = labelled;
    let world = world.fail("damaged");
    assert_eq!(world.default(), Ok(3), "what is loaded answers");
    assert_eq!(
        world.told(),
        ["label 'live' names version 2, which cannot be loaded; version 3 answers who names none"]
    );
    assert!(world.machine.index().iter().any(|row| row.reason.starts_with("label 'live' names version 2")));
    let world = world.wait(1_000);
    assert_eq!((world.default(), world.loads()), (Ok(3), vec![2]), "also while it is tried again");
    assert_eq!(world.finish().default(), Ok(2));
}

#[test]
fn a_label_on_a_version_that_is_damaged_or_gone_leaves_who_answers_and_this_is_told() {
    let world = World::new(1).files(&[(1, 0), (2, 0)]).labels(&[("live", 2)]).finish();
    let world = world.labels(&[("live", 1)]).fail("damaged");
    assert_eq!((world.default(), world.label("live")), (Ok(2), 2));
    assert_eq!(world.told(), ["label 'live' names version 1, which cannot be loaded; version 2 goes on answering"]);
    let world = world.labels(&[("live", 7), ("canary", 8)]);
    assert_eq!((world.default(), world.label("live")), (Ok(2), 2));
    let told = [
        "label 'canary' names version 8, which is not there; nothing answers to it",
        "label 'live' names version 7, which is not there; version 2 goes on answering",
    ];
    assert_eq!(world.told(), told);
    // Version 2 goes when another has come: the newest is left.
    let world = world.files(&[(3, 0)]).finish();
    assert_eq!((world.default(), world.answering()), (Ok(3), vec![3]));
    let told = "label 'live' names version 7, which is not there; version 3 answers who names none";
    assert_eq!(world.told()[1], told);
}

#[test]
fn a_labelled_version_that_cannot_be_loaded_keeps_only_what_stands_in_for_it() {
    let mut world = World::new(1).files(&[(3, 0), (10, 0)]).labels(&[("canary", 3)]);
    world.loading.retain(|load| load.version == 10);
    let mut world = world.finish();
    for version in 11..20 {
        world = world.files(&[(3, 0), (version - 1, 0), (version, 0)]);
        assert_eq!(world.answering(), [version - 1], "until the new one answers");
        world = world.finish();
        assert_eq!(world.answering(), [version]);
    }
    // The version that a label led to goes on, too, and no other.
    let world = World::new(1).files(&[(1, 0), (2, 0), (3, 0)]).labels(&[("canary", 1)]).finish();
    let world = world.labels(&[("canary", 2)]).fail("damaged");
    let world = world.files(&[(1, 0), (2, 0), (3, 0), (4, 0)]).finish();
    assert_eq!((world.answering(), world.label("canary")), (vec![1, 4], 1));
}

#[test]
fn a_start_with_the_newest_damaged_goes_down_to_the_newest_that_can_be_loaded() {
    for labels in [&[][..], &[("live", 5)]] {
        let mut world = World::new(1);
        world.labels = Ok(labels.iter().map(|(label, version)| (label.to_string(), *version)).collect());
        let world = world.files(&[(2, 0), (3, 0), (4, 0), (5, 0)]);
        assert_eq!(world.loads(), [5]);
        let world = world.fail("damaged");
        assert_eq!((world.loads(), world.machine.has_settled()), (vec![4], false));
        let world = world.fail("damaged, too");
        assert_eq!(world.loads(), [3]);
        let world = world.finish();
        assert_eq!((world.default(), world.answering(), world.machine.has_settled()), (Ok(3), vec![3], true));
        let world = world.wait(60_000);
        assert_eq!((world.loads(), world.answering()), (vec![5], vec![3]));
        assert_eq!(world.finish().answering(), [5]);
    }
}

#[test]
fn labels_that_cannot_be_read_stay_as_they_were() {
    let mut world = World::new(1).files(&[(1, 0), (2, 0)]).labels(&[("stable", 1)]).finish();
    world.labels = Err("labels.json: no JSON".into());
    let world = world.look();
    assert_eq!((world.answering(), world.label("stable")), (vec![1, 2], 1));
    assert!(world.machine.index().iter().any(|row| row.reason.contains("no JSON")));
}

#[test]
fn labels_that_were_never_read_leave_who_names_none_without_an_answer() {
    let mut world = World::new(1);
    world.labels = Err("labels.json: no JSON".into());
    let world = world.files(&[(1, 0)]).finish();
    assert_eq!((world.answering(), world.default()), (vec![1], Err("labels.json: no JSON".into())));
    assert_eq!(world.machine.bad_labels().len(), 1);
    let world = world.labels(&[]);
    assert_eq!((world.default(), world.machine.bad_labels().len()), (Ok(1), 0));
}

#[test]
fn a_deleted_version_is_a_way_back() {
    let world = World::new(1).files(&[(1, 0), (2, 0)]).finish().files(&[(1, 0)]);
    assert_eq!((world.answering(), world.loads()), (vec![2], vec![1]));
    assert_eq!(world.finish().answering(), [1]);
}

#[test]
fn an_unloaded_model_stays_away_until_it_is_wanted() {
    let mut world = World::new(1).files(&[(1, 0)]).finish();
    world.event(Event::Off("m".into()));
    assert_eq!(world.answering(), Vec::<u64>::new());
    assert_eq!(world.machine.shown()["m"].unready.as_deref(), Some("it was unloaded"));
    let mut world = world.files(&[(1, 0), (2, 0)]);
    assert_eq!(world.loads(), Vec::<u64>::new());
    world.event(Event::On("m".into()));
    assert_eq!(world.finish().answering(), [2]);
}

#[derive(Clone, Debug)]
enum Act {
    Files(Vec<(u64, u64)>),
    Label(&'static str, u64),
    Finish,
    Fail,
    Wait(u64),
    On,
    Off,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        prop::collection::vec((0u64..4, 0u64..3), 0..4).prop_map(Act::Files),
        (prop_oneof![Just("live"), Just("x")], 0u64..4).prop_map(|(label, version)| Act::Label(label, version)),
        Just(Act::Finish),
        Just(Act::Fail),
        (0u64..90_000).prop_map(Act::Wait),
        Just(Act::On),
        Just(Act::Off),
    ]
}

proptest! {
    /// Whatever happens: what once answers goes on unless somebody unloads it or other versions answer; when all
    /// loads come off, exactly what is wanted answers.
    #[test]
    fn no_history_leaves_a_model_without_an_answer_that_it_had(acts in prop::collection::vec(act(), 1..40), keep in 1usize..3) {
        let mut world = World::new(keep);
        let mut off = false;
        for act in acts {
            let (answered, had) = (!world.answering().is_empty(), world.default().is_ok());
            world = match act {
                Act::Files(files) => world.files(&files),
                Act::Label(label, version) => world.labels(&[(label, version)]),
                Act::Finish => world.finish(),
                Act::Fail if !world.loading.is_empty() => world.fail("no"),
                Act::Fail => world,
                Act::Wait(ms) => world.wait(ms),
                Act::On => { off = false; world.event(Event::On("m".into())); world }
                Act::Off => { off = true; world.event(Event::Off("m".into())); world }
            };
            // An order for a model that was never seen counts for nothing.
            off &= world.machine.knows("m") && world.machine.models["m"].is_off;
            prop_assert!(!answered || off || !world.answering().is_empty());
            prop_assert!(!had || off || world.default().is_ok(), "who names none is answered on");
        }
        world.event(Event::On("m".into()));
        let world = world.look().finish().wait(60_000).finish();
        prop_assert!(world.machine.has_settled());
        let Some(model) = world.machine.models.get("m") else { return Ok(()) };
        let (mut wanted, default) = (model.wanted(keep), world.default().ok());
        match model.labels.get("live") {
            // It leads nowhere: who answered for it may be one that is not wanted else.
            Some(labelled) if !wanted.contains(labelled) => {
                prop_assert_eq!(default.is_some(), !wanted.is_empty());
                wanted.extend(default);
            }
            labelled => prop_assert_eq!(default, labelled.or(wanted.last()).copied()),
        }
        prop_assert_eq!(world.answering(), wanted.into_iter().collect::<Vec<_>>());
    }
}
