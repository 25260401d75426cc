//! The manifests in deploy/: each overlay builds, passes the schemas of Kubernetes' API, and says only what the
//! program and `elastic certs` know.

use crate::cluster::{elastic, repo, run};
use elastic_tests::skip::skip;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

const OVERLAYS: [&str; 4] = ["base", "overlays/local", "overlays/gpu", "overlays/s3"];

/// An overlay as it would be applied; `None`, and a line that says so, where there is no kubectl.
fn built(test: &str, overlay: &str) -> Option<String> {
    let dir = repo().join("deploy").join(overlay);
    match Command::new("kubectl").arg("kustomize").arg(dir).stdin(Stdio::null()).output() {
        Err(_) => {
            skip(test, "no kubectl");
            None
        }
        Ok(out) => {
            assert!(out.status.success(), "{overlay}: {}", String::from_utf8_lossy(&out.stderr));
            Some(String::from_utf8(out.stdout).expect("manifests are text"))
        }
    }
}

#[test]
fn every_overlay_builds_and_passes_the_api_schemas() {
    let test = "every_overlay_builds_and_passes_the_api_schemas";
    let found = Command::new(repo().join("deploy/validator")).stdin(Stdio::null()).output().expect("bash runs");
    if !found.status.success() {
        return skip(test, String::from_utf8_lossy(&found.stderr).trim());
    }
    let validator = String::from_utf8(found.stdout).expect("a path").trim().to_string();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let judge = |name: &str, text: &str| {
        let file = dir.path().join(name.replace('/', "-"));
        std::fs::write(&file, text).expect("a file");
        Command::new(&validator).arg("--strict").arg(&file).output().expect("the validator runs")
    };
    for overlay in OVERLAYS {
        let Some(text) = built(test, overlay) else { return };
        let judged = judge(overlay, &text);
        let said = String::from_utf8_lossy(&judged.stdout).into_owned() + &String::from_utf8_lossy(&judged.stderr);
        assert!(judged.status.success(), "{overlay}: {said}");
        assert_eq!(
            said.matches("passed").count(),
            text.matches("\nkind: ").count(),
            "{overlay}: each is judged: {said}"
        );
        // And it would have been found.
        for (right, wrong) in
            [("terminationGracePeriodSeconds", "terminationGraceSeconds"), ("replicas: ", "replicas: x")]
        {
            assert!(text.contains(right));
            assert!(!judge(overlay, &text.replacen(right, wrong, 1)).status.success(), "{overlay} with {wrong}");
        }
    }
}

/// Arguments of the containers that run our program, in the order of the manifests.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    let mut current: Option<Vec<String>> = None;
    for line in text.lines() {
        let item = line.trim_start().trim_start_matches("- ");
        if item == "args:" {
            current = Some(Vec::new());
        } else if let Some(args) = current.as_mut() {
            match line.trim_start().strip_prefix("- ") {
                Some(arg) => args.push(arg.trim_matches(['"', '\'']).to_string()),
                None => lines.extend(current.take()),
            }
        }
    }
    lines.retain(|args: &Vec<String>| args.first().is_some_and(|first| !first.starts_with('-')));
    lines
}

#[test]
fn every_flag_in_the_manifests_exists_in_the_program() {
    let mut helps = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for overlay in OVERLAYS {
        let Some(text) = built("every_flag_in_the_manifests_exists_in_the_program", overlay) else { return };
        for args in command_lines(&text) {
            let command = args[0].clone();
            let help = helps
                .entry(command.clone())
                .or_insert_with(|| run(Command::new(elastic()).args([command.as_str(), "--help"])));
            for flag in args[1..].iter().filter_map(|arg| arg.strip_prefix("--")) {
                let (name, value) = flag.split_once('=').unwrap_or_else(|| panic!("{overlay}: --{flag} has no value"));
                let words: BTreeSet<&str> = help.split_whitespace().collect();
                assert!(words.contains(format!("--{name}").as_str()), "{overlay}: elastic {command} has no --{name}");
                assert!(!value.is_empty(), "{overlay}: --{name} is empty");
            }
            seen.insert(command);
        }
    }
    assert_eq!(seen, ["agent", "coordinator", "serve"].map(String::from).into());
}

