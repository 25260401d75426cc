//! docs/kubernetes.md and its tutorial: what they tell to type exists, and works on pods that `tests/pods/cluster.py` makes
//! of the manifests, the tutorial word for word. That is no Kubernetes; what it leaves out stands there.

use super::{built, documents, validator};
use crate::cluster::{elastic, repo, run};
use crate::tutorials::{Tutorial, follow_in, read};
use elastic_tests::skip::skip;
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

const PAGES: [&str; 2] = ["docs/kubernetes.md", "docs/tutorials/kubernetes.md"];

/// Lines to type, those that go on behind a `\` put together.
fn typed(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repo().join(page)).expect("the page is there");
    let mut within: Option<bool> = None;
    let mut lines = String::new();
    for line in text.lines() {
        match (line.strip_prefix("```"), within) {
            (Some(kind), None) => within = Some(["", "sh"].contains(&kind)),
            (Some(_), Some(_)) => within = None,
            (None, Some(true)) => lines += &format!("{line}\n"),
            _ => {}
        }
    }
    lines.replace("\\\n", " ").lines().map(String::from).collect()
}

/// The words of each call of a program in a line, up to what ends it.
fn calls<'a>(line: &'a str, program: &str) -> Vec<Vec<&'a str>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_start = |i: usize| i == 0 || ["|", "&&", ";", "--"].contains(&words[i - 1]);
    let goes_on = |word: &&&str| !["|", "&", "&&", ";", ">"].contains(*word);
    let starts = (0..words.len()).filter(|i| words[*i] == program && is_start(*i));
    starts.map(|i| words[i + 1..].iter().take_while(goes_on).copied().collect()).collect()
}

#[test]
fn what_the_pages_on_kubernetes_tell_to_type_exists() {
    let test = "what_the_pages_on_kubernetes_tell_to_type_exists";
    let (mut commands, mut rendered) = (0, BTreeSet::new());
    for page in PAGES {
        let mut things = BTreeSet::new();
        for overlay in super::OVERLAYS {
            let Some(manifests) = super::manifests(test, overlay) else { return };
            let text = |value: &serde_json::Value| value.as_str().expect("text").to_string();
            things.extend(
                manifests.iter().map(|thing| {
                    format!("{}/{}", text(&thing["kind"]).to_lowercase(), text(&thing["metadata"]["name"]))
                }),
            );
        }
        for line in typed(page) {
            for call in calls(&line, "elastic") {
                let named = call.iter().take_while(|word| !word.starts_with('-')).count();
                let depth = if ["certs", "token", "checkpoint", "pipeline"].contains(&call[0]) { 2 } else { 1 };
                assert!(named >= depth, "{page}: {line}");
                let help = run(Command::new(elastic()).args(&call[..depth]).arg("--help"));
                let known: BTreeSet<&str> = help.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
                for flag in call.iter().filter(|word| word.starts_with("--")) {
                    let flag = flag.split('=').next().expect("a flag");
                    assert!(known.contains(flag), "{page}: elastic {} has no {flag}", call[..depth].join(" "));
                }
                commands += 1;
            }
            for call in calls(&line, "kubectl") {
                for pair in call.windows(2).filter(|pair| pair[0] == "-k") {
                    if let Err(why) = built(&repo().join(pair[1])) {
                        return skip(test, &why);
                    }
                    rendered.insert(pair[1].to_string());
                }
                for pair in call.windows(2).filter(|pair| pair[0] == "-f" && pair[1].starts_with("deploy/")) {
                    assert!(repo().join(pair[1]).is_file(), "{page}: there is no {}", pair[1]);
                }
                // What is named as kind/name stands in the manifests; a Job is made on the page.
                for word in call.iter().map(|word| word.trim_start_matches("--from=")) {
                    let Some((kind, _)) = word.split_once('/') else { continue };
                    if ["statefulset", "deployment", "cronjob", "service"].contains(&kind) {
                        assert!(things.contains(word), "{page}: no manifest has {word}");
                    }
                }
            }
        }
    }
    assert!(commands > 5 && rendered.contains("deploy/overlays/local"), "{commands} {rendered:?}");
}

const SPACES: [&str; 8] = ["unshare", "-m", "-n", "-p", "-f", "--kill-child", "--mount-proc", "bash"];

