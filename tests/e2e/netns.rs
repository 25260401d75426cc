//! Three agents in network namespaces of their own, joined by a bridge: nothing is shared but the network and
//! the run directory. Records in a real etcd; the coordinator is killed on the way, a node is lost, one comes.

use crate::cluster::{Cluster, Guarded, PACE, assert_same, elastic, is_alive, job_file, run, wait_for};
use crate::coordinator_loss::etcd;
use crate::faults::{LONG, undisturbed_long};
use std::process::{Command, Stdio};

const NAME: &str = "agents_in_namespaces_of_their_own_train_to_the_same_bits";

/// Namespaces and a bridge, taken down with the test.
struct Network {
    tag: String,
    count: usize,
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).output().is_ok_and(|o| o.status.success())
}

impl Network {
    /// 10.213.0.1 is the host's end of the bridge, 10.213.0.10 + i that of namespace i.
    fn new(count: usize) -> Option<Network> {
        let network = Network { tag: format!("el{}", std::process::id() % 10_000), count };
        let bridge = network.bridge();
        let mut ok = ip(&["link", "add", &bridge, "type", "bridge"])
            && ip(&["addr", "add", "10.213.0.1/24", "dev", &bridge])
            && ip(&["link", "set", &bridge, "up"]);
        for i in 0..count {
            let (ns, outer, inner) = (network.namespace(i), format!("{}o{i}", network.tag), network.link(i));
            let address = format!("10.213.0.{}/24", 10 + i);
            ok = ok
                && ip(&["netns", "add", &ns])
                && ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner])
                && ip(&["link", "set", &outer, "master", &bridge, "up"])
                && ip(&["link", "set", &inner, "netns", &ns])
                && ip(&["-n", &ns, "addr", "add", &address, "dev", &inner])
                && ip(&["-n", &ns, "link", "set", &inner, "up"])
                && ip(&["-n", &ns, "link", "set", "lo", "up"]);
        }
        ok.then_some(network)
    }

    fn bridge(&self) -> String {
        format!("{}br", self.tag)
    }

    fn link(&self, i: usize) -> String {
        format!("{}i{i}", self.tag)
    }

    fn namespace(&self, i: usize) -> String {
        format!("{}n{i}", self.tag)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for i in 0..self.count {
            ip(&["netns", "del", &self.namespace(i)]);
        }
        ip(&["link", "del", &self.bridge()]);
    }
}

#[test]
fn agents_in_namespaces_of_their_own_train_to_the_same_bits() {
    let Some(network) = Network::new(3) else {
        let why = "cannot make network namespaces here (needs root and iproute2)";
        return elastic_tests::skip::skip("agents_in_namespaces_of_their_own_train_to_the_same_bits", why);
    };
    let etcd_dir = tempfile::tempdir().expect("a temporary directory");
    let Some((_etcd, store)) = etcd(NAME, etcd_dir.path()) else { return };
    let mut cluster = Cluster::start(Some(store), 0);
    // The same coordinator again, where the namespaces reach it.
    cluster.kill_coordinator();
    let listen = format!("10.213.0.1:{}", cluster.port);
    let start_coordinator = || {
        let mut command = cluster.logged("coordinator");
        command.args(["coordinator", "--insecure", "--listen", &listen, "--store", &cluster.store]);
        command.arg("--data-dir").arg(cluster.dir.join("data")).arg("--runs").arg(cluster.dir.join("runs"));
        Guarded(command.spawn().expect("the coordinator starts"))
    };
    let mut coordinator = start_coordinator();
    let url = format!("http://{listen}");
    let ask = |args: &[&str]| -> Option<serde_json::Value> {
        let out = Command::new(elastic()).args(args).args(["--json", "--coordinator", &url]).output().ok()?;
        serde_json::from_slice(&out.stdout).ok().filter(|_| out.status.success())
    };
    wait_for("the coordinator answers", 20, || ask(&["jobs"]));
    let start_agent = |i: usize| {
        let dir = cluster.dir.join(format!("host{i}"));
        std::fs::create_dir_all(&dir).expect("a directory");
        let address = format!("10.213.0.{}", 10 + i);
        let log = std::fs::File::options().append(true).create(true).open(cluster.dir.join(format!("host{i}.err")));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.namespace(i)]).arg(elastic()).args(["agent", "--insecure"]);
        command.args(["--coordinator", &url, "--name", &format!("host{i}"), "--bind", &address, "--state-dir"]);
        command.arg(&dir).env("ELASTIC_FAIL", PACE).current_dir(&dir).stdin(Stdio::null()).stderr(log.expect("a log"));
        Guarded(command.stdout(Stdio::null()).spawn().expect("the agent starts"))
    };
    let mut agents: Vec<Guarded> = (0..3).map(start_agent).collect();
    let mut submit = Command::new(elastic());
    submit
        .arg("submit")
        .arg(job_file("cnn"))
        .args(["--workers", "3", "--detach", "--json", "--coordinator", &url])
        .args(LONG);
    let said: serde_json::Value = serde_json::from_str(run(&mut submit).trim()).expect("JSON");
    let job = said["job"].as_str().expect("the job").to_string();
    let active = |n: usize| {
        wait_for(&format!("{n} active members"), 30, || {
            let status = ask(&["status", &job])?;
            (status["members"].as_array()?.iter().filter(|m| m["role"] == "active").count() == n).then_some(())
        })
    };
    active(3);
    coordinator.kill();
    coordinator = start_coordinator();
    active(3);
    let lost = agents[1].pid();
    agents[1].kill();
    active(2);
    assert!(!is_alive(lost));
    agents[1] = start_agent(1);
    active(3);
    // A partition: one host hears and is heard by nobody for a while.
    let inner = network.link(2);
    assert!(ip(&["-n", &network.namespace(2), "link", "set", &inner, "down"]));
    active(2);
    assert!(ip(&["-n", &network.namespace(2), "link", "set", &inner, "up"]));
    active(3);
    let status = wait_for("the job's end", 120, || ask(&["status", &job]).filter(|s| s["state"] == "succeeded"));
    let validation = &status["metrics"]["validation"];
    let result = serde_json::json!({
        "steps": status["steps"],
        "weights_sha256": status["published"]["weights_sha256"],
        "validation": { "loss": validation["loss"], "accuracy": validation["accuracy"] },
    });
    let run_dir = std::path::PathBuf::from(status["run_dir"].as_str().expect("run_dir"));
    assert_same(&crate::cluster::Proof::of(&run_dir, &result), undisturbed_long());
    drop((coordinator, agents));
}
