//! `elastic token`: makes, lists and revokes the tokens of a cluster.

use crate::args::Reach;
use crate::exit::{Exit, Outcome, mistake};
use crate::{reach, show};
use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use elastic_spec::TokenName;
use elastic_spec::access::Role;
use elastic_spec::api::{MakeToken, TokenInfo};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic token create --role agent --ttl 90d --name nodes > agent.token
  elastic token create --role submitter --ttl 24h --name ci
  elastic token list
  elastic token revoke ci

A token is shown once, when it is made; the coordinator keeps its digest. What it
opens is said by its role:
  agent       takes part as a node, and no more
  viewer      sees jobs, nodes and logs
  submitter   and submits, scales and cancels jobs
  admin       and drains nodes, makes and revokes tokens

Whoever shows the token of the coordinator's own --token-file may do all of it.")]
pub struct Token {
    #[command(subcommand)]
    pub act: Act,
}

#[derive(Debug, Subcommand)]
pub enum Act {
    /// Make a token and print it
    Create(Create),
    /// Show all tokens: names, roles and when they expire
    List(List),
    /// Make a token worthless, at once
    Revoke(Revoke),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  elastic token create --role agent --ttl 90d --name nodes > agent.token
  elastic token create --role viewer --name screen --json | jq -r .token")]
pub struct Create {
    /// What it opens: agent, viewer, submitter or admin
    #[arg(long, value_parser = role)]
    pub role: Role,
    /// How long it is good for, e.g. 30m, 24h or 90d
    #[arg(long, value_name = "TIME", value_parser = ttl_ms, default_value = "24h")]
    pub ttl: u64,
    /// Name of the token, for logs and for revoking it
    #[arg(long)]
    pub name: String,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  elastic token list\n  elastic token list --json | jq -r '.[].name'")]
pub struct List {
    /// One JSON array on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  elastic token revoke ci")]
pub struct Revoke {
    /// Name of the token, as `elastic token list` shows it
    pub name: String,
    #[command(flatten)]
    pub reach: Reach,
}

pub async fn run(args: Token) -> Outcome {
    match args.act {
        Act::Create(args) => create(args).await,
        Act::List(args) => list(args).await,
        Act::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: Create) -> Outcome {
    let name = TokenName::parse(&args.name).context("--name").map_err(mistake)?;
    let make = MakeToken { name: name.clone(), role: args.role, ttl_ms: args.ttl };
    let coordinator = reach::connect(&args.reach).await?;
    let token = coordinator.make_token(make).await.context("make the token")?;
    match args.json {
        true => show::out(&format!("{}\n", json!({ "name": name, "role": args.role, "token": token })))?,
        false => show::out(&format!("{token}\n"))?,
    }
    Ok(Exit::Ok)
}

async fn list(args: List) -> Outcome {
    let tokens = reach::connect(&args.reach).await?.tokens().await.context("list the tokens")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    if args.json {
        let all: Vec<_> = tokens
            .iter()
            .map(|t| {
                json!({
                    "name": t.name,
                    "role": t.role,
                    "made_unix_ms": t.made_unix_ms,
                    "expires_unix_ms": t.expires_unix_ms,
                    "expired": now >= t.expires_unix_ms,
                })
            })
            .collect();
        show::out(&format!("{}\n", json!(all)))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("{:24} {:10} EXPIRES\n", "TOKEN", "ROLE");
    for TokenInfo { name, role, expires_unix_ms, .. } in tokens {
        text.push_str(&format!("{name:24} {role:10} {}\n", left(expires_unix_ms, now)));
    }
    show::out(&text)?;
    Ok(Exit::Ok)
}

async fn revoke(args: Revoke) -> Outcome {
    let name = TokenName::parse(&args.name).map_err(mistake)?;
    reach::connect(&args.reach).await?.revoke_token(&name).await.context("revoke the token")?;
    show::out(&format!("{name} is revoked; streams that it opened go on until they break\n"))?;
    Ok(Exit::Ok)
}

/// "in 3 h", "has expired".
fn left(expires_unix_ms: u64, now_unix_ms: u64) -> String {
    let seconds = expires_unix_ms.saturating_sub(now_unix_ms) / 1_000;
    match seconds {
        _ if now_unix_ms >= expires_unix_ms => "has expired".into(),
        s if s < 120 => format!("in {s} s"),
        s if s < 2 * 3_600 => format!("in {} min", s / 60),
        s if s < 48 * 3_600 => format!("in {} h", s / 3_600),
        s => format!("in {} days", s / (24 * 3_600)),
    }
}

fn role(text: &str) -> Result<Role> {
    Role::parse(text).ok_or_else(|| anyhow!("allowed are agent, viewer, submitter and admin"))
}

/// "30m" in milliseconds.
fn ttl_ms(text: &str) -> Result<u64> {
    let meant = || anyhow!("a time like 30m, 24h or 90d is meant");
    let unit = text.chars().last().ok_or_else(meant)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 24 * 3_600,
        _ => return Err(meant()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| meant())?;
    let ms = count.checked_mul(seconds * 1_000).filter(|ms| *ms > 0).ok_or_else(meant)?;
    match ms <= elastic_spec::limits::TOKEN_TTL_MS_MAX {
        true => Ok(ms),
        false => Err(anyhow!("the most is 3650d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_a_bound() {
        for (text, ms) in [("1s", 1_000), ("30m", 1_800_000), ("24h", 86_400_000), ("3650d", 315_360_000_000)] {
            assert_eq!(ttl_ms(text).unwrap(), ms);
        }
        for bad in ["", "0h", "h", "24", "-1h", "1.5h", "3651d", "99999999999999999999d", "1ü"] {
            assert!(ttl_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_left_is_told_in_the_unit_that_fits() {
        let at = |s: u64| left(s * 1_000, 0);
        assert_eq!(
            [at(0), at(90), at(3_600), at(36_000), at(900_000)],
            ["has expired", "in 90 s", "in 60 min", "in 10 h", "in 10 days"]
        );
    }
}
