//! What each call needs, in one table. A call that is not in it is an admin's.

use elastic_spec::access::Role;

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Anybody, without a proof.
    Nothing,
    Role(Role),
    /// Either of the two.
    Either(Role, Role),
}

impl Need {
    pub fn roles(self) -> impl Iterator<Item = Role> {
        let (a, b) = match self {
            Need::Nothing => (None, None),
            Need::Role(role) => (Some(role), None),
            Need::Either(a, b) => (Some(a), Some(b)),
        };
        a.into_iter().chain(b)
    }
}

/// Path of a call and what it needs.
pub const METHODS: &[(&str, Need)] = &[
    // Says who leads, and nothing of any job: standbys and probes are asked by those who have no token.
    ("/elastic.v1.Api/Health", Need::Nothing),
    ("/elastic.v1.Api/Jobs", Need::Role(Role::Viewer)),
    ("/elastic.v1.Api/Status", Need::Role(Role::Viewer)),
    ("/elastic.v1.Api/Nodes", Need::Role(Role::Viewer)),
    ("/elastic.v1.Api/Logs", Need::Role(Role::Viewer)),
    ("/elastic.v1.Api/Submit", Need::Role(Role::Submitter)),
    ("/elastic.v1.Api/Scale", Need::Role(Role::Submitter)),
    ("/elastic.v1.Api/Cancel", Need::Role(Role::Submitter)),
    ("/elastic.v1.Api/PutBlob", Need::Role(Role::Submitter)),
    ("/elastic.v1.Api/HasBlob", Need::Role(Role::Submitter)),
    // Inputs may be private: not a viewer's. Agents bring them to their workers.
    ("/elastic.v1.Api/GetBlob", Need::Either(Role::Agent, Role::Submitter)),
    ("/elastic.v1.Api/Drain", Need::Role(Role::Admin)),
    ("/elastic.v1.Api/MakeToken", Need::Role(Role::Admin)),
    ("/elastic.v1.Api/Tokens", Need::Role(Role::Admin)),
    ("/elastic.v1.Api/RevokeToken", Need::Role(Role::Admin)),
    ("/elastic.v1.Control/Attach", Need::Role(Role::Agent)),
    // The agent's own token is shown there, by the coordinator, which filtered for its callers before.
    ("/elastic.v1.NodeLogs/List", Need::Role(Role::Viewer)),
    ("/elastic.v1.NodeLogs/Read", Need::Role(Role::Viewer)),
];

pub(super) fn need_of(path: &str) -> Need {
    METHODS.iter().find(|row| row.0 == path).map_or(Need::Role(Role::Admin), |row| row.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Paths of all calls in the .proto files.
    fn written() -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
        for file in std::fs::read_dir(dir).unwrap().flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let mut service = String::new();
            for line in text.lines().map(str::trim) {
                let word = |begin: &str| line.strip_prefix(begin).and_then(|rest| rest.split([' ', '(', '{']).next());
                if let Some(name) = word("service ") {
                    service = name.to_string();
                }
                if let Some(name) = word("rpc ") {
                    paths.insert(format!("/elastic.v1.{service}/{name}"));
                }
            }
        }
        paths
    }

    #[test]
    fn every_call_has_a_row_and_every_row_a_call() {
        let rows: BTreeSet<String> = METHODS.iter().map(|row| row.0.to_string()).collect();
        assert_eq!(rows.len(), METHODS.len(), "no row twice");
        assert!(rows.len() > 15, "{rows:?}");
        assert_eq!(rows, written());
    }

    #[test]
    fn what_changes_something_is_no_viewers_and_what_is_not_listed_is_an_admins() {
        let reads = ["Health", "Jobs", "Status", "Nodes", "Logs", "List", "Read"];
        for (path, need) in METHODS {
            let name = path.rsplit('/').next().unwrap();
            let is_viewers = *need == Need::Nothing || need.roles().any(|role| Role::Viewer.covers(role));
            assert_eq!(is_viewers, reads.contains(&name), "{path}");
        }
        assert_eq!(need_of("/elastic.v1.Api/NotThere"), Need::Role(Role::Admin));
    }

    #[test]
    fn a_node_may_attach_and_fetch_inputs_and_nothing_else() {
        let may: Vec<&str> =
            METHODS.iter().filter(|row| row.1.roles().any(|r| Role::Agent.covers(r))).map(|row| row.0).collect();
        assert_eq!(may, ["/elastic.v1.Api/GetBlob", "/elastic.v1.Control/Attach"]);
    }
}
