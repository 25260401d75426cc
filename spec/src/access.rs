//! Who may do what: roles, and the tokens that carry them.
//!
//! A token is drawn at random and shown once, to whoever made it; what is kept of it is its digest. A digest
//! suffices, without a slow hash, because the secret has 256 random bits. Where tokens are shown and refused is
//! `proto`'s business, keeping them `control`'s.

use crate::ids::{Digest, TokenName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a caller is, and so what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes part as a node; sees and changes nothing else.
    Agent,
    /// Reads jobs, nodes and logs.
    Viewer,
    /// And submits, scales and cancels jobs.
    Submitter,
    /// And drains nodes, makes and revokes tokens.
    Admin,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Agent, Role::Viewer, Role::Submitter, Role::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Viewer => "viewer",
            Role::Submitter => "submitter",
            Role::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Whether whoever has this role may do what needs `needed`. People's roles contain each other; a node's stands
    /// apart, so that a token stolen from a node neither reads nor submits.
    pub fn covers(self, needed: Role) -> bool {
        match (self, needed) {
            (Role::Agent, needed) => needed == Role::Agent,
            (_, Role::Agent) => false,
            (role, needed) => role >= needed,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is kept of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub name: TokenName,
    pub role: Role,
    /// Of the whole text that is shown.
    pub digest: Digest,
    pub made_unix_ms: u64,
    pub expires_unix_ms: u64,
}

impl Token {
    pub fn has_expired(&self, unix_ms: u64) -> bool {
        unix_ms >= self.expires_unix_ms
    }
}

/// The text of a token: "elastic.NAME.64 hexadecimal digits". The name finds the record, the rest proves it, and the
/// beginning lets scanners of repositories recognise one.
pub fn token_text(name: &TokenName, secret: &[u8; 32]) -> String {
    format!("{TOKEN_BEGIN}.{name}.{}", Digest(*secret))
}

/// The name in a token's text, if it is one.
pub fn token_name(text: &str) -> Option<TokenName> {
    let (name, secret) = text.strip_prefix(TOKEN_BEGIN)?.strip_prefix('.')?.rsplit_once('.')?;
    Digest::parse(secret)?;
    TokenName::parse(name).ok()
}

const TOKEN_BEGIN: &str = "elastic";

/// Takes the same time wherever the first difference is.
pub fn same_digest(a: &Digest, b: &Digest) -> bool {
    // The hint keeps the compiler from ending the loop early.
    std::hint::black_box(a.0.iter().zip(&b.0).fold(0, |acc, (x, y)| std::hint::black_box(acc | (x ^ y)))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_have_what_lesser_roles_have_and_nodes_have_only_their_own() {
        for (role, covers) in [
            (Role::Agent, &[Role::Agent][..]),
            (Role::Viewer, &[Role::Viewer]),
            (Role::Submitter, &[Role::Viewer, Role::Submitter]),
            (Role::Admin, &[Role::Viewer, Role::Submitter, Role::Admin]),
        ] {
            let may: Vec<Role> = Role::ALL.into_iter().filter(|needed| role.covers(*needed)).collect();
            assert_eq!(may, covers, "{role}");
        }
    }

    #[test]
    fn a_token_tells_its_name_and_nothing_else_passes_for_one() {
        let name = TokenName::parse("ci.nightly-7").unwrap();
        let text = token_text(&name, &[0xab; 32]);
        assert_eq!(token_name(&text), Some(name));
        for other in
            ["", "s3cret", "elastic.x", "elastic.x.12", &text[1..], &text[..text.len() - 1], &text.to_uppercase()]
        {
            assert_eq!(token_name(other), None, "{other:?}");
        }
    }

    #[test]
    fn one_flipped_bit_is_another_digest() {
        let digest = Digest::of(b"x");
        assert!(same_digest(&digest, &digest.clone()));
        for bit in 0..256 {
            let mut other = digest;
            other.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!same_digest(&digest, &other));
        }
    }
}
