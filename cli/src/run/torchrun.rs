//! Flags of `torchrun` that are taken and change nothing here, each with its reason.

use clap::Args;

#[derive(Debug, Default, Args)]
pub struct TorchFlags {
    #[arg(long, alias = "rdzv_backend", env = "PET_RDZV_BACKEND", hide = true)]
    rdzv_backend: Option<String>,
    #[arg(long, alias = "rdzv_endpoint", env = "PET_RDZV_ENDPOINT", hide = true)]
    rdzv_endpoint: Option<String>,
    #[arg(long, alias = "rdzv_id", env = "PET_RDZV_ID", hide = true)]
    rdzv_id: Option<String>,
    #[arg(long, alias = "rdzv_conf", env = "PET_RDZV_CONF", hide = true)]
    rdzv_conf: Option<String>,
    #[arg(long, alias = "node_rank", env = "PET_NODE_RANK", hide = true)]
    node_rank: Option<String>,
    #[arg(long, alias = "master_addr", env = "PET_MASTER_ADDR", hide = true)]
    master_addr: Option<String>,
    #[arg(long, alias = "master_port", env = "PET_MASTER_PORT", hide = true)]
    master_port: Option<String>,
    #[arg(long, alias = "monitor_interval", env = "PET_MONITOR_INTERVAL", hide = true)]
    monitor_interval: Option<String>,
    #[arg(long, alias = "start_method", env = "PET_START_METHOD", hide = true)]
    start_method: Option<String>,
    #[arg(long, alias = "event_log_handler", env = "PET_EVENT_LOG_HANDLER", hide = true)]
    event_log_handler: Option<String>,
    #[arg(long, alias = "logs_specs", hide = true)]
    logs_specs: Option<String>,
    #[arg(long, alias = "numa_binding", hide = true)]
    numa_binding: Option<String>,
    #[arg(long, alias = "duplicate_stdout_filters", env = "PET_DUPLICATE_STDOUT_FILTERS", hide = true)]
    duplicate_stdout_filters: Option<String>,
    #[arg(long, alias = "duplicate_stderr_filters", env = "PET_DUPLICATE_STDERR_FILTERS", hide = true)]
    duplicate_stderr_filters: Option<String>,
}

const MEETS: &str = "nodes meet through the coordinator";
const RANKS: &str = "the coordinator gives nodes their ranks, and the node of rank 0 a free port";
const NOTICED: &str = "the end of a process is noticed when it comes";
const PROGRAMS: &str = "each process is a program of its own";
const EVENTS: &str = "events are in the coordinator's log, on its page and in its metrics";
const PYTHON: &str = "no class of Python can be called here; --log-dir, --redirects and --tee say where streams go";
const CORES: &str = "processes are not bound to cores; start the program with numactl";
const COPIES: &str = "lines are not copied by what is in them; --log-dir keeps them all, for grep";

impl TorchFlags {
    /// A line for each reason, with the flags that were given and that it is for.
    pub fn given(&self) -> Vec<String> {
        let all = [
            ("--rdzv-backend", &self.rdzv_backend, MEETS),
            ("--rdzv-endpoint", &self.rdzv_endpoint, MEETS),
            ("--rdzv-id", &self.rdzv_id, MEETS),
            ("--rdzv-conf", &self.rdzv_conf, MEETS),
            ("--node-rank", &self.node_rank, RANKS),
            ("--master-addr", &self.master_addr, RANKS),
            ("--master-port", &self.master_port, RANKS),
            ("--monitor-interval", &self.monitor_interval, NOTICED),
            ("--start-method", &self.start_method, PROGRAMS),
            ("--event-log-handler", &self.event_log_handler, EVENTS),
            ("--logs-specs", &self.logs_specs, PYTHON),
            ("--numa-binding", &self.numa_binding, CORES),
            ("--duplicate-stdout-filters", &self.duplicate_stdout_filters, COPIES),
            ("--duplicate-stderr-filters", &self.duplicate_stderr_filters, COPIES),
        ];
        let given = all.iter().filter(|(_, value, _)| value.is_some());
        let mut lines: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, _, reason) in given {
            match lines.iter_mut().find(|(known, _)| known == reason) {
                Some((_, names)) => names.push(name),
                None => lines.push((reason, vec![name])),
            }
        }
        let verb = |names: &[&str]| if names.len() == 1 { "changes" } else { "change" };
        lines.iter().map(|(reason, names)| format!("{} {} nothing: {reason}", names.join(", "), verb(names))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_told_with_the_reason_that_is_its_own() {
        assert_eq!(TorchFlags::default().given(), [""; 0]);
        let some = || Some("x".to_string());
        let flags = TorchFlags { rdzv_id: some(), rdzv_conf: some(), start_method: some(), ..Default::default() };
        let told =
            ["--rdzv-id, --rdzv-conf change nothing: nodes meet", "--start-method changes nothing: each process"];
        assert!(flags.given().iter().zip(told).all(|(line, begin)| line.starts_with(begin)), "{:?}", flags.given());
    }
}
