//! A job that insists on a device that its workers do not have.

use crate::cluster::{Cluster, job_file, wait_for};

#[test]
fn a_job_for_a_gpu_fails_at_once_on_a_cluster_without_one_and_says_why() {
    let mut cluster = Cluster::start(None, 0);
    cluster.start_agent("node-1", &[("ELASTIC_CUDA_LIBS", "-".to_string())]);
    let job = cluster.submit(&job_file("digits"), &["--set", "resources.device=cuda"]);
    let status = wait_for("the job's end", 30, || cluster.status(&job).filter(|status| status["state"] == "failed"));
    let reason = status["reason"].as_str().expect("a reason");
    for part in ["resources.device = \"cuda\"", "libcuda is not on this machine", "\"auto\" trains on the processor"] {
        assert!(reason.contains(part), "{part}: {status}");
    }
    assert_eq!(status["restarts"], 0, "{status}");
}
