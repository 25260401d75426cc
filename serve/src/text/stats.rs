//! What was done for texts, of one version of a model, and how `/metrics` names it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the time to the first token, in µs.
pub const BOUNDS_US: [u64; 12] =
    [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000, 30_000_000];

#[derive(Debug, Default)]
pub struct Stats {
    steps: AtomicU64,
    prompt_tokens: AtomicU64,
    tokens: AtomicU64,
    finished: AtomicU64,
    left: AtomicU64,
    running: AtomicU64,
    waiting: AtomicU64,
    first_us: AtomicU64,
    /// Texts up to each bound, and above the last.
    first: [AtomicU64; BOUNDS_US.len() + 1],
}

impl Stats {
    pub fn stepped(&self) {
        self.steps.fetch_add(1, Relaxed);
    }

    /// A text has a seat.
    pub fn seated(&self, prompt_tokens: usize) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
    }

    pub fn said(&self) {
        self.tokens.fetch_add(1, Relaxed);
    }

    /// So long after it came, a text has its first token.
    pub fn first(&self, us: u64) {
        let bucket = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        self.first[bucket].fetch_add(1, Relaxed);
        self.first_us.fetch_add(us, Relaxed);
    }

    pub fn finished(&self) {
        self.finished.fetch_add(1, Relaxed);
    }

    /// A text gave its seat back before it was finished.
    pub fn left(&self) {
        self.left.fetch_add(1, Relaxed);
    }

    pub fn now(&self, running: usize, waiting: usize) {
        self.running.store(running as u64, Relaxed);
        self.waiting.store(waiting as u64, Relaxed);
    }

    pub fn waiting(&self, waiting: usize) {
        self.waiting.store(waiting as u64, Relaxed);
    }
}

/// In Prometheus' text format, of models by their labels.
pub fn write(out: &mut String, rows: &[(String, &Stats)]) {
    if rows.is_empty() {
        return;
    }
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Stats) -> &AtomicU64| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, stats) in rows {
            let _ = writeln!(out, "{name}{{{labels}}} {}", value(stats).load(Relaxed));
        }
    };
    family("elastic_serve_text_running", "gauge", "Texts that go on now", &|s| &s.running);
    family("elastic_serve_text_waiting", "gauge", "Texts that wait for a seat", &|s| &s.waiting);
    family("elastic_serve_text_finished_total", "counter", "Texts that came to their end", &|s| &s.finished);
    let left = "Texts that lost their seat first: late, or nobody listened";
    family("elastic_serve_text_left_total", "counter", left, &|s| &s.left);
    family("elastic_serve_text_tokens_total", "counter", "Tokens that were said", &|s| &s.tokens);
    let prompts = "Tokens of the prompts that got a seat";
    family("elastic_serve_text_prompt_tokens_total", "counter", prompts, &|s| &s.prompt_tokens);
    family("elastic_serve_text_steps_total", "counter", "Passes of the network for texts", &|s| &s.steps);
    let name = "elastic_serve_text_first_token_seconds";
    let _ =
        writeln!(out, "# HELP {name} Time of texts from their request to their first token\n# TYPE {name} histogram");
    for (labels, stats) in rows {
        let mut below = 0;
        for (bound_us, count) in BOUNDS_US.iter().zip(&stats.first) {
            below += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {below}", *bound_us as f64 / 1e6);
        }
        let all = below + stats.first[BOUNDS_US.len()].load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", stats.first_us.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{labels}}} {all}");
    }
}
