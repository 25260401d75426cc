//! The NetworkPolicies, evaluated: who reaches whom at which port. Each arrow that docs/kubernetes.md draws is asked for,
//! and arrows that nobody may draw.
//!
//! The rules are those of the API: a pod that no policy selects for a direction is free in it; else it may what any rule
//! of any of them allows; and an arrow needs both ends. An address block is held to match no pod, as some network
//! plugins have it.

use super::{documents, manifests};
use crate::cluster::repo;
use elastic_tests::skip::skip;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::slice::from_ref;

/// One end of an arrow.
#[derive(Clone, Debug)]
enum End {
    /// Labels of its namespace, and its own.
    Pod {
        namespace: Value,
        labels: Value,
    },
    Address(Ipv4Addr),
}

const OURS: &str = "elastic";

fn pod_in(namespace: &str, namespace_labels: Value, labels: Value) -> End {
    let mut namespace_labels = namespace_labels;
    namespace_labels["kubernetes.io/metadata.name"] = json!(namespace);
    End::Pod { namespace: namespace_labels, labels }
}

fn pod(name: &str) -> End {
    pod_in(OURS, json!({}), json!({ "app.kubernetes.io/name": name }))
}

/// By a short name.
fn end(name: &str) -> End {
    let client = json!({ "elastic.client": "true" });
    match name {
        "agent" | "coordinator" | "etcd" | "export" | "serving" => pod(&format!("elastic-{name}")),
        "client" => pod_in(OURS, json!({}), client),
        "client elsewhere" => pod_in("lab", client.clone(), client),
        // Whoever makes pods in a namespace may label them, but not the namespace.
        "pod elsewhere that calls itself a client" => pod_in("lab", json!({}), client),
        "neighbour of a client elsewhere" => pod_in("lab", client, json!({})),
        "prometheus" => pod_in("monitoring", json!({ "elastic.metrics": "true" }), json!({})),
        "unlabelled pod of ours" => pod_in(OURS, json!({}), json!({})),
        "stranger" => pod_in("lab", json!({}), json!({})),
        "names" => pod_in("kube-system", json!({}), json!({ "k8s-app": "kube-dns" })),
        "store in the cluster" => pod_in("stores", json!({}), json!({})),
        address => End::Address(address.parse().unwrap_or_else(|_| panic!("{address}: who is that?"))),
    }
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"].as_object();
    let exact = exact.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value));
    let rules = selector["matchExpressions"].as_array();
    let rule = |rule: &Value| {
        assert_eq!(rule["operator"], "In", "another operator is not known here");
        let values = rule["values"].as_array().expect("values");
        values.contains(&labels[rule["key"].as_str().expect("a key")])
    };
    exact && rules.is_none_or(|rules| rules.iter().all(rule))
}

/// `10.0.0.0/8`; an IPv6 block holds none of the addresses here.
fn holds(block: &str, address: Ipv4Addr) -> bool {
    let (network, bits) = block.split_once('/').expect("a block has a length");
    let Ok(network) = network.parse::<Ipv4Addr>() else { return false };
    let bits: u32 = bits.parse().expect("a length");
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    network.to_bits() & mask == address.to_bits() & mask
}

fn is_peer(peer: &Value, other: &End) -> bool {
    match (other, &peer["ipBlock"]) {
        (End::Address(_), Value::Null) => false,
        (End::Address(address), block) => {
            let excepted = block["except"].as_array().map_or(&[][..], Vec::as_slice);
            holds(block["cidr"].as_str().expect("a block"), *address)
                && !excepted.iter().any(|block| holds(block.as_str().expect("a block"), *address))
        }
        (End::Pod { .. }, block) if !block.is_null() => false,
        (End::Pod { namespace, labels }, _) => {
            let in_namespace = match &peer["namespaceSelector"] {
                Value::Null => namespace["kubernetes.io/metadata.name"] == OURS,
                selector => matches(selector, namespace),
            };
            in_namespace && (peer["podSelector"].is_null() || matches(&peer["podSelector"], labels))
        }
    }
}

fn is_port(allowed: &Value, port: u64, protocol: &str) -> bool {
    let low = allowed["port"].as_u64().expect("a number");
    let high = allowed["endPort"].as_u64().unwrap_or(low);
    allowed["protocol"] == protocol && (low..=high).contains(&port)
}

