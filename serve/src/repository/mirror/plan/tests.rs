//! What is copied, put into place and removed, and in what order; and any names at all.

use super::*;
use proptest::prelude::*;
use std::time::SystemTime;

fn entry(name: &str, etag: &str) -> Entry {
    Entry { name: name.into(), bytes: 10, modified: SystemTime::UNIX_EPOCH, etag: Some(etag.into()) }
}

fn listing(names: &[&str]) -> Listing {
    Listing::of(&names.iter().map(|name| entry(name, "a")).collect::<Vec<_>>(), "own")
}

fn versions(listing: &Listing) -> Vec<(&str, Vec<u64>)> {
    let versions = |model: &ListedModel| model.versions.keys().copied().collect();
    listing.models.iter().map(|(name, model)| (name.as_str(), versions(model))).collect()
}

/// A mirror whose copies always come, except of those that are named.
struct World {
    listing: Listing,
    local: Local,
    keep: usize,
    now_ms: u64,
    broken: BTreeSet<u64>,
}

impl World {
    fn new(names: &[&str]) -> World {
        let (local, broken) = (Local::default(), BTreeSet::new());
        World { listing: listing(names), local, keep: 1, now_ms: 0, broken }
    }

    fn lists(mut self, names: &[&str]) -> World {
        self.listing = listing(names);
        self
    }

    fn changes(mut self, name: &str, etag: &str) -> World {
        let names: Vec<String> = self.listing.models.values().flat_map(names).collect();
        let entries = names.iter().map(|each| entry(each, if each == name { etag } else { "a" }));
        self.listing = Listing::of(&entries.collect::<Vec<_>>(), "own");
        self
    }

    fn labels(mut self, named: &[(&str, u64)]) -> World {
        let read = plan_labels(&self);
        for (name, listed) in read {
            let named = named.iter().map(|(label, version)| (label.to_string(), *version)).collect();
            let labels = Labels { mark: listed.mark, bytes: Vec::new(), named, is_placed: false };
            self.local.models.entry(name).or_default().labels = Some(labels);
        }
        self
    }

    /// What one pass does, as lines.
    fn pass(&mut self) -> Vec<String> {
        let mut did = Vec::new();
        self.local.heed(&self.listing);
        self.tidy(&mut did);
        for fetch in fetches(&self.listing, &self.local, self.keep, self.now_ms) {
            let mark = self.listing.models[&fetch.model].versions[&fetch.version].mark;
            let model = self.local.models.entry(fetch.model.clone()).or_default();
            did.push(format!("fetch {}", fetch.version));
            match self.broken.contains(&fetch.version) {
                true => {
                    let refused = refuse(model.refused.get(&fetch.version), mark, "broken".into(), self.now_ms);
                    model.refused.insert(fetch.version, refused);
                }
                false => {
                    model.versions.insert(fetch.version, mark);
                    model.refused.remove(&fetch.version);
                }
            }
            self.tidy(&mut did);
        }
        did
    }

    fn tidy(&mut self, did: &mut Vec<String>) {
        for act in tidy(&self.listing, &self.local, self.keep) {
            match act {
                Tidy::PlaceLabels(name) => {
                    self.local.models.get_mut(&name).unwrap().placed();
                    did.push("labels".into());
                }
                Tidy::RemoveLabels(name) => {
                    self.local.models.get_mut(&name).unwrap().labels = None;
                    did.push("no labels".into());
                }
                Tidy::RemoveVersion(name, version) => {
                    self.local.models.get_mut(&name).unwrap().versions.remove(&version);
                    did.push(format!("remove {version}"));
                }
                Tidy::RemoveModel(name) => {
                    self.local.models.remove(&name);
                    did.push(format!("remove {name}"));
                }
            }
        }
    }
}

fn plan_labels(world: &World) -> Vec<(String, ListedLabels)> {
    labels_to_read(&world.listing, &world.local)
}

fn names(model: &ListedModel) -> Vec<String> {
    let files = |version: &ListedVersion| {
        version.files.keys().map(|file| format!("{}{file}", version.prefix)).collect::<Vec<_>>()
    };
    let labels = model.labels.iter().map(|labels| labels.object.clone());
    model.versions.values().flat_map(files).chain(labels).collect()
}

const ONE: &[&str] = &["m/1/manifest.json", "m/1/weights"];
const TWO: &[&str] = &["m/1/manifest.json", "m/1/weights", "m/2/manifest.json"];

#[test]
fn a_version_without_a_manifest_is_not_seen() {
    let found = listing(&["m/1/manifest.json", "m/1/push.json", "m/2/push.json", "m/2/weights", "n/1/push.json"]);
    assert_eq!(versions(&found), [("m", vec![1])]);
}

#[test]
fn a_registry_a_model_and_a_bundle_may_lie_at_the_address() {
    assert_eq!(
        versions(&listing(&["a/1/manifest.json", "a/12/manifest.json", "b/manifest.json", "x"])),
        [("a", vec![1, 12]), ("b", vec![1])]
    );
    let model = listing(&["1/manifest.json", "3/manifest.json", "labels.json", "other/1/manifest.json"]);
    assert_eq!(versions(&model), [("own", vec![1, 3])]);
    assert_eq!(model.models["own"].labels.as_ref().unwrap().object, "labels.json");
    assert_eq!(model.models["own"].versions[&3].prefix, "3/");
    let bundle = listing(&["manifest.json", "weights", "7/manifest.json"]);
    assert_eq!((versions(&bundle), bundle.models["own"].versions[&1].files.len()), (vec![("own", vec![1])], 2));
}

