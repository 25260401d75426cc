//! Groups of parameters with rates of their own: `[[train.groups]]`, and which group a parameter is in.

use super::names::select;
use super::section::Section;
use serde::{Deserialize, Serialize};

/// One `[[train.groups]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Patterns (`names`), at least one.
    pub patterns: Vec<String>,
    /// Factor on the rate of every step.
    pub lr_scale: f64,
    /// Of all parameters in the group; None: the optimizer's, where it applies by itself.
    pub weight_decay: Option<f64>,
}

/// For each name the group that it is in: the first of which a pattern matches it. The error tells every pattern
/// that matches none.
pub fn group_of(groups: &[Group], names: &[&str]) -> Result<Vec<Option<usize>>, String> {
    let mut found = vec![None; names.len()];
    let mut stray = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        match select("train.groups.match", &group.patterns, names) {
            Ok(chosen) => {
                let chosen = found.iter_mut().zip(chosen).filter(|(_, chosen)| *chosen);
                chosen.for_each(|(of, _)| *of = of.or(Some(index)));
            }
            Err(told) => stray.push(told),
        }
    }
    if stray.is_empty() { Ok(found) } else { Err(stray.join("; ")) }
}

/// The groups that do nothing, since all that they match is in groups before them; `found` is of [`group_of`].
pub fn idle(groups: &[Group], found: &[Option<usize>]) -> Vec<String> {
    let idle = groups.iter().enumerate().filter(|(index, _)| !found.contains(&Some(*index)));
    let told = idle.map(|(index, group)| {
        let (number, patterns) = (index + 1, &group.patterns);
        format!(
            "train.groups: group {number} (match = {patterns:?}) does nothing: all that it matches is in groups before it; \
             put it before them, or leave it out"
        )
    });
    told.collect()
}

/// The groups of section `train`.
pub(super) fn read(train: &mut Section) -> Option<Vec<Group>> {
    let sections = train.tables("groups")?;
    let mut groups = Vec::with_capacity(sections.len());
    for mut section in sections {
        let patterns = section.texts("match");
        if patterns.as_ref().is_some_and(Vec::is_empty) {
            section.wrong("match", "is an empty list; a group has at least one pattern");
        }
        let (lr_scale, weight_decay) = (section.float("lr_scale"), section.float("weight_decay"));
        groups.push((|| Some(Group { patterns: patterns?, lr_scale: lr_scale?, weight_decay }))());
        train.take_up(section);
    }
    groups.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(patterns: &[&str]) -> Group {
        Group { patterns: patterns.iter().map(|p| p.to_string()).collect(), lr_scale: 0.5, weight_decay: None }
    }

    #[test]
    fn the_first_group_that_matches_has_the_parameter() {
        let names = ["wte.weight", "h.0.bias", "h.1.bias", "ln_f.bias"];
        let groups = [group(&["h.0.*"]), group(&["h.*", "wte.*"]), group(&["h.0.bias"])];
        assert_eq!(group_of(&groups, &names), Ok(vec![Some(1), Some(0), Some(1), None]));
        assert_eq!(group_of(&[], &names), Ok(vec![None; 4]));
    }

    #[test]
    fn a_group_behind_others_that_have_all_of_it_is_told() {
        let groups = [group(&["h.*"]), group(&["h.0.bias"])];
        let told = idle(&groups, &group_of(&groups, &["wte.weight", "h.0.bias"]).unwrap());
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("train.groups: group 2 (match = [\"h.0.bias\"]) does nothing: "), "{told:?}");
    }

    #[test]
    fn every_pattern_that_matches_nothing_is_told() {
        let told = group_of(&[group(&["wtx.*", "*"]), group(&["h.0.bais"])], &["wte.weight", "h.0.bias"]).unwrap_err();
        assert_eq!(
            told,
            "train.groups.match: \"wtx.*\" matches no parameter; near it are `wte.weight`, `h.0.bias`; \
             train.groups.match: \"h.0.bais\" matches no parameter; near it are `h.0.bias`, `wte.weight`"
        );
    }
}
