//! Whether figures pass: pure arithmetic on what `elastic evaluate` told.

use elastic_spec::pipeline::{Change, Evaluate, Measure, Metric, Threshold};
use serde_json::Value;
use std::collections::BTreeMap;

/// What evaluation told of one model: of all samples, and of each slice by `column=value`.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    pub all: Value,
    pub slices: BTreeMap<String, Value>,
}

/// What came of the bounds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Judgement {
    /// Bounds that were not held; none: the model is blessed.
    pub refusals: Vec<String>,
    /// Checks that could not be made, and why.
    pub skipped: Vec<String>,
}

pub fn judge(asked: &Evaluate, candidate: &Figures, baseline: Option<&Figures>) -> Judgement {
    let mut judgement = Judgement::default();
    for threshold in &asked.thresholds {
        judgement.refusals.extend(hold(threshold, candidate).err());
    }
    for change in &asked.changes {
        match baseline {
            None => judgement
                .skipped
                .push(format!("the change of {} was not looked at: there is no blessed model yet", change.measure)),
            Some(baseline) => match gained(change, candidate, baseline) {
                Ok(()) => {}
                Err(Unheld::Refused(why)) => judgement.refusals.push(why),
                Err(Unheld::NoBaseline(why)) => judgement.skipped.push(why),
            },
        }
    }
    judgement
}

fn hold(threshold: &Threshold, figures: &Figures) -> Result<(), String> {
    let Threshold { measure, lower, upper } = threshold;
    let value = value_of(measure, figures)?;
    match (lower, upper) {
        (Some(lower), _) if value < *lower => Err(format!("{measure} is {value:.6}, below {lower}")),
        (_, Some(upper)) if value > *upper => Err(format!("{measure} is {value:.6}, above {upper}")),
        _ => Ok(()),
    }
}

enum Unheld {
    Refused(String),
    NoBaseline(String),
}

fn gained(change: &Change, candidate: &Figures, baseline: &Figures) -> Result<(), Unheld> {
    let Change { measure, absolute, relative } = change;
    let now = value_of(measure, candidate).map_err(Unheld::Refused)?;
    let was = value_of(measure, baseline).map_err(|why| {
        Unheld::NoBaseline(format!("the change of {measure} was not looked at: of the blessed model, {why}"))
    })?;
    let gain = if measure.metric == Metric::Loss { was - now } else { now - was };
    let refuse = |what: &str, least: f64| {
        Err(Unheld::Refused(format!("{measure} is {now:.6} and was {was:.6}: the gain {what} is below {least}")))
    };
    match (absolute, relative) {
        (Some(least), _) if gain < *least => refuse(&format!("{gain:.6}"), *least),
        // Of nothing no share can be gained.
        (_, Some(least)) if gain < least * was.abs() => refuse(&format!("{gain:.6} of {was:.6}"), *least),
        _ => Ok(()),
    }
}

