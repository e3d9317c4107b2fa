//! Adds up the result lines of `cargo test`.
//!
//! Each test binary ends with `test result: ok. 12 passed; 0 failed; 1 ignored; ...`. A suite that printed no
//! such line, ran no test at all, or failed without saying which test did, counts as one failure: silence is
//! never success.

use std::fmt;
use std::ops::AddAssign;

/// How many tests did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Reads one line of output; `None` if it is not a result line.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let counts = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?.1;
        let mut tally = Self::default();
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let slot = match what {
                "passed" => &mut tally.passed,
                "failed" => &mut tally.failed,
                "ignored" => &mut tally.ignored,
                _ => continue,
            };
            *slot = number.parse().ok()?;
        }
        Some(tally)
    }

    /// A failure that no result line accounts for.
    pub(crate) fn one_failure() -> Self {
        Self { failed: 1, ..Self::default() }
    }

    /// The verdict over a suite: its own lines, corrected by how its process ended.
    pub(crate) fn judged(mut self, succeeded: bool) -> Self {
        if self.failed == 0 && (!succeeded || self.passed == 0) {
            self.failed = 1;
        }
        self
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} skipped", self.ignored)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, ignored: u64) -> Tally {
        Tally { passed, failed, ignored }
    }

    #[test]
    fn result_lines_are_read_and_others_are_not() {
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Tally::of_line(ok), Some(tally(12, 0, 1)));
        let bad = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out";
        assert_eq!(Tally::of_line(bad), Some(tally(3, 2, 0)));
        for line in ["", "running 12 tests", "test a::b ... ok", "test result: unknown"] {
            assert_eq!(Tally::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn suites_add_up_to_one_closing_line() {
        let mut sum = tally(12, 0, 0);
        sum += tally(3, 2, 0);
        assert_eq!(sum.to_string(), "15 passed, 2 failed");
        sum += tally(0, 0, 4);
        assert_eq!(sum.to_string(), "15 passed, 2 failed, 4 skipped");
    }

    #[test]
    fn a_suite_that_fails_or_runs_nothing_is_a_failure_though_no_line_says_so() {
        assert_eq!(tally(5, 0, 0).judged(true), tally(5, 0, 0));
        assert_eq!(tally(5, 0, 0).judged(false), tally(5, 1, 0), "did not compile, or was killed");
        assert_eq!(tally(0, 0, 3).judged(true), tally(0, 1, 3), "ran no test");
        assert_eq!(tally(5, 2, 0).judged(false), tally(5, 2, 0), "already accounted for");
    }
}
