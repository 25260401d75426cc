//! Machine code inside the program: a build that is given cubins runs them without a compiler.

mod common;

use std::path::Path;
use std::process::{Command, Output};

fn run(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    (status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

#[test]
fn a_program_with_embedded_cubins_needs_no_compiler() {
    let nvidia = match common::nvidia() {
        Ok(nvidia) => nvidia.join("lib"),
        Err(why) => return println!("skipped: a_program_with_embedded_cubins_needs_no_compiler: {why}"),
    };
    let dir = common::temp();
    let cubins = dir.path().join("cubins");
    let mut compile = Command::new(env!("CARGO_BIN_EXE_elastic-selftest"));
    compile.arg("compile").arg(&cubins).env("ELASTIC_CUDA_LIBS", format!("{}:-", nvidia.display()));
    let (done, said) = run(&mut compile);
    assert!(done, "{said}");

    // In a target directory of its own: the programs under test stay as they are.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedded");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--offline", "-p", "elastic-cuda", "--bin", "elastic-selftest", "--target-dir"]);
    build.arg(&target).current_dir(common::folder()).env("ELASTIC_EMBED_CUBINS", &cubins);
    let (done, said) = run(&mut build);
    assert!(done, "{said}");

    common::driver_in(dir.path());
    let mut selftest = Command::new(target.join("debug/elastic-selftest"));
    selftest.env("ELASTIC_CUDA_LIBS", format!("{}:-", dir.path().display())).env("XDG_CACHE_HOME", dir.path());
    let (done, said) = run(&mut selftest);
    assert!(done, "{said}");
    let fill = said.lines().find(|line| line.contains("fill.cu")).expect("a line for each kernel");
    assert!(fill.contains("sm_90") && fill.ends_with("embedded"), "{fill}");
}
