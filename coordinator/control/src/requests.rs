//! What people ask for: submit, scale, drain, cancel.

use crate::event::{Effects, Refusal, Reply};
use crate::job::{Job, Origin};
use crate::machine::Machine;
use crate::node::Drain;
use crate::note::Note;
use elastic_spec::api::{JobState, Submit};
use elastic_spec::job::JobSpec;
use elastic_spec::limits::WORKERS_MAX;
use elastic_spec::{JobId, NodeId};

impl Machine {
    pub(crate) fn submit(
        &mut self,
        submit: Submit,
        id: JobId,
        secret: Vec<u8>,
        run_dir: String,
        out: &mut Effects,
    ) -> Reply {
        match self.check_submit(&submit, &id, &run_dir) {
            Err(refusal) => Reply::Refused(refusal),
            Ok(spec) => {
                let job = Job::new(Origin {
                    id: id.clone(),
                    seq: self.next_seq,
                    spec,
                    spec_json: submit.spec_json,
                    blobs: submit.blobs,
                    secret,
                    run_dir,
                    resume: submit.resume,
                    submitted_unix_ms: self.wall.0,
                });
                self.next_seq += 1;
                out.notes.push(Note::Submitted { job: id.clone(), min: job.min, max: job.max });
                self.jobs.insert(id.clone(), job);
                Reply::Submitted { job: id }
            }
        }
    }

    fn check_submit(&self, submit: &Submit, id: &JobId, run_dir: &str) -> Result<JobSpec, Refusal> {
        let spec = JobSpec::from_json(&submit.spec_json).map_err(Refusal::BadSpec)?;
        let (min, max) = (spec.elastic.min_workers, spec.elastic.max_workers);
        let most = if spec.command().is_some() { WORKERS_MAX } else { spec.train.shards };
        check_scale(min, max, most)?;
        if spec.command().is_some() && !self.config.allow_commands {
            return Err(Refusal::CommandsForbidden);
        }
        if !spec.train.shards.is_power_of_two() {
            return Err(Refusal::BadSpec(format!("shards = {} is not a power of two", spec.train.shards)));
        }
        if self.jobs.contains_key(id) {
            return Err(Refusal::JobExists(id.clone()));
        }
        let live = || self.jobs.values().filter(|j| j.is_live());
        if let Some(other) = live().find(|j| j.launch.run_dir == run_dir) {
            return Err(Refusal::RunInUse { job: other.id.clone(), run_dir: run_dir.to_string() });
        }
        match live().count() {
            n if n >= self.config.jobs_live_max => Err(Refusal::TooManyJobs { live: n }),
            _ => Ok(spec),
        }
    }

    pub(crate) fn scale(&mut self, id: &JobId, min: u16, max: u16, out: &mut Effects) -> Reply {
        let job = match self.live_job(id) {
            Ok(job) => job,
            Err(refusal) => return Reply::Refused(refusal),
        };
        if let Err(refusal) = check_scale(min, max, job.workers_max()) {
            return Reply::Refused(refusal);
        }
        if (job.min, job.max) != (min, max) {
            (job.min, job.max) = (min, max);
            // A person who scales wants what is missing to come back.
            job.owed = 0;
            job.is_changed = true;
            out.notes.push(Note::Scaled { job: id.clone(), min, max });
        }
        Reply::Done
    }

    pub(crate) fn drain(&mut self, id: &NodeId, out: &mut Effects) -> Reply {
        let Some(node) = self.nodes.get_mut(id) else {
            return Reply::Refused(Refusal::UnknownNode(id.clone()));
        };
        let drain = Drain::Operator { incarnation: node.incarnation };
        if node.drain != drain {
            node.drain = drain;
            node.is_changed = true;
            out.notes.push(Note::NodeDrains { node: id.clone() });
        }
        Reply::Done
    }

    pub(crate) fn cancel(&mut self, id: &JobId, out: &mut Effects) -> Reply {
        if let Err(refusal) = self.live_job(id) {
            return Reply::Refused(refusal);
        }
        let (jobs, mut cluster) = self.parts(out);
        let job = jobs.get_mut(id).expect("it is live");
        job.end(JobState::Cancelled, "cancelled as asked".to_string(), &mut cluster);
        Reply::Done
    }

    fn live_job(&mut self, id: &JobId) -> Result<&mut Job, Refusal> {
        let job = self.jobs.get_mut(id).ok_or_else(|| Refusal::UnknownJob(id.clone()))?;
        match job.is_live() {
            true => Ok(job),
            false => Err(Refusal::JobOver { job: id.clone(), state: job.state.as_str() }),
        }
    }
}

fn check_scale(min: u16, max: u16, most: u16) -> Result<(), Refusal> {
    match 1 <= min && min <= max && max <= most {
        true => Ok(()),
        false => Err(Refusal::BadScale { min, max, most }),
    }
}
