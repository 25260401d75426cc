//! Draws what must not be guessed or met twice: job ids and job secrets.

use elastic_spec::JobId;
use std::fs::File;
use std::io::{self, Read};

/// Proof of membership between a job's workers.
pub(crate) fn secret() -> io::Result<Vec<u8>> {
    bytes::<32>().map(Vec::from)
}

/// What makes a token more than its name.
pub(crate) fn token() -> io::Result<[u8; 32]> {
    bytes()
}

/// A readable id for one run of the job called `name`: "digits-3fa2c1".
pub(crate) fn job_id(name: &str) -> io::Result<JobId> {
    let [a, b, c] = bytes::<3>()?;
    let letter = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let readable: String = name.chars().take(40).map(letter).collect();
    let readable = match readable.trim_matches('-') {
        "" => "job",
        readable => readable,
    };
    Ok(JobId::parse(&format!("{readable}-{a:02x}{b:02x}{c:02x}")).expect("made of letters, digits and dashes"))
}

fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut drawn = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut drawn)?;
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_gives_an_id_that_says_it() {
        for (name, begins) in [("digits", "digits-"), ("My Job!", "my-job-"), ("", "job-"), ("Übung", "bung-")] {
            let id = job_id(name).unwrap();
            assert!(id.as_str().starts_with(begins), "{id}");
        }
        assert!(job_id(&"x".repeat(200)).unwrap().as_str().len() <= 63);
        assert_ne!(job_id("a").unwrap(), job_id("a").unwrap());
    }
}