#[test]
fn with_a_bucket_no_volume_is_shared_and_serving_follows_the_registry_there() {
    let test = "with_a_bucket_no_volume_is_shared_and_serving_follows_the_registry_there";
    let Some(text) = built(test, "overlays/s3") else { return };
    assert!(!text.contains("ReadWriteMany") && !text.contains("claimName"), "{text}");
    let lines = command_lines(&text);
    let serve = lines.iter().find(|args| args[0] == "serve").expect("the serving");
    assert_eq!(serve[1..3], ["$(ELASTIC_REGISTRY)", "--cache=/registry/copies"]);
}

#[test]
fn secrets_in_the_manifests_are_those_that_elastic_certs_makes() {
    let test = "secrets_in_the_manifests_are_those_that_elastic_certs_makes";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let certs = dir.path().join("certs");
    run(Command::new(elastic()).args(["certs", "cluster"]).arg(&certs).args(["--kubernetes", "elastic"]));
    let made = std::fs::read_to_string(certs.join("secrets.yaml")).expect("it was made");
    let names = |text: &str, begin: &str| -> BTreeSet<String> {
        text.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix(begin)).map(String::from).collect()
    };
    let kept = names(&made, "name: ");
    assert_eq!(kept.len(), 6, "{kept:?}");
    for overlay in OVERLAYS {
        let Some(text) = built(test, overlay) else { return };
        assert_eq!(names(&text, "secretName: "), kept, "{overlay}");
        // What the flags name under /etc/elastic lies in a secret.
        for args in command_lines(&text) {
            for file in args.iter().filter_map(|a| a.split_once("=/etc/elastic/")?.1.split_once('/')).map(|(_, f)| f) {
                assert!(made.contains(&format!("\n  {file}: |")), "{overlay}: {file} is in no secret");
            }
        }
    }
    let found = Command::new(repo().join("deploy/validator")).output().expect("bash runs");
    if found.status.success() {
        let validator = String::from_utf8(found.stdout).expect("a path").trim().to_string();
        run(Command::new(validator).arg("--strict").arg(certs.join("secrets.yaml")));
    }
}

#[test]
fn pods_have_no_rights_that_they_do_not_need_and_longer_to_end_than_a_drain_takes() {
    let test = "pods_have_no_rights_that_they_do_not_need_and_longer_to_end_than_a_drain_takes";
    for overlay in OVERLAYS {
        let Some(text) = built(test, overlay) else { return };
        let pods: Vec<&str> = text
            .split("\n---\n")
            .filter(|d| d.contains("\nkind: Deployment") || d.contains("\nkind: StatefulSet"))
            .collect();
        assert_eq!(pods.len(), 4, "{overlay}");
        for pod in pods {
            for wanted in [
                "runAsNonRoot: true",
                "readOnlyRootFilesystem: true",
                "allowPrivilegeEscalation: false",
                "type: RuntimeDefault",
                "automountServiceAccountToken: false",
                "drop:\n            - ALL",
            ] {
                assert!(pod.contains(wanted), "{overlay}: no {wanted:?} in {pod}");
            }
        }
        let seconds = |begin: &str, text: &str| -> u64 {
            let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("{overlay}: no {begin}"));
            rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).expect("a number")
        };
        let of = |name: &str| text.split("\n---\n").find(|d| d.contains("kind: Deployment") && d.contains(name));
        let agent = of("name: elastic-agent").expect("the agents");
        // A worker has 10 s between SIGTERM and SIGKILL.
        assert!(seconds("terminationGracePeriodSeconds: ", agent) > seconds("--drain-within=", agent) + 10);
        let serving = of("name: elastic-serving").expect("the serving");
        let drain_ms = seconds("--drain-ms=", serving) + seconds("--drain-delay-ms=", serving);
        assert!(1_000 * seconds("terminationGracePeriodSeconds: ", serving) > drain_ms);
    }
}
