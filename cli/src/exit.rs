//! How the program ends: every exit code and what it means, and errors that carry one.

use elastic_proto::Refusal;
use std::process::ExitCode;

/// The whole list; `--help` and docs/operations.md say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// The job failed, or a checkpoint is damaged, or something else went wrong.
    Failed,
    /// Mistakes in the job file or on the command line: nothing was done.
    Mistake,
    Unreachable,
    Cancelled,
    Interrupted,
    /// What a command of the user's ended with.
    Of(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Mistake => 2,
            Exit::Unreachable => 3,
            Exit::Cancelled => 4,
            Exit::Interrupted => 130,
            Exit::Of(code) => code,
        }
    }
}

pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the job failed, or what was asked could not be done
  2    mistakes in the job file or on the command line; nothing was done
  3    the coordinator was not reached
  4    the job was cancelled
  130  interrupted (Ctrl-C)
  1-125  of `elastic run`: the code of the process that failed first
  127    of `elastic run`: a process could not be started
  128+n  of `elastic run`: signal n killed the process that failed first, or ended `elastic run` itself (143: SIGTERM)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error, and the code to end with. Without another code: [`Exit::Failed`].
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

pub type Outcome = Result<Exit, Failure>;

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        let code = |cause: &(dyn std::error::Error + 'static)| {
            let mistake = cause.downcast_ref::<Mistake>().map(|_| Exit::Mistake);
            mistake.or_else(|| cause.downcast_ref::<Refusal>().map(exit_of))
        };
        let exit = error.chain().find_map(code).unwrap_or(Exit::Failed);
        Failure { exit, error }
    }
}

/// What may have been refused by a coordinator.
fn exit_of(refusal: &Refusal) -> Exit {
    match refusal {
        Refusal::Invalid(_) | Refusal::NotFound(_) | Refusal::Unauthenticated(_) | Refusal::Forbidden(_) => {
            Exit::Mistake
        }
        Refusal::Standby { .. } | Refusal::Unavailable(_) => Exit::Unreachable,
        Refusal::NotNow(_) | Refusal::TooMuch(_) | Refusal::Internal(_) => Exit::Failed,
    }
}

/// An error of the user's; shown as the error in it.
#[derive(Debug)]
struct Mistake(anyhow::Error);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Mistake {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Marks an error as the user's to mend: the program ends with [`Exit::Mistake`].
pub fn mistake(error: impl Into<anyhow::Error>) -> anyhow::Error {
    anyhow::Error::new(Mistake(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_mistake_keeps_its_code_and_its_words() {
        let error = mistake(anyhow!("no such file").context("read job.toml")).context("submit");
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Mistake);
        assert_eq!(format!("{:#}", failure.error), "submit: read job.toml: no such file");
    }

    #[test]
    fn a_refusal_decides_the_code_through_any_context() {
        for (refusal, exit) in [
            (Refusal::Unavailable("x".into()), Exit::Unreachable),
            (Refusal::NotFound("x".into()), Exit::Mistake),
            (Refusal::Internal("x".into()), Exit::Failed),
        ] {
            let error = Err::<(), _>(refusal).context("ask the coordinator").unwrap_err();
            assert_eq!(Failure::from(error).exit, exit);
        }
    }
}
