//! Programs that are built here start on other distributions: with the C library of 2021 (glibc 2.34) and later, and with
//! no library that only some machines have.

use object::elf::FileHeader64;
use object::read::elf::{Dyn, FileHeader};
use object::{Endianness, elf};
use std::path::{Path, PathBuf};

/// RHEL 9, Debian 12, Ubuntu 22.04 and what followed them.
const GLIBC_MAX: [u32; 2] = [2, 34];

/// Libraries of glibc itself, and GCC's for unwinding, which every distribution has.
const EVERYWHERE: &[&str] =
    &["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];

/// What a program needs of others: libraries, and versions of their symbols.
#[derive(Debug, Default)]
struct Needs {
    libraries: Vec<String>,
    versions: Vec<String>,
}

fn needs_of(file: &[u8]) -> object::Result<Needs> {
    let mut needs = Needs::default();
    let head = FileHeader64::<Endianness>::parse(file)?;
    let endian = head.endian()?;
    let sections = head.sections(endian, file)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if let Some((entries, strings)) = sections.dynamic(endian, file)? {
        let strings = sections.strings(endian, file, strings)?;
        for entry in entries.iter().filter(|entry| entry.d_tag(endian) == elf::DT_NEEDED) {
            needs.libraries.push(text(entry.string(endian, strings)?));
        }
    }
    if let Some((mut libraries, strings)) = sections.gnu_verneed(endian, file)? {
        let strings = sections.strings(endian, file, strings)?;
        while let Some((_, mut versions)) = libraries.next()? {
            while let Some(version) = versions.next()? {
                needs.versions.push(text(version.name(endian, strings)?));
            }
        }
    }
    Ok(needs)
}

/// What other machines may not have.
fn too_much(needs: &Needs) -> Vec<String> {
    let is_too_new = |version: &&String| {
        let Some(number) = version.strip_prefix("GLIBC_") else { return false };
        // GLIBC_PRIVATE and GLIBC_ABI_…: of one very build, or a promise that older ones do not make.
        let parts: Option<Vec<u32>> = number.split('.').map(|part| part.parse().ok()).collect();
        parts.is_none_or(|parts| parts.as_slice() > GLIBC_MAX.as_slice())
    };
    let versions = needs.versions.iter().filter(is_too_new);
    let libraries = needs.libraries.iter().filter(|library| !EVERYWHERE.contains(&library.as_str()));
    versions.chain(libraries).cloned().collect()
}

/// The programs of a build, by what the test run was given.
fn programs() -> Vec<PathBuf> {
    let elastic = PathBuf::from(std::env::var_os("ELASTIC_BIN").expect("ELASTIC_BIN names the program under test"));
    // Built beside it by `cargo xtask test`; a run by hand may have built the one alone.
    let beside = ["own-model", "elastic-selftest"].map(|name| elastic.with_file_name(name));
    [elastic].into_iter().chain(beside.into_iter().filter(|program| program.exists())).collect()
}

#[test]
fn programs_start_on_every_distribution_with_glibc_2_34() {
    let check = |program: &Path| {
        let file = std::fs::read(program).unwrap_or_else(|error| panic!("read {}: {error}", program.display()));
        let needs = needs_of(&file).unwrap_or_else(|error| panic!("read {}: {error}", program.display()));
        assert!(needs.versions.iter().any(|version| version == "GLIBC_2.34"), "{}: {needs:?}", program.display());
        let wrong = too_much(&needs);
        assert!(wrong.is_empty(), "{} needs {}", program.display(), wrong.join(", "));
    };
    programs().iter().for_each(|program| check(program));
}

#[test]
fn what_an_older_machine_lacks_is_found() {
    let strings = |list: &[&str]| list.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    let of = |libraries: &[&str], versions: &[&str]| {
        too_much(&Needs { libraries: strings(libraries), versions: strings(versions) })
    };
    assert_eq!(of(&["libc.so.6"], &["GLIBC_2.2.5", "GLIBC_2.34", "GCC_3.0"]), [""; 0]);
    assert_eq!(of(&["libc.so.6", "libcuda.so.1"], &["GLIBC_2.34"]), ["libcuda.so.1"]);
    assert_eq!(of(&[], &["GLIBC_2.35", "GLIBC_2.4", "GLIBC_PRIVATE"]), ["GLIBC_2.35", "GLIBC_PRIVATE"]);
}
