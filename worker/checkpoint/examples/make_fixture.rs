//! Writes the fixture of the format version in force: `cargo run --release -p elastic-checkpoint --example
//! make_fixture DIR`. To be run once when the format version rises; older fixtures stay as they are.

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let dir = std::env::args().nth(1).expect("the directory to write into");
    let published = elastic_checkpoint::Checkpoints::at(dir).publish(&common::origin(3, 2), &common::small(40));
    println!("{}", published.expect("the fixture is written").path.display());
}
