//! Replays one simulated world: `cargo run --release -p elastic-sim --bin sim -- --seed 7` prints what happened.

use elastic_sim::{Mutant, World};

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)?.parse::<u64>().ok());
    let mutant = number("--mutant").and_then(|i| Mutant::ALL.get(i as usize).copied());
    let under_oracle = args.iter().any(|a| a == "--oracle");
    let world = |seed, with_trace| {
        let world = World::new(seed, mutant, with_trace);
        if under_oracle { world.under_oracle() } else { world }
    };
    if let Some(count) = number("--count") {
        let start = number("--seed").unwrap_or(0);
        for seed in start..start + count {
            for violation in world(seed, false).run().violations {
                println!("seed {seed}: {violation}");
            }
        }
        return std::process::ExitCode::SUCCESS;
    }
    let outcome = world(number("--seed").unwrap_or(0), true).run();
    print!("{}", outcome.trace);
    println!("fingerprint {:016x}", outcome.fingerprint);
    for violation in &outcome.violations {
        println!("violation: {violation}");
    }
    match outcome.violations.is_empty() {
        true => std::process::ExitCode::SUCCESS,
        false => std::process::ExitCode::FAILURE,
    }
}
