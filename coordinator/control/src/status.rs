//! What the API may ask: plain reads of the state.

use crate::job::{Cluster, Job};
use crate::machine::Machine;
use crate::placement;
use crate::slot::Slot;
use crate::time::Millis;
use elastic_spec::api::{JobState, JobStatus, MemberStatus, NodeStatus};
use elastic_spec::facts::WorkerStatus;
use elastic_spec::job::Length;
use elastic_spec::view::Role;
use elastic_spec::{JobId, Rank};

impl Machine {
    /// In order of submission.
    pub fn jobs(&self, now: Millis) -> Vec<JobStatus> {
        let mut jobs: Vec<&Job> = self.jobs.values().collect();
        jobs.sort_by_key(|j| j.seq);
        jobs.into_iter().map(|j| self.status_of(now, j)).collect()
    }

    pub fn job(&self, now: Millis, job: &JobId) -> Option<JobStatus> {
        // Only here: the error files of a thousand jobs would not fit into one answer.
        self.jobs.get(job).map(|j| JobStatus { error_file: j.error_file.clone(), ..self.status_of(now, j) })
    }

    pub fn nodes(&self, now: Millis) -> Vec<NodeStatus> {
        let unix_ms = self.wall.0 + now.since(self.wall.1);
        let known = self.nodes.values().filter(|n| n.is_known());
        known
            .map(|node| {
                let on_node = |job: &Job| job.slots.values().filter(|s| s.node == node.id).count();
                let here: Vec<&Job> = self.jobs.values().filter(|j| on_node(j) > 0).collect();
                NodeStatus {
                    node: node.id.clone(),
                    host: node.host.clone(),
                    slots: node.slots,
                    used: here.iter().map(|j| on_node(j)).sum::<usize>() as u16,
                    draining: node.is_draining(),
                    silent_ms: now.since(node.heard),
                    jobs: here.iter().map(|j| j.id.clone()).collect(),
                    strikes: node.strikes(unix_ms, &self.config),
                }
            })
            .collect()
    }

    fn status_of(&self, now: Millis, job: &Job) -> JobStatus {
        let statuses = || job.slots.values().filter_map(|s| s.worker.as_ref()?.status.as_ref());
        let step_us = statuses().filter_map(|s| s.metrics).map(|m| m.step_us).max().unwrap_or(0);
        let is_running = job.state == JobState::Running && step_us > 0;
        let mut stalls_ms = job.seen.stalls_ms.clone();
        stalls_ms.extend(statuses().flat_map(|s: &WorkerStatus| &s.stalls_ms));
        let planned = match job.spec.train.length {
            _ if job.is_command() => 0,
            Length::Steps(steps) => steps,
            Length::Epochs(_) => 0,
        };
        JobStatus {
            job: job.id.clone(),
            name: job.spec.name.clone(),
            state: job.state,
            reason: self.reason(now, job),
            epoch: job.view.as_ref().map(|v| v.epoch),
            members: job.slots.iter().filter_map(|(index, slot)| member(now, job, *index, slot)).collect(),
            round: job.seen.round,
            step: job.seen.step,
            steps_total: job.seen.steps_total.max(planned),
            metrics: job.seen.metrics,
            samples_per_second: match is_running {
                true => f64::from(job.spec.train.global_batch) * 1e6 / step_us as f64,
                false => 0.0,
            },
            restarts: job.restarts,
            views: job.views,
            last_fault: job.last_fault.clone(),
            published: job.seen.published.clone(),
            run_dir: job.launch.run_dir.clone(),
            min_workers: job.min,
            max_workers: job.max,
            stalls_ms,
            submitted_unix_ms: job.submitted_unix_ms,
            published_on: job.seen.published_on.clone(),
            run_dir_differs: job.run_dir_differs(),
            unpublished: job.unpublished(),
            exit_code: job.exit_code,
            error_file: None,
            is_command: job.is_command(),
        }
    }

    fn reason(&self, now: Millis, job: &Job) -> String {
        let has_members =
            job.view.as_ref().is_some_and(|v| v.world_size() > 0 && job.fit().any(|(_, _, w)| job.is_active(w.id)));
        if !job.is_live() {
            return job.reason.clone();
        }
        if let Some((_, reason)) = job.state_by_view().filter(|_| has_members) {
            return reason;
        }
        if job.is_recovering(now) {
            return "the coordinator is new and hears what runs".to_string();
        }
        // The queries see what decisions see, and touch nothing.
        let mut nodes = self.nodes.clone();
        let cluster = Cluster {
            now,
            unix_ms: self.wall.0 + now.since(self.wall.1),
            term: self.term,
            config: &self.config,
            nodes: &mut nodes,
            trusted_from: self.trusted_from,
            grace_until: self.grace_until,
            notes: &mut Vec::new(),
        };
        let why = placement::why_it_waits(job, &self.jobs, &cluster);
        match job.has_begun {
            true => format!("{}; {why}", job.reason),
            false => why,
        }
    }
}

fn member(now: Millis, job: &Job, index: u16, slot: &Slot) -> Option<MemberStatus> {
    let worker = slot.worker.as_ref()?;
    let view = job.view.as_ref();
    let rank: Option<Rank> = view.and_then(|v| v.rank_of(worker.id));
    let role: Option<Role> = view.and_then(|v| v.member(worker.id)).map(|m| m.role);
    let shards = view.map_or(0, |v| v.shard_map.iter().filter(|r| Some(**r) == rank).count());
    Some(MemberStatus {
        worker: worker.id,
        node: slot.node.clone(),
        slot: index,
        rank,
        role,
        round: worker.at(),
        silent_ms: now.since(worker.heard),
        shards: shards as u16,
    })
}
