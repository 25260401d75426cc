//! Patterns over the names of a network's parameters: `model.freeze` and `model.init_except`.
//!
//! A job file is read before its network is built, so patterns meet names where the worker has both.

/// Whether `name` is of `pattern`: `*` stands for any characters, dots included, `?` for one; all else for itself.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // The last star, and how much of the name it has taken: where to go back to and let it take one more.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// For each name whether one of the `patterns` of `key` matches it; or what to say of every pattern that
/// matches none, with the names that are nearest to it.
pub fn select(key: &str, patterns: &[String], names: &[&str]) -> Result<Vec<bool>, String> {
    let stray = patterns.iter().filter(|pattern| !names.iter().any(|name| matches(pattern, name)));
    let told: Vec<String> = stray
        .map(|pattern| {
            let near: Vec<String> = near(pattern, names).iter().map(|name| format!("`{name}`")).collect();
            format!("{key}: \"{pattern}\" matches no parameter; near it are {}", near.join(", "))
        })
        .collect();
    match told.is_empty() {
        true => Ok(names.iter().map(|name| patterns.iter().any(|pattern| matches(pattern, name))).collect()),
        false => Err(told.join("; ")),
    }
}

/// Names that are shown beside a pattern that matches none.
const NEAR: usize = 3;

fn near<'n>(pattern: &str, names: &[&'n str]) -> Vec<&'n str> {
    let plain = pattern.replace(['*', '?'], "");
    let mut by_likeness: Vec<(f64, &str)> =
        names.iter().map(|name| (strsim::jaro_winkler(plain.trim_matches('.'), name), *name)).collect();
    by_likeness.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    by_likeness.into_iter().take(NEAR).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.10.ln_1.weight", "ln_f.bias"];

    fn chosen(pattern: &str) -> Vec<&'static str> {
        NAMES.into_iter().filter(|name| matches(pattern, name)).collect()
    }

    #[test]
    fn a_star_takes_any_characters_and_a_question_mark_one() {
        assert_eq!(chosen("wte.weight"), ["wte.weight"]);
        assert_eq!(chosen("w?e.*"), ["wte.weight", "wpe.weight"]);
        assert_eq!(chosen("h.0.*"), ["h.0.ln_1.weight"]);
        assert_eq!(chosen("h.?.*"), ["h.0.ln_1.weight"]);
        assert_eq!(chosen("*ln_*t"), ["h.0.ln_1.weight", "h.10.ln_1.weight"]);
        assert_eq!(chosen("*"), NAMES);
        assert_eq!(chosen("wte"), [""; 0]);
        assert_eq!(chosen("wte.weight?"), [""; 0]);
        assert_eq!(chosen(""), [""; 0]);
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        assert!(!matches(&format!("{}b", "*a".repeat(100)), &"a".repeat(5000)));
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_told_with_near_names() {
        let select = |patterns: &[&str]| {
            select("model.freeze", &patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>(), &NAMES)
        };
        assert_eq!(select(&["w*", "ln_f.bias"]), Ok(vec![true, true, false, false, true]));
        assert_eq!(select(&[]), Ok(vec![false; 5]));
        let told = select(&["wte.*", "wtr.*", "blocks.*"]).unwrap_err();
        assert!(told.starts_with("model.freeze: \"wtr.*\" matches no parameter; near it are `wte.weight`, "), "{told}");
        assert!(told.contains("; model.freeze: \"blocks.*\" matches no parameter"), "{told}");
    }
}