/// Whether `one`'s side lets the arrow pass; `direction` is `Ingress` or `Egress`.
fn lets(policies: &[Value], direction: &str, one: &End, other: &End, (port, protocol): (u64, &str)) -> bool {
    let End::Pod { namespace, labels } = one else { return true };
    if namespace["kubernetes.io/metadata.name"] != OURS {
        return true;
    }
    let selects = |policy: &&Value| {
        assert_eq!(policy["metadata"]["namespace"], OURS, "a policy is of our namespace");
        let types = policy["spec"]["policyTypes"].as_array().expect("a policy says its types");
        types.contains(&json!(direction)) && matches(&policy["spec"]["podSelector"], labels)
    };
    let (rules, peers) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
    let allows = |rule: &Value| {
        rule["ports"].as_array().is_none_or(|ports| ports.iter().any(|allowed| is_port(allowed, port, protocol)))
            && rule[peers].as_array().is_none_or(|peers| peers.iter().any(|peer| is_peer(peer, other)))
    };
    let selected: Vec<&Value> = policies.iter().filter(selects).collect();
    let allowed = |policy: &&Value| policy["spec"][rules].as_array().is_some_and(|rules| rules.iter().any(allows));
    selected.is_empty() || selected.iter().any(allowed)
}

struct Network(Vec<Value>);

impl Network {
    fn of(mut manifests: Vec<Value>) -> Network {
        manifests.retain(|thing| thing["kind"] == "NetworkPolicy");
        assert!(manifests.len() > 5, "there are policies");
        Network(manifests)
    }

    fn passes(&self, from: &str, to: &str, port: (u64, &str)) -> bool {
        let (from, to) = (end(from), end(to));
        lets(&self.0, "Egress", &from, &to, port) && lets(&self.0, "Ingress", &to, &from, port)
    }

    #[track_caller]
    fn open(&self, from: &str, to: &str, ports: &[u64]) {
        ports.iter().for_each(|port| assert!(self.passes(from, to, (*port, "TCP")), "{from} cannot reach {to}:{port}"));
    }

    #[track_caller]
    fn shut(&self, from: &str, to: &str, ports: &[u64]) {
        ports.iter().for_each(|port| assert!(!self.passes(from, to, (*port, "TCP")), "{from} reaches {to}:{port}"));
    }
}

const OUR_PODS: [&str; 7] = ["agent", "coordinator", "etcd", "export", "serving", "client", "unlabelled pod of ours"];
const METADATA: &str = "169.254.169.254";
const OUTSIDE: &str = "203.0.113.7";

#[test]
fn the_policies_open_each_arrow_that_is_drawn_and_no_other() {
    let test = "the_policies_open_each_arrow_that_is_drawn_and_no_other";
    for overlay in super::OVERLAYS {
        let Some(manifests) = manifests(test, overlay) else { return };
        let network = Network::of(manifests);
        // What a cluster needs.
        network.open("agent", "coordinator", &[7070]);
        network.open("agent", "agent", &[7100, 7150, 7199]);
        network.open("coordinator", "agent", &[7100, 41_234]);
        network.open("coordinator", "etcd", &[2379]);
        network.open("etcd", "etcd", &[2380]);
        for one in OUR_PODS {
            assert!(network.passes(one, "names", (53, "UDP")) && network.passes(one, "names", (53, "TCP")), "{one}");
            assert!(network.passes(one, "169.254.20.10", (53, "UDP")), "{one}, by the node's own cache");
        }
        // People, programs and Prometheus.
        for client in ["client", "client elsewhere"] {
            network.open(client, "coordinator", &[7070, 7071]);
            network.open(client, "serving", &[8000, 8001]);
            network.shut(client, "etcd", &[2379, 2380, 2381]);
            network.shut(client, "agent", &[7072, 7100, 41_234]);
        }
        network.open("prometheus", "coordinator", &[7071]);
        network.open("prometheus", "agent", &[7072]);
        network.open("prometheus", "etcd", &[2381]);
        network.open("prometheus", "serving", &[8000]);
        for anybody in ["stranger", OUTSIDE, "neighbour of a client elsewhere"] {
            network.open(anybody, "serving", &[8000, 8001]);
        }

        // Nobody else is let in …
        network.shut("prometheus", "coordinator", &[7070]);
        network.shut("prometheus", "etcd", &[2379, 2380]);
        network.shut("prometheus", "agent", &[7100]);
        let others =
            ["stranger", OUTSIDE, "neighbour of a client elsewhere", "pod elsewhere that calls itself a client"];
        for other in others.into_iter().chain(["serving", "export", "unlabelled pod of ours"]) {
            network.shut(other, "coordinator", &[7070, 7071]);
            network.shut(other, "agent", &[7072, 7100, 41_234]);
            network.shut(other, "etcd", &[2379, 2380, 2381]);
        }
        network.shut("agent", "coordinator", &[7071]);
        network.shut("agent", "agent", &[22, 7072, 7099, 7200]);
        network.shut("agent", "etcd", &[2379, 2380, 2381]);
        network.shut("coordinator", "etcd", &[2380, 2381]);
        network.shut("etcd", "coordinator", &[7070]);
        // … nor out.
        for one in OUR_PODS {
            network.shut(one, METADATA, &[80, 443]);
            network.shut(one, "stranger", &[80, 8080]);
            network.shut(one, OUTSIDE, &[22, 80]);
        }
        let with_a_store = overlay == "overlays/s3";
        for one in OUR_PODS.into_iter().filter(|one| !with_a_store || ["coordinator", "etcd", "client"].contains(one)) {
            network.shut(one, OUTSIDE, &[443, 9000]);
            network.shut(one, "store in the cluster", &[443, 9000]);
        }
    }
}

