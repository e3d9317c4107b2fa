//! The kernel's command line: words separated by spaces, each `key=value` or a bare `key`.

/// The value of the last `key=value`; `Some("")` for a bare `key`; `None` when the key does not occur.
///
/// The last one wins, so that whoever appends to a command line overrides it.
#[must_use]
pub fn option<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().rev().find_map(|word| match word.split_once('=') {
        Some((name, value)) => (name == key).then_some(value),
        None => (word == key).then_some(""),
    })
}

#[cfg(test)]
mod tests {
    use super::option;

    #[test]
    fn a_value_a_bare_key_and_an_absent_key_are_told_apart() {
        let line = "  width=39 no-poison seed=";
        assert_eq!(option(line, "width"), Some("39"));
        assert_eq!(option(line, "no-poison"), Some(""));
        assert_eq!(option(line, "seed"), Some(""));
        assert_eq!(option(line, "wid"), None);
        assert_eq!(option(line, "39"), None);
    }

    #[test]
    fn the_last_of_several_wins() {
        assert_eq!(option("width=39 width=48", "width"), Some("48"));
    }

    #[test]
    fn only_the_first_equals_sign_separates() {
        assert_eq!(option("args=a=b", "args"), Some("a=b"));
    }
}
