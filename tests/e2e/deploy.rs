//! The manifests in deploy/: each overlay builds, passes the schemas of Kubernetes' API, and says only what the
//! programs and `elastic certs` know.

mod network;
mod pages;

use crate::cluster::{elastic, repo, run};
use elastic_tests::skip::skip;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const OVERLAYS: [&str; 4] = ["base", "overlays/local", "overlays/gpu", "overlays/s3"];

/// A folder with a `kustomization.yaml` as it would be applied, or why there is no kubectl that could tell.
fn built(dir: &Path) -> Result<String, String> {
    let out = Command::new("kubectl").arg("kustomize").arg(dir).stdin(Stdio::null()).output();
    let out = out.map_err(|_| "no kubectl on PATH".to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    // What it says of `labels` and `components`, which it does not know: kustomize 3.
    if said.contains("unknown field") && is_old() {
        return Err("kubectl is too old: 1.27 or later is needed".into());
    }
    assert!(out.status.success(), "{}: {said}", dir.display());
    Ok(String::from_utf8(out.stdout).expect("manifests are text"))
}

fn is_old() -> bool {
    let out = run(Command::new("kubectl").args(["version", "--client"]));
    let minor = out.split_once("v1.").and_then(|(_, rest)| rest.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 27)
}

/// The program that judges manifests; beside it lies a Python that reads YAML.
fn validator() -> Result<PathBuf, String> {
    let found = Command::new(repo().join("deploy/validator")).stdin(Stdio::null()).output().expect("bash runs");
    match found.status.success() {
        true => Ok(String::from_utf8(found.stdout).expect("a path").trim().into()),
        false => Err(String::from_utf8_lossy(&found.stderr).trim().into()),
    }
}

/// YAML's documents as JSON.
fn documents(text: &str) -> Result<Vec<Value>, String> {
    let python = validator()?.with_file_name("python");
    let program = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))";
    let mut child = Command::new(python);
    child.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().expect("the validator's Python starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("Python reads");
    let out = child.wait_with_output().expect("Python ends");
    assert!(out.status.success(), "this is no YAML: {text}");
    Ok(serde_json::from_slice(&out.stdout).expect("it prints JSON"))
}

/// An overlay's manifests; `None`, and a line that says so, where the machine lacks what reads them.
fn manifests(test: &str, overlay: &str) -> Option<Vec<Value>> {
    let found = built(&repo().join("deploy").join(overlay)).and_then(|text| documents(&text));
    found.map_err(|why| skip(test, &why)).ok()
}

/// The pods that manifests describe, by the name of what makes them.
fn pods(manifests: &[Value]) -> BTreeMap<&str, &Value> {
    let pod = |thing: &'_ Value| -> Option<&'_ str> {
        match thing["kind"].as_str()? {
            "Deployment" | "StatefulSet" => Some("/spec/template/spec"),
            "CronJob" => Some("/spec/jobTemplate/spec/template/spec"),
            _ => None,
        }
    };
    let named = manifests.iter().filter_map(|thing| {
        Some((thing["metadata"]["name"].as_str()?, thing.pointer(pod(thing)?).expect("it describes a pod")))
    });
    named.collect()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().map_or(Vec::new(), |list| list.iter().map(|word| word.as_str().expect("text")).collect())
}

/// The value of a flag of a pod's container.
fn flag<'a>(pod: &'a Value, name: &str) -> &'a str {
    let found =
        words(&pod["containers"][0]["args"]).into_iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {pod}"))
}

