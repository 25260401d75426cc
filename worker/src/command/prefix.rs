//! What stands before the lines of a process: a template as `torchrun` takes it, filled in.

/// What a template may name.
pub struct Names<'a> {
    pub role: &'a str,
    pub local_rank: u16,
    pub rank: u32,
    pub hostname: &'a str,
}

/// `$name` and `${name}` are replaced, `$$` is `$`, and what is not known stays as it is.
pub fn fill(template: &str, names: &Names) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        filled += before;
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            filled.push('$');
            rest = after;
            continue;
        }
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = match rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(braced) => braced,
            None => rest.split_at(rest.find(|c| !is_of_name(c)).unwrap_or(rest.len())),
        };
        match value(name, names) {
            Some(value) => {
                filled += &value;
                rest = after;
            }
            None => filled.push('$'),
        }
    }
    filled + rest
}

fn value(name: &str, names: &Names) -> Option<String> {
    match name {
        "role_name" => Some(names.role.to_string()),
        "local_rank" => Some(names.local_rank.to_string()),
        "rank" => Some(names.rank.to_string()),
        "hostname" => Some(names.hostname.to_string()),
        _ => None,
    }
}

/// This machine's.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_filled_in_and_the_rest_stays() {
        let names = Names { role: "trainer", local_rank: 1, rank: 5, hostname: "box" };
        for (template, filled) in [
            ("[${role_name}${local_rank}]:", "[trainer1]:"),
            ("$hostname/$rank> ", "box/5> "),
            ("$$rank ${rank", "$rank ${rank"),
            ("${colour} $", "${colour} $"),
            ("plain ", "plain "),
        ] {
            assert_eq!(fill(template, &names), filled, "{template}");
        }
    }
}
