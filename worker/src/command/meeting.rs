//! A port for the processes of a generation to find each other: free on this node, where rank 0 will listen on it.
//!
//! It is held until the generation begins, and a generation never gets the one of another, so that processes of an
//! older one cannot come to it. Between its release and the moment when rank 0 listens somebody else may take it: it
//! lies below the ports that systems give out by themselves, and if it happens all the same the generation begins anew.

use crate::env::Env;
use anyhow::{Context, Result, anyhow, bail};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::ops::RangeInclusive;

pub struct Meeting {
    listener: TcpListener,
    host: String,
}

/// Below what Linux (32768), BSD and Windows (49152) give out.
const PORTS: RangeInclusive<u16> = 20_000..=32_767;

impl Meeting {
    pub fn reserve(env: &Env) -> Result<Meeting> {
        let (first, last) = env.ports.unwrap_or((*PORTS.start(), *PORTS.end()));
        let count = u32::from(last - first) + 1;
        let start = random().context("draw a port")? % count;
        let host = env.meet_at.as_ref().unwrap_or(&env.bind);
        for step in 0..count {
            let port = first + ((start + step) % count) as u16;
            match TcpListener::bind((host.as_str(), port)) {
                Ok(listener) => {
                    let host = env.meet_at.as_ref().unwrap_or(&env.advertise).clone();
                    return Ok(Meeting { listener, host });
                }
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {}
                Err(error) => return Err(anyhow!(error).context(format!("listen on {host}, where the processes meet"))),
            }
        }
        bail!("no port of {first}-{last} is free on {host}")
    }

    pub fn address(&self) -> String {
        let port = self.listener.local_addr().map_or(0, |address| address.port());
        if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }
}

fn random() -> std::io::Result<u32> {
    use std::io::Read;
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}