/// The stand-ins for `kubectl`, `kind` and `docker`, and what they keep.
struct StandIns {
    home: tempfile::TempDir,
    etcd: String,
    kubectl: String,
}

impl StandIns {
    /// Or why there are none here.
    fn make() -> Result<StandIns, String> {
        // A bridge and a namespace of the network, as the pods need them.
        let tried = "mount -t tmpfs none /run && ip link add name pods0 type bridge && ip netns add n && chroot / true";
        let out = Command::new(SPACES[0]).args(&SPACES[1..]).args(["-c", tried]).stdin(Stdio::null()).output();
        if !out.is_ok_and(|out| out.status.success()) {
            return Err("cannot make namespaces here (needs root, util-linux and iproute2)".into());
        }
        built(&repo().join("deploy/overlays/local")).and_then(|text| documents(&text))?;
        let python = validator()?.with_file_name("python");
        let (etcd, kubectl) = (std::env::var("ELASTIC_ETCD").or_else(|_| which("etcd"))?, which("kubectl")?);
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(home.path().join("bin")).expect("a folder");
        let cluster = repo().join("tests/pods/cluster.py");
        for program in ["kubectl", "kind", "docker"] {
            let script = format!("#!/bin/bash\nexec '{}' '{}' {program} \"$@\"\n", python.display(), cluster.display());
            let path = home.path().join("bin").join(program);
            std::fs::write(&path, script).expect("a script");
            run(Command::new("chmod").arg("+x").arg(path));
        }
        Ok(StandIns { home, etcd, kubectl })
    }

    fn follow(&self, name: &str, tutorial: Tutorial, env: &[(&str, &str)]) {
        let elastic = elastic();
        let folder = elastic.parent().expect("it lies in a folder").display();
        let (bin, pods) = (self.home.path().join("bin"), self.home.path().join("pods"));
        let path = std::env::var("PATH").expect("PATH");
        let (path, pods) = (format!("{}:{folder}:{path}", bin.display()), pods.display().to_string());
        let elastic = elastic.display().to_string();
        let own = [
            ("PATH", path.as_str()),
            ("STAND_IN_HOME", &pods),
            ("STAND_IN_KUBECTL", &self.kubectl),
            ("ELASTIC_BIN", &elastic),
            ("ELASTIC_ETCD", &self.etcd),
        ];
        follow_in(name, tutorial, &[&own[..], env].concat(), &SPACES);
    }
}

fn which(program: &str) -> Result<String, String> {
    let path = std::env::var("PATH").expect("PATH");
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.map(|file| file.display().to_string()).ok_or_else(|| format!("no {program} on PATH"))
}

#[test]
fn the_tutorial_on_kubernetes_works_as_it_is_written_on_pods_made_of_the_manifests() {
    match StandIns::make() {
        Ok(stand_ins) => stand_ins.follow("kubernetes.md", read("kubernetes.md"), &[]),
        Err(why) => skip("the_tutorial_on_kubernetes_works_as_it_is_written_on_pods_made_of_the_manifests", &why),
    }
}

/// Two coordinators, three of etcd, three agents, and no volume that two pods share.
#[test]
fn with_a_bucket_the_pods_of_the_manifests_train_publish_and_serve() {
    let test = "with_a_bucket_the_pods_of_the_manifests_train_publish_and_serve";
    let weed = Command::new(repo().join("tests/s3-server")).stdin(Stdio::null()).output().expect("bash runs");
    if !weed.status.success() {
        return skip(test, String::from_utf8_lossy(&weed.stderr).trim());
    }
    let weed = String::from_utf8(weed.stdout).expect("a path");
    let stand_ins = match StandIns::make() {
        Ok(stand_ins) => stand_ins,
        Err(why) => return skip(test, &why),
    };
    let script = std::fs::read_to_string(repo().join("tests/pods/bucket.sh")).expect("the script");
    let answer = r#"{"predictions":[{"logits":[…],"probabilities":[…],"class":7,"label":"7"}]}"#;
    let shown = vec![answer.split('…').map(String::from).collect()];
    stand_ins.follow("bucket.sh", Tutorial { script, shown }, &[("WEED", weed.trim())]);
}
