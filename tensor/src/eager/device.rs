//! Where tensors lie and graphs run. Named explicitly, never chosen behind the caller's back.

use super::{Error, Result};
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    #[default]
    Cpu,
    /// A GPU by its number. This build has none: see [`Device::present`].
    Cuda(usize),
}

impl Device {
    /// The device itself, or an error if this build cannot use it.
    pub fn present(self) -> Result<Device> {
        match self {
            Device::Cpu => Ok(self),
            Device::Cuda(_) => Err(Error::Device {
                device: self.to_string(),
                message: "this build computes on the CPU only; name `cpu`".into(),
            }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, or `cuda:0`, `cuda:1`, …, if it is there.
    fn from_str(name: &str) -> Result<Device> {
        let number = |rest: &str| rest.bytes().all(|b| b.is_ascii_digit()).then(|| rest.parse().ok()).flatten();
        match name.strip_prefix("cuda:").map(number) {
            Some(Some(number)) => Device::Cuda(number).present(),
            None if name == "cpu" => Ok(Device::Cpu),
            _ => Err(Error::Device { device: name.into(), message: "name `cpu`, or `cuda:0` and so on".into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_and_one_that_is_not_there_is_refused() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
        let missing = "cuda:0".parse::<Device>().unwrap_err().to_string();
        assert_eq!(missing, "device `cuda:0`: this build computes on the CPU only; name `cpu`");
        for name in ["", "CPU", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:99999999999999999999", "gpu"] {
            let wrong = name.parse::<Device>().unwrap_err().to_string();
            assert!(wrong.contains("name `cpu`, or `cuda:0`"), "{name}: {wrong}");
        }
    }
}