#[test]
fn with_a_bucket_the_store_is_reached_wherever_it_is_and_nothing_else() {
    let test = "with_a_bucket_the_store_is_reached_wherever_it_is_and_nothing_else";
    let Some(manifests) = manifests(test, "overlays/s3") else { return };
    let network = Network::of(manifests);
    for one in ["agent", "serving", "export"] {
        network.open(one, OUTSIDE, &[443, 9000, 8333, 7480, 3900]);
        network.open(one, "store in the cluster", &[443, 9000, 8333, 7480, 3900]);
        network.shut(one, "etcd", &[2379]);
        network.shut(one, "store in the cluster", &[80, 5432]);
    }
}

/// The `kustomization.yaml` that docs/kubernetes.md shows, word for word.
#[test]
fn an_overlay_of_ones_own_that_asks_the_cloud_reaches_what_the_cloud_tells() {
    let test = "an_overlay_of_ones_own_that_asks_the_cloud_reaches_what_the_cloud_tells";
    let page = std::fs::read_to_string(repo().join("docs/kubernetes.md")).expect("the page");
    let (_, rest) = page.split_once("```yaml\n").expect("the page shows an overlay");
    let (shown, _) = rest.split_once("```").expect("its end");
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("kustomization.yaml"), shown).expect("a file");
    crate::tutorials::copy(&repo().join("deploy"), &dir.path().join("deploy"));
    let found = match super::built(dir.path()).and_then(|text| documents(&text)) {
        Ok(found) => found,
        Err(why) => return skip(test, &why),
    };
    let agent = super::pods(&found)["elastic-agent"];
    assert_eq!(super::flag(agent, "--preemption-url"), "aws");
    let network = Network::of(found.clone());
    for one in ["agent", "serving", "export"] {
        network.open(one, METADATA, &[80]);
        network.open(one, "169.254.170.23", &[80]);
        network.shut(one, METADATA, &[443, 22]);
        network.open(one, OUTSIDE, &[443]);
    }
    for one in ["coordinator", "etcd", "client", "unlabelled pod of ours"] {
        network.shut(one, METADATA, &[80]);
    }
}

#[test]
fn policies_are_read_as_the_api_means_them() {
    let policy = |spec: Value| json!({ "metadata": { "namespace": OURS }, "spec": spec });
    let asks = |policies: &[Value], from: &str, to: &str, port: u64| {
        let (from, to) = (end(from), end(to));
        lets(policies, "Egress", &from, &to, (port, "TCP")) && lets(policies, "Ingress", &to, &from, (port, "TCP"))
    };
    assert!(asks(&[], "stranger", "agent", 1), "without a policy all is open");
    let nothing = policy(json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    assert!(!asks(from_ref(&nothing), "stranger", "agent", 1) && !asks(from_ref(&nothing), "agent", OUTSIDE, 1));
    let both = json!([{ "from": [{ "podSelector": {}, "namespaceSelector": { "matchLabels": { "a": "b" } } }] }]);
    let both = policy(json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": both }));
    assert!(!asks(&[both], "client", "agent", 1), "selectors of one peer hold together, and the namespace is not ours");
    let own = json!([{ "from": [{ "podSelector": { "matchLabels": { "elastic.client": "true" } } }] }]);
    let own = policy(json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": own }));
    assert!(asks(from_ref(&own), "client", "agent", 1) && !asks(&[own], "client elsewhere", "agent", 1));
    let out = json!([{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"] } }] }]);
    let out = policy(json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": out }));
    assert!(asks(from_ref(&out), "agent", OUTSIDE, 1) && !asks(&[out], "agent", METADATA, 1));
}
