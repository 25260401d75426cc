//! Keeps and forgets tokens. Who is let in by one is decided where callers arrive (`proto`).

use crate::event::{Effects, Record, Refusal, Reply};
use crate::machine::Machine;
use crate::note::Note;
use crate::record;
use elastic_spec::TokenName;
use elastic_spec::access::Token;
use elastic_spec::limits::TOKENS_MAX;

impl Machine {
    /// All that are known, in the order of their names.
    pub fn tokens(&self) -> Vec<Token> {
        self.tokens.values().cloned().collect()
    }

    /// The time of day is the new token's own. One that has expired gives its name free.
    pub(crate) fn keep_token(&mut self, token: Token, out: &mut Effects) -> Reply {
        let now = token.made_unix_ms;
        let listed = self.config.token_listed_ms;
        let is_old = |t: &Token| now >= t.expires_unix_ms.saturating_add(listed);
        for old in self.tokens.values().filter(|t| is_old(t)) {
            out.persist.push(Record { key: record::token_key(&old.name), value: None });
        }
        self.tokens.retain(|_, t| !is_old(t));
        match self.tokens.get(&token.name) {
            Some(there) if !there.has_expired(now) => return Reply::Refused(Refusal::TokenExists(token.name)),
            None if self.tokens.len() >= TOKENS_MAX => return Reply::Refused(Refusal::TooManyTokens(TOKENS_MAX)),
            _ => {}
        }
        out.persist.push(record::of_token(&token));
        out.notes.push(Note::TokenMade { name: token.name.clone(), role: token.role });
        self.tokens.insert(token.name.clone(), token);
        Reply::Done
    }

    pub(crate) fn revoke_token(&mut self, name: &TokenName, out: &mut Effects) -> Reply {
        if self.tokens.remove(name).is_none() {
            return Reply::Refused(Refusal::UnknownToken(name.clone()));
        }
        out.persist.push(Record { key: record::token_key(name), value: None });
        out.notes.push(Note::TokenRevoked { name: name.clone() });
        Reply::Done
    }
}
