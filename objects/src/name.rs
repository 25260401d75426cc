//! Names of objects: what every store and every file system takes, and nothing that could leave its prefix.

use crate::error::Error;

/// S3 takes 1024 bytes; the rest is left for the prefix.
const NAME_BYTES_MAX: usize = 800;
/// A part is a file's name in a folder, with room for what is put behind it while it is written.
const PART_BYTES_MAX: usize = 200;

/// Parts of letters, digits and `. _ - = @ +`, separated by `/`.
pub fn check(name: &str) -> Result<(), Error> {
    let bad = |why: String| Err(Error::Name { name: name.to_string(), why });
    if name.len() > NAME_BYTES_MAX {
        return bad(format!("it has {} bytes, and {NAME_BYTES_MAX} are allowed", name.len()));
    }
    for part in name.split('/') {
        match part {
            "" => return bad("it has an empty part".into()),
            "." | ".." => return bad(format!("a part may not be {part:?}")),
            part if part.len() > PART_BYTES_MAX => {
                return bad(format!("a part has {} bytes, and {PART_BYTES_MAX} are allowed", part.len()));
            }
            part => {
                let odd = part.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-=@+".contains(*c));
                if let Some(odd) = odd {
                    return bad(format!("{odd:?} is not allowed: use letters, digits and . _ - = @ +"));
                }
            }
        }
    }
    Ok(())
}

/// `name` below `prefix`, which may be empty.
pub(crate) fn join(prefix: &str, name: &str) -> String {
    match (prefix, name) {
        ("", name) => name.to_string(),
        (prefix, "") => prefix.to_string(),
        (prefix, name) => format!("{prefix}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_prefix_or_confuse_a_store_are_refused() {
        for good in ["a", "a/b-1/c_2.json", "blobs/sha256/ab/abcd", "x=1/y@2+z"] {
            check(good).unwrap();
        }
        let long = "x/".repeat(500);
        for bad in ["", "/a", "a/", "a//b", ".", "../a", "a/..", "a b", "a#1", "a%2f", "a\\b", "ü", "a\nb", &long] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
