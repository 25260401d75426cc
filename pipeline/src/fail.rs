//! Fail points: kills at named moments of a pipeline, for tests. `ELASTIC_PIPELINE_FAIL=train-stored` names one.
//!
//! [`Point::all`] is made of the stages, so that a test that kills at each of them leaves out none.

use elastic_spec::pipeline::Stage;
use rustix::process::{Signal, getpid, kill_process};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The run is recorded, and nothing else.
    RunBegun,
    Of(Stage, Moment),
    /// All stages are done; that the run is over is not recorded.
    RunOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It is recorded as running.
    Begin,
    /// Half of its work is done.
    Work,
    /// Of a push: the version is published, and has neither been read back nor its label.
    Published,
    /// Its blobs are kept, nothing is recorded.
    Stored,
    Recorded,
}

impl Point {
    /// In the order in which a run passes them.
    pub fn all() -> Vec<Point> {
        let of = |stage: Stage| {
            let moments = [Moment::Begin, Moment::Work, Moment::Published, Moment::Stored, Moment::Recorded];
            let has = move |moment: &Moment| *moment != Moment::Published || stage == Stage::Push;
            moments.into_iter().filter(has).map(move |moment| Point::Of(stage, moment))
        };
        let stages = Stage::ALL.into_iter().flat_map(of);
        [Point::RunBegun].into_iter().chain(stages).chain([Point::RunOver]).collect()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = match self {
            Point::RunBegun => return f.write_str("run-begun"),
            Point::RunOver => return f.write_str("run-over"),
            Point::Of(_, Moment::Begin) => "begin",
            Point::Of(_, Moment::Work) => "work",
            Point::Of(_, Moment::Published) => "published",
            Point::Of(_, Moment::Stored) => "stored",
            Point::Of(_, Moment::Recorded) => "recorded",
        };
        match self {
            Point::Of(stage, _) => write!(f, "{}-{moment}", stage.word()),
            _ => f.write_str(moment),
        }
    }
}

pub(crate) fn point(point: Point) {
    let Some(wanted) = std::env::var_os("ELASTIC_PIPELINE_FAIL") else { return };
    if wanted.to_str() == Some(&point.to_string()) {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}

pub(crate) fn at(stage: Stage, moment: Moment) {
    point(Point::Of(stage, moment));
}
