//! What Prometheus reads: its text format 0.0.4, or OpenMetrics for those who ask for it.
//!
//! Numbers are counted where things happen ([`Counts`], [`Histogram`]); a page is written when it is asked for.

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Label names and values of one sample.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// How often things happened, by up to two labels whose values the program knows beforehand.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<[&'static str; 2], u64>>);

impl Counts {
    pub fn add(&self, key: [&'static str; 2], count: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += count;
    }

    pub fn all(&self) -> BTreeMap<[&'static str; 2], u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How long things took.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last is of what took longer.
    counts: Vec<AtomicU64>,
    sum_ns: AtomicU64,
}

/// From 10 µs to 10 s.
const SECONDS: &[f64] = &[1e-5, 1e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

impl Default for Histogram {
    fn default() -> Histogram {
        let counts = (0..=SECONDS.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds: SECONDS, counts, sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// One answer to a scrape.
#[derive(Debug)]
pub struct Page {
    text: String,
    open: bool,
}

impl Page {
    /// In the format that the caller asks for.
    pub fn for_caller(headers: &HeaderMap) -> Page {
        let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Page { text: String::new(), open: accepts.contains("application/openmetrics-text") }
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: impl Into<f64>) {
        self.gauges(name, help, [(&[][..], value.into())]);
    }

    pub fn gauges<'a>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        self.head(name, help, "gauge");
        samples.into_iter().for_each(|(labels, value)| self.sample(name, labels, value));
    }

    /// `name` ends with `_total`.
    pub fn counters<'a>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'a>, u64)>) {
        assert!(name.ends_with("_total"), "{name} counts, so its name ends with _total");
        // OpenMetrics names the family without the ending of its samples.
        let family = if self.open { name.trim_end_matches("_total") } else { name };
        self.head(family, help, "counter");
        samples.into_iter().for_each(|(labels, value)| self.sample(name, labels, value as f64));
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [(&[][..], value)]);
    }

    /// Counts by two labels.
    pub fn counts(&mut self, name: &str, help: &str, labels: [&'static str; 2], counts: &Counts) {
        let all = counts.all();
        let pairs: Vec<_> =
            all.iter().map(|(values, count)| ([(labels[0], values[0]), (labels[1], values[1])], *count)).collect();
        let used = if labels[1].is_empty() { 1 } else { 2 };
        self.counters(name, help, pairs.iter().map(|(pairs, count)| (&pairs[..used], *count)));
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut sum = 0;
        let bounds = histogram.bounds.iter().map(|bound| bound.to_string()).chain(["+Inf".to_string()]);
        let bucket = format!("{name}_bucket");
        for (bound, count) in bounds.zip(&histogram.counts) {
            sum += count.load(Ordering::Relaxed);
            self.sample(&bucket, &[("le", &bound)], sum as f64);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum_ns.load(Ordering::Relaxed) as f64 / 1e9);
        self.sample(&format!("{name}_count"), &[], sum as f64);
    }

    fn head(&mut self, family: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {family} {}\n# TYPE {family} {kind}", escaped(help));
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let value = match value {
            v if v.is_nan() => "NaN".to_string(),
            v if v.is_infinite() => if v > 0.0 { "+Inf" } else { "-Inf" }.to_string(),
            v => v.to_string(),
        };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let (kind, text) = match self.open {
            false => ("text/plain; version=0.0.4; charset=utf-8", self.text),
            true => ("application/openmetrics-text; version=1.0.0; charset=utf-8", self.text + "# EOF\n"),
        };
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(open: bool) -> Page {
        Page { text: String::new(), open }
    }

    #[test]
    fn a_family_has_help_type_and_samples_with_escaped_labels() {
        let mut page = page(false);
        page.gauges("elastic_job_step", "The step.", [(&[("job", "a\"b\\c\nd")][..], 7.0)]);
        let expected = "# HELP elastic_job_step The step.\n# TYPE elastic_job_step gauge\n\
                        elastic_job_step{job=\"a\\\"b\\\\c\\nd\"} 7\n";
        assert_eq!(page.text, expected);
    }

    #[test]
    fn a_counters_family_is_named_as_each_format_wants_it() {
        for (open, family) in [(false, "x_total"), (true, "x")] {
            let mut page = page(open);
            page.counter("x_total", "Of x.", 2);
            assert_eq!(page.text, format!("# HELP {family} Of x.\n# TYPE {family} counter\nx_total 2\n"));
        }
    }

    #[test]
    fn buckets_add_up() {
        let histogram = Histogram::default();
        for ms in [0, 2, 2, 400, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut page = page(false);
        page.histogram("t_seconds", "Time.", &histogram);
        for line in [
            "t_seconds_bucket{le=\"0.00001\"} 1\n",
            "t_seconds_bucket{le=\"0.005\"} 3\n",
            "t_seconds_bucket{le=\"0.5\"} 4\n",
            "t_seconds_bucket{le=\"+Inf\"} 5\n",
            "t_seconds_sum 60.404\n",
            "t_seconds_count 5\n",
        ] {
            assert!(page.text.contains(line), "{line} is not in {}", page.text);
        }
    }

    #[test]
    fn numbers_that_are_none_are_spelled_as_prometheus_does() {
        let mut page = page(false);
        page.gauge("a", "A.", f64::NAN);
        page.gauge("b", "B.", f64::INFINITY);
        assert!(page.text.contains("\na NaN\n") && page.text.contains("\nb +Inf\n"), "{}", page.text);
    }
}