#[test]
fn names_that_could_leave_the_directory_or_hide_in_it_are_not_seen() {
    for name in [
        "../m/1/manifest.json",
        "m/../1/manifest.json",
        "/m/1/manifest.json",
        "m//1/manifest.json",
        ".m/1/manifest.json",
        "m/.1/manifest.json",
        "m/01/manifest.json",
        "m/+1/manifest.json",
        "m/-1/manifest.json",
        "m/1/deep/manifest.json",
        "m\\1/1/manifest.json",
        "m/18446744073709551616/manifest.json",
    ] {
        assert_eq!(listing(&[name]), Listing::default(), "{name}");
    }
}

#[test]
fn only_what_is_served_is_copied_and_the_old_one_goes_when_the_new_one_is_here() {
    let mut world = World::new(ONE);
    assert_eq!(world.pass(), ["fetch 1"]);
    assert_eq!(world.pass(), [""; 0]);
    let mut world = world.lists(TWO);
    assert_eq!(world.pass(), ["fetch 2", "remove 1"]);
    assert_eq!(World::new(TWO).pass(), ["fetch 2"]);
    let mut both = World::new(TWO);
    both.keep = 2;
    assert_eq!(both.pass().len(), 2);
}

#[test]
fn labels_come_after_the_versions_that_they_name() {
    let with_labels = [TWO, &["m/labels.json"]].concat();
    let mut world = World::new(&with_labels).labels(&[("live", 1), ("gone", 9)]);
    // The smaller one first, the labels last.
    assert_eq!(world.pass(), ["fetch 2", "fetch 1", "labels"]);
    let mut world = world.changes("m/labels.json", "b").labels(&[("live", 2)]);
    assert_eq!(world.pass(), ["labels", "remove 1"]);
    assert_eq!(world.lists(TWO).pass(), ["no labels"]);
}

#[test]
fn a_refused_version_leaves_what_is_here_and_is_asked_for_again_in_time_or_when_it_changes() {
    let mut world = World::new(ONE);
    world.pass();
    let mut world = world.lists(TWO);
    world.broken.insert(2);
    assert_eq!(world.pass(), ["fetch 2"], "1 stays");
    assert_eq!(world.pass(), [""; 0]);
    world.now_ms = 10_000;
    assert_eq!(world.pass(), ["fetch 2"]);
    world.now_ms = 29_999;
    assert_eq!(world.pass(), [""; 0]);
    let mut world = world.changes("m/2/manifest.json", "b");
    world.broken.clear();
    assert_eq!(world.pass(), ["fetch 2", "remove 1"]);
}

#[test]
fn a_label_may_move_beside_a_version_that_was_refused() {
    let mut world = World::new(&[TWO, &["m/labels.json"]].concat()).labels(&[("live", 1)]);
    world.broken.insert(2);
    assert_eq!(world.pass(), ["fetch 2", "fetch 1", "labels"]);
}

#[test]
fn a_labelled_version_that_is_refused_keeps_only_what_its_label_led_to() {
    let names = |newest: u64| {
        let versions = (1..=newest).map(|version| format!("m/{version}/manifest.json"));
        versions.chain(["m/labels.json".to_string()]).collect::<Vec<_>>()
    };
    let lists = |world: World, newest: u64| world.lists(&names(newest).iter().map(String::as_str).collect::<Vec<_>>());
    let mut world = lists(World::new(ONE), 3).labels(&[("canary", 1)]);
    world.broken.insert(2);
    world.pass();
    let mut world = world.changes("m/labels.json", "b").labels(&[("canary", 2)]);
    assert_eq!(world.pass(), ["fetch 2", "labels"], "1 stays");
    world.listing = lists(World::new(ONE), 4).listing;
    world.local.models.get_mut("m").unwrap().labels.as_mut().unwrap().mark =
        world.listing.models["m"].labels.as_ref().unwrap().mark;
    assert_eq!(world.pass(), ["fetch 4", "remove 3"]);
}

#[test]
fn a_version_that_was_changed_in_the_bucket_does_not_spoil_the_copy() {
    let mut world = World::new(ONE);
    world.pass();
    let mut world = world.changes("m/1/weights", "tampered");
    world.broken.insert(1);
    assert_eq!(world.pass(), ["fetch 1"]);
    assert_eq!(world.local.models["m"].versions.len(), 1, "the whole copy stays");
    let mut world = world.changes("m/1/weights", "a");
    assert_eq!(world.pass(), [""; 0], "it is what is here already");
    assert!(world.local.models["m"].refused.is_empty());
}

#[test]
fn what_the_bucket_has_lost_goes() {
    let mut world = World::new(&[TWO, &["n/1/manifest.json"]].concat());
    world.keep = 2;
    world.pass();
    let mut world = world.lists(ONE);
    assert_eq!(world.pass(), ["remove 2", "remove n"]);
}

#[test]
fn the_wait_doubles_up_to_half_a_minute_and_is_never_shorter_than_the_poll() {
    assert_eq!([0, 1, 2, 5, 99].map(|n| wait_ms(2_000, n)), [2_000, 2_000, 4_000, 30_000, 30_000]);
    assert_eq!((wait_ms(60_000, 3), wait_ms(1, 1)), (60_000, 100));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_is_listed_becomes_plain_names(names in prop::collection::vec("[.a1/]{0,12}(manifest.json|labels.json)?", 0..12)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (name, model) in listing(&names).models {
            prop_assert!(!name.is_empty() && !name.contains('/') && !name.starts_with('.'));
            for (version, listed) in model.versions {
                let whole = format!("{}{MANIFEST}", listed.prefix);
                prop_assert!(names.contains(&whole.as_str()), "{version}: {whole}");
            }
        }
    }
}
