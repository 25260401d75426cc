//! The tokens that a coordinator knows, and what it thinks of one that is shown.

use crate::Refusal;
use elastic_spec::access::{Role, Token, same_digest, token_name};
use elastic_spec::{Digest, TokenName};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};

/// Shared by the listeners of a process and whoever keeps the tokens. Empty until somebody fills it.
#[derive(Clone, Default)]
pub struct Ring(Arc<RwLock<Known>>);

#[derive(Default)]
enum Known {
    /// A standby: the leader knows.
    #[default]
    Elsewhere,
    All(BTreeMap<TokenName, Token>),
}

impl Ring {
    /// These are all.
    pub fn replace(&self, tokens: Vec<Token>) {
        let all = tokens.into_iter().map(|token| (token.name.clone(), token)).collect();
        *self.0.write().expect("nobody panics while holding this lock") = Known::All(all);
    }

    /// Another one leads, and knows.
    pub fn forget(&self) {
        *self.0.write().expect("nobody panics while holding this lock") = Known::Elsewhere;
    }

    pub(super) fn find(&self, shown: &str, now_unix_ms: u64) -> Result<Principal, Denied> {
        let name = token_name(shown).ok_or(Denied::Unknown)?;
        let known = self.0.read().expect("nobody panics while holding this lock");
        let Known::All(tokens) = &*known else { return Err(Denied::Elsewhere) };
        let token = tokens.get(&name).ok_or(Denied::Unknown)?;
        match same_digest(&token.digest, &Digest::of(shown.as_bytes())) {
            false => Err(Denied::Unknown),
            true if token.has_expired(now_unix_ms) => Err(Denied::Expired(name)),
            true => Ok(Principal { name: format!("token {name}"), is: Is::Role(token.role) }),
        }
    }
}

/// Compares digests: what two texts have in common shows in no time that is taken.
pub(super) fn same_text(a: &str, b: &str) -> bool {
    same_digest(&Digest::of(a.as_bytes()), &Digest::of(b.as_bytes()))
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// For logs: "token ci", "an agent's certificate".
    pub name: String,
    is: Is,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Role(Role),
    /// Shows the listener's own token, or the listener asks nobody.
    Owner,
}

impl Principal {
    pub(super) fn owner() -> Principal {
        Principal { name: "the cluster's own token".into(), is: Is::Owner }
    }

    pub(super) fn anybody() -> Principal {
        Principal { name: "anybody".into(), is: Is::Owner }
    }

    pub(super) fn certified_agent() -> Principal {
        Principal { name: "an agent's certificate".into(), is: Is::Role(Role::Agent) }
    }

    pub fn may(&self, needed: Role) -> bool {
        match self.is {
            Is::Role(role) => role.covers(needed),
            Is::Owner => true,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is {
            Is::Role(role) => write!(f, "{} (role {role})", self.name),
            Is::Owner => f.write_str(&self.name),
        }
    }
}

/// Why a caller is turned away. Says nothing of what was shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("a token is wanted here: set ELASTIC_TOKEN or --token-file")]
    NoToken,
    #[error("the token is not this cluster's, or was revoked")]
    Unknown,
    #[error("token {0} has expired: ask an admin for another (`elastic token create`)")]
    Expired(TokenName),
    #[error("{who} may not do this: the role {needed} is needed")]
    Lacks { who: Principal, needed: Role },
    #[error("agents show a certificate here (--tls-cert and --tls-key of the agent, signed by the agents' authority)")]
    NoCertificate,
    #[error("a standby knows no tokens")]
    Elsewhere,
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Refusal {
        match denied {
            Denied::NoToken | Denied::Unknown | Denied::Expired(_) | Denied::NoCertificate => {
                Refusal::Unauthenticated(denied.to_string())
            }
            Denied::Lacks { .. } => Refusal::Forbidden(denied.to_string()),
            Denied::Elsewhere => Refusal::Standby { leader: None },
        }
    }
}