/// A number, or why there is none: then a bound on it is not held.
pub fn value_of(measure: &Measure, figures: &Figures) -> Result<f64, String> {
    let of = match &measure.slice {
        None => &figures.all,
        Some(slice) => match figures.slices.get(slice) {
            Some(of) => of,
            None => return Err(format!("{measure}: no sample kept for evaluation has {slice}")),
        },
    };
    let none = || format!("{measure} is not defined for these samples");
    let metric = measure.metric.word();
    if !measure.metric.is_of_a_class() {
        return of[metric].as_f64().filter(|value| value.is_finite()).ok_or_else(none);
    }
    let classes = of["classes"].as_array().ok_or_else(none)?;
    match &measure.class {
        Some(class) => {
            let found = classes.iter().find(|entry| entry["label"].as_str() == Some(class));
            let found = found.ok_or_else(|| format!("{measure}: there is no class {class}"))?;
            found[metric].as_f64().ok_or_else(none)
        }
        // Classes without samples have no figures; the others count.
        None => classes.iter().filter_map(|entry| entry[metric].as_f64()).min_by(f64::total_cmp).ok_or_else(none),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::job::ParseContext;
    use serde_json::json;

    fn asked(text: &str) -> Evaluate {
        let text = format!(
            "[ingest]\nformat = \"csv\"\npath = \"a\"\nslices = [1]\n[train]\njob = \"j\"\n[push]\nregistry = \"r\"\n{text}"
        );
        let parsed = elastic_spec::pipeline::parse(&text, &ParseContext::default());
        parsed.unwrap_or_else(|m| panic!("{m:?}")).spec.evaluate
    }

    fn figures(accuracy: f64, loss: f64, recalls: [f64; 2]) -> Figures {
        let classes = [("a", recalls[0]), ("b", recalls[1])].map(|(label, r)| json!({"label": label, "recall": r}));
        let slices = [("1=x".to_string(), json!({"accuracy": accuracy - 0.1}))].into();
        Figures { all: json!({"accuracy": accuracy, "loss": loss, "classes": classes}), slices }
    }

    fn refusals(text: &str, now: Figures, was: Option<Figures>) -> Vec<String> {
        judge(&asked(text), &now, was.as_ref()).refusals
    }

    #[test]
    fn bounds_hold_for_all_samples_for_a_slice_and_for_the_worst_class() {
        let now = || figures(0.9, 0.3, [0.95, 0.8]);
        let threshold = |text: &str| refusals(&format!("[[evaluate.thresholds]]\n{text}"), now(), None);
        for held in [
            "metric = \"accuracy\"\nlower = 0.9",
            "metric = \"loss\"\nupper = 0.3",
            "metric = \"recall\"\nclass = \"a\"\nlower = 0.9",
            "metric = \"accuracy\"\nslice = \"1=x\"\nlower = 0.79",
        ] {
            assert_eq!(threshold(held), [""; 0], "{held}");
        }
        for (not_held, says) in [
            ("metric = \"accuracy\"\nlower = 0.91", "accuracy is 0.900000, below 0.91"),
            ("metric = \"loss\"\nupper = 0.2", "loss is 0.300000, above 0.2"),
            ("metric = \"recall\"\nlower = 0.9", "recall of the worst class is 0.800000, below 0.9"),
            ("metric = \"recall\"\nclass = \"c\"\nlower = 0.1", "recall of class c: there is no class c"),
            ("metric = \"f1\"\nlower = 0.1", "f1 of the worst class is not defined for these samples"),
            ("metric = \"accuracy\"\nslice = \"1=y\"\nlower = 0.1", "accuracy where 1=y: no sample"),
        ] {
            let told = threshold(not_held);
            assert!(told.len() == 1 && told[0].starts_with(says), "{told:?}");
        }
    }

    #[test]
    fn a_gain_is_a_higher_metric_or_a_lower_loss() {
        let was = || Some(figures(0.9, 0.3, [0.9, 0.9]));
        let change = |text: &str, now: Figures| refusals(&format!("[[evaluate.changes]]\n{text}"), now, was()).len();
        let near = || figures(0.895, 0.31, [0.9, 0.9]);
        assert_eq!(change("metric = \"accuracy\"\nabsolute = -0.01", near()), 0);
        assert_eq!(change("metric = \"accuracy\"\nabsolute = 0.0", near()), 1);
        assert_eq!(change("metric = \"accuracy\"\nrelative = -0.01", near()), 0);
        assert_eq!(change("metric = \"accuracy\"\nrelative = -0.001", near()), 1);
        assert_eq!(change("metric = \"loss\"\nabsolute = -0.02", near()), 0);
        assert_eq!(change("metric = \"loss\"\nabsolute = 0.0", near()), 1);
        assert_eq!(change("metric = \"loss\"\nabsolute = 0.0", figures(0.9, 0.2, [0.9, 0.9])), 0);
    }

    #[test]
    fn without_a_blessed_model_the_change_is_skipped_and_this_is_said() {
        let text = "[[evaluate.changes]]\nmetric = \"accuracy\"\nabsolute = 0.0\n";
        let judgement = judge(&asked(text), &figures(0.1, 9.0, [0.0, 0.0]), None);
        assert_eq!(judgement.refusals, [""; 0]);
        assert_eq!(judgement.skipped, ["the change of accuracy was not looked at: there is no blessed model yet"]);
    }
}
