//! Whether a job can be computed where it says.
//!
//! The engine trains on the processor. What GPUs there are is known (`elastic_cuda`), and a job that insists on one is
//! refused with what is missing, in place of being trained elsewhere in silence.

use elastic_spec::job::Device;

/// Refuses `resources.device = "cuda"`, and says what stands in the way.
pub fn check(device: Device) -> Result<(), String> {
    match device {
        Device::Auto | Device::Cpu => Ok(()),
        Device::Cuda => {
            let gpu = elastic_cuda::usable().map(|gpu| format!("GPU {}, {}", gpu.ordinal, gpu.name));
            Err(refusal(&gpu))
        }
    }
}

fn refusal(gpu: &Result<String, String>) -> String {
    let why = match gpu {
        Ok(gpu) => format!("{gpu}, is there, but this build cannot train on a GPU yet"),
        Err(why) => format!("no GPU can be used here, and this build cannot train on one yet: {why}"),
    };
    format!("resources.device = \"cuda\": {why}; \"auto\" trains on the processor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_always_there() {
        assert_eq!((check(Device::Auto), check(Device::Cpu)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_gpu_is_refused_with_what_stands_in_the_way() {
        let there = refusal(&Ok("GPU 0, NVIDIA H100".into()));
        let wanted = "resources.device = \"cuda\": GPU 0, NVIDIA H100, is there, but this build cannot train on a GPU yet; \
                      \"auto\" trains on the processor";
        assert_eq!(there, wanted);
        assert!(refusal(&Err("no driver; install it".into())).contains("yet: no driver; install it; \"auto\""));
    }
}