#[test]
fn every_overlay_builds_and_passes_the_api_schemas() {
    let test = "every_overlay_builds_and_passes_the_api_schemas";
    let validator = match validator() {
        Ok(validator) => validator,
        Err(why) => return skip(test, &why),
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let judge = |name: &str, text: &str| {
        let file = dir.path().join(name.replace('/', "-"));
        std::fs::write(&file, text).expect("a file");
        Command::new(&validator).arg("--strict").arg(&file).output().expect("the validator runs")
    };
    for overlay in OVERLAYS {
        let text = match built(&repo().join("deploy").join(overlay)) {
            Ok(text) => text,
            Err(why) => return skip(test, &why),
        };
        let judged = judge(overlay, &text);
        let said = String::from_utf8_lossy(&judged.stdout).into_owned() + &String::from_utf8_lossy(&judged.stderr);
        assert!(judged.status.success(), "{overlay}: {said}");
        assert_eq!(
            said.matches("passed").count(),
            text.matches("\nkind: ").count(),
            "{overlay}: each is judged: {said}"
        );
        // And it would have been found.
        for (right, wrong) in [
            ("terminationGracePeriodSeconds", "terminationGraceSeconds"),
            ("replicas: ", "replicas: x"),
            ("preStop:", "preStopped:"),
        ] {
            assert!(text.contains(right));
            assert!(!judge(overlay, &text.replacen(right, wrong, 1)).status.success(), "{overlay} with {wrong}");
        }
    }
}

#[test]
fn every_flag_in_the_manifests_exists_in_the_program() {
    let test = "every_flag_in_the_manifests_exists_in_the_program";
    let (mut helps, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for overlay in OVERLAYS {
        let Some(manifests) = manifests(test, overlay) else { return };
        for (name, pod) in pods(&manifests) {
            let container = &pod["containers"][0];
            let args = words(&container["args"]);
            let (program, flags) = match container["command"][0].as_str() {
                Some(etcd) => (etcd.rsplit('/').next().expect("a name").to_string(), &args[..]),
                None => (format!("elastic {}", args[0]), &args[1..]),
            };
            let help = helps.entry(program.clone()).or_insert_with(|| match program.split_once(' ') {
                Some((_, command)) => Some(run(Command::new(elastic()).args([command, "--help"]))),
                None => etcds_help(test),
            });
            let Some(help) = help else { continue };
            let known: BTreeSet<&str> = help.split_whitespace().collect();
            for flag in flags.iter().filter(|arg| arg.starts_with("--")) {
                let (flag, value) = flag.split_once('=').unwrap_or_else(|| panic!("{overlay}: {flag} has no value"));
                assert!(known.contains(flag), "{overlay}, {name}: {program} has no {flag}");
                assert!(!value.is_empty(), "{overlay}, {name}: {flag} is empty");
            }
            seen.insert(program);
        }
    }
    let all = ["etcd", "elastic agent", "elastic coordinator", "elastic export", "elastic serve"];
    assert_eq!(seen, all.map(String::from).into());
}

fn etcds_help(test: &str) -> Option<String> {
    let program = std::env::var_os("ELASTIC_ETCD").unwrap_or("etcd".into());
    match Command::new(program).arg("--help").stdin(Stdio::null()).output() {
        Ok(out) => Some(String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)),
        Err(error) => {
            skip(test, &format!("of etcd's flags: it does not start: {error}"));
            None
        }
    }
}

#[test]
fn with_a_bucket_no_volume_is_shared_and_serving_follows_the_registry_there() {
    let test = "with_a_bucket_no_volume_is_shared_and_serving_follows_the_registry_there";
    let Some(manifests) = manifests(test, "overlays/s3") else { return };
    let text = Value::from(manifests.clone()).to_string();
    assert!(!text.contains("ReadWriteMany") && !text.contains("claimName"), "{text}");
    let pods = pods(&manifests);
    let args = |name: &str| words(&pods[name]["containers"][0]["args"]);
    assert_eq!(args("elastic-serving")[1..3], ["$(ELASTIC_REGISTRY)", "--cache=/registry/copies"]);
    assert_eq!(args("elastic-export")[1..], ["$(RUN)", "--registry=$(ELASTIC_REGISTRY)"]);
    for name in ["elastic-agent", "elastic-serving", "elastic-export"] {
        let from = &pods[name]["containers"][0]["envFrom"][0]["secretRef"]["name"];
        assert_eq!(from, "elastic-s3", "{name} has the address and the credentials");
    }
}

/// What an export writes is what serving reads, and it reads what agents write.
#[test]
fn a_run_of_the_agents_can_be_published_where_serving_looks() {
    let test = "a_run_of_the_agents_can_be_published_where_serving_looks";
    for overlay in ["base", "overlays/local", "overlays/gpu"] {
        let Some(manifests) = manifests(test, overlay) else { return };
        let pods = pods(&manifests);
        // Claim and whether it may be written, by the path in the container.
        let claims = |name: &str| -> BTreeMap<String, (String, bool)> {
            let pod = pods[name];
            let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts").iter();
            let claim = |mount: &Value| -> Option<(String, (String, bool))> {
                let volume = pod["volumes"].as_array()?.iter().find(|volume| volume["name"] == mount["name"])?;
                let claim = volume["persistentVolumeClaim"]["claimName"].as_str()?;
                Some((mount["mountPath"].as_str()?.into(), (claim.into(), mount["readOnly"] != true)))
            };
            mounts.filter_map(claim).collect()
        };
        let (agent, export, serving) = (claims("elastic-agent"), claims("elastic-export"), claims("elastic-serving"));
        let runs = flag(pods["elastic-coordinator"], "--runs");
        assert!(agent[runs].1 && export[runs].0 == agent[runs].0, "{overlay}: {agent:?} {export:?}");
        let (registry, served) = (&export[flag(pods["elastic-export"], "--registry")], "/registry");
        assert_eq!(words(&pods["elastic-serving"]["containers"][0]["args"])[1], served);
        assert!(registry.1 && registry.0 == serving[served].0, "{overlay}: {export:?} {serving:?}");
        assert!(!serving[served].1, "{overlay}: serving only reads");
    }
}

#[test]
fn secrets_in_the_manifests_are_those_that_elastic_certs_makes() {
    let test = "secrets_in_the_manifests_are_those_that_elastic_certs_makes";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let certs = dir.path().join("certs");
    run(Command::new(elastic()).args(["certs", "cluster"]).arg(&certs).args(["--kubernetes", "elastic"]));
    let made = std::fs::read_to_string(certs.join("secrets.yaml")).expect("it was made");
    let made = match documents(&made) {
        Ok(made) => made,
        Err(why) => return skip(test, &why),
    };
    let files: BTreeMap<&str, &Value> = made
        .iter()
        .map(|secret| (secret["metadata"]["name"].as_str().expect("a name"), &secret["stringData"]))
        .collect();
    for overlay in OVERLAYS {
        let Some(manifests) = manifests(test, overlay) else { return };
        let mut used = BTreeSet::new();
        for (name, pod) in pods(&manifests) {
            let container = &pod["containers"][0];
            let volumes = pod["volumes"].as_array().expect("volumes");
            for mount in container["volumeMounts"].as_array().expect("mounts") {
                let volume = volumes.iter().find(|v| v["name"] == mount["name"]);
                let Some(secret) = volume.and_then(|v| v["secret"]["secretName"].as_str()) else { continue };
                let holds = files.get(secret).unwrap_or_else(|| panic!("{overlay}, {name}: nobody makes {secret}"));
                used.insert(secret);
                // What the flags name there lies in it.
                let place = format!("{}/", mount["mountPath"].as_str().expect("a path"));
                let named =
                    words(&container["args"]).into_iter().filter_map(|arg| arg.split_once('=')?.1.strip_prefix(&place));
                named.for_each(|file| assert!(holds[file].is_string(), "{overlay}, {name}: {file} is not in {secret}"));
            }
        }
        assert_eq!(used, files.keys().copied().collect(), "{overlay}");
    }
    if let Ok(validator) = validator() {
        run(Command::new(validator).arg("--strict").arg(certs.join("secrets.yaml")));
    }
}

#[test]
fn pods_have_no_rights_that_they_do_not_need_and_longer_to_end_than_a_drain_takes() {
    let test = "pods_have_no_rights_that_they_do_not_need_and_longer_to_end_than_a_drain_takes";
    for overlay in OVERLAYS {
        let Some(manifests) = manifests(test, overlay) else { return };
        let pods = pods(&manifests);
        assert_eq!(pods.len(), 5, "{overlay}");
        for (name, pod) in &pods {
            let container = &pod["containers"][0];
            let security = &container["securityContext"];
            assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1), "{overlay}, {name}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{overlay}, {name}");
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{overlay}, {name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{overlay}, {name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{overlay}, {name}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{overlay}, {name}");
            assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"], "{overlay}, {name}");
        }
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let grace = |name: &str| pods[name]["terminationGracePeriodSeconds"].as_u64().expect("a grace");
        // A worker has 10 s between SIGTERM and SIGKILL.
        let agent = pods["elastic-agent"];
        assert!(grace("elastic-agent") > number(flag(agent, "--drain-within")) + 10, "{overlay}");
        // The grace counts from the hook on.
        let serving = pods["elastic-serving"];
        let hook = &serving["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
        let drain_ms = number(flag(serving, "--drain-ms")) + 1_000 * hook.as_u64().expect("a time");
        assert!(1_000 * grace("elastic-serving") > drain_ms, "{overlay}");
    }
}

#[test]
fn whatever_runs_on_is_probed_and_scraped_at_ports_that_it_listens_on() {
    let test = "whatever_runs_on_is_probed_and_scraped_at_ports_that_it_listens_on";
    for overlay in OVERLAYS {
        let Some(manifests) = manifests(test, overlay) else { return };
        for thing in manifests.iter().filter(|t| t["kind"] == "Deployment" || t["kind"] == "StatefulSet") {
            let name = thing["metadata"]["name"].as_str().expect("a name");
            let template = &thing["spec"]["template"];
            let container = &template["spec"]["containers"][0];
            let ports = container["ports"].as_array().expect("ports");
            let number = |name: &Value| {
                let port = ports.iter().find(|port| port["name"] == *name).unwrap_or_else(|| panic!("no port {name}"));
                port["containerPort"].as_u64().expect("a number")
            };
            let listens = |port: u64| {
                let end = format!(":{port}");
                let args = words(&container["args"]);
                assert!(args.iter().any(|arg| arg.ends_with(&end)), "{overlay}: {name} does not listen on {port}");
            };
            for probe in ["livenessProbe", "readinessProbe"] {
                listens(number(&container[probe]["httpGet"]["port"]));
            }
            let says = |key: &str| template["metadata"]["annotations"][format!("prometheus.io/{key}")].as_str();
            assert_eq!((says("scrape"), says("path")), (Some("true"), Some("/metrics")), "{overlay}: {name}");
            listens(says("port").and_then(|port| port.parse().ok()).expect("a port"));
            let is_plain = container["readinessProbe"]["httpGet"]["scheme"] != "HTTPS";
            assert_eq!(says("scheme"), Some(if is_plain { "http" } else { "https" }), "{overlay}: {name}");
        }
    }
}

/// Runtimes for GPUs bring no compiler: machine code must be in the image, where the program looks for it.
#[test]
fn agents_with_a_gpu_have_the_image_with_machine_code_and_room_for_their_cache() {
    let test = "agents_with_a_gpu_have_the_image_with_machine_code_and_room_for_their_cache";
    let dockerfile = std::fs::read_to_string(repo().join("deploy/Dockerfile")).expect("the Dockerfile");
    let (_, gpu) = dockerfile.split_once("\nFROM elastic AS gpu\n").expect("a target for GPUs");
    let folder = "/usr/local/share/elastic/cubins";
    assert!(gpu.contains(&format!("COPY --from=cubins /cubins {folder}\nENV ELASTIC_CUBINS={folder}\n")), "{gpu}");
    for copied in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let from = copied.split_whitespace().next().expect("a path");
        assert!(from.starts_with("--from=") || repo().join(from).exists(), "{from} is not in the repository");
    }
    let Some(manifests) = manifests(test, "overlays/gpu") else { return };
    let agent = pods(&manifests)["elastic-agent"];
    let container = &agent["containers"][0];
    let image = container["image"].as_str().expect("an image");
    assert!(dockerfile.contains(&format!("--target gpu -t {image} .")), "{image} is not what the Dockerfile builds");
    let env = container["env"].as_array().expect("variables");
    let cache = &env.iter().find(|variable| variable["name"] == "XDG_CACHE_HOME").expect("a cache")["value"];
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    assert!(mounts.iter().any(|mount| mount["mountPath"] == *cache && mount["readOnly"] != true), "{cache}");
}
